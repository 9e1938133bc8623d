"""Commands that work with the vendor through a running receiver: objects, submit."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import click

from receiver.cli.jobs import describe, leave, wait_for
from receiver.cli.output import as_json, plain, show
from receiver.cli.remote import Remote, asks_a_receiver
from receiver.jobs.job import is_ending

UPLOAD_SECONDS = 600
PAUSE_SECONDS = 1.0


@click.command()
@click.option("--instance", required=True)
@click.option("--hub", help="The vendor's hub; else that of the instance.")
@as_json
@asks_a_receiver
def objects(remote: Remote, instance: str, hub: str | None, json_: bool) -> None:
    """List the objects that can be uploaded for an instance."""
    found = remote.vendor("GET", f"{_hub(hub)}/objects", instance).json()
    show(found, "\n".join(map(plain, found)), json_)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--object", "object_name", required=True, help="E.g. contact.")
@click.option("--instance", required=True)
@click.option("--hub", help="The vendor's hub; else that of the instance.")
@click.option(
    "--wait", type=click.IntRange(0), default=0, help="Seconds to wait for the job's end."
)
@as_json
@asks_a_receiver
def submit(
    remote: Remote,
    file: str,
    object_name: str,
    instance: str,
    hub: str | None,
    wait: int,
    json_: bool,
) -> None:
    """Upload a CSV file as a bulk job; with --wait, exit as `receiver job` does."""
    source = Path(file)
    path = f"{_hub(hub)}/bulk/{quote(object_name, safe='')}"
    progress: Any = click.progressbar(
        length=source.stat().st_size,
        label=f"uploading {source.name}",
        file=sys.stderr,
    )
    with source.open("rb") as opened, progress as bar:
        watched = _Watched(opened, bar.update)
        answer = remote.vendor(
            "POST",
            path,
            instance,
            params={"path": f"/{source.name}"},
            files={"file": (source.name, watched, "text/csv")},
            timeout=UPLOAD_SECONDS,
        ).json()
    job_id = str(answer["id"])
    click.echo(f"job {job_id} of {instance}: {plain(answer['status'])}", err=True)
    if not wait:
        show(
            answer,
            f"wait for it with: receiver job {job_id} --instance {instance} --wait 600",
            json_,
        )
        return
    job = _watch(remote, job_id, instance, wait)
    show(job, describe(job), json_)
    leave(job, wait)


class _Watched:
    """A file that tells how far it was read. What is not told is the file's own."""

    def __init__(self, file: IO[bytes], tell_of: Callable[[int], None]) -> None:
        self._file, self._tell_of = file, tell_of

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._tell_of(len(piece))
        return piece

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the file's
        return getattr(self._file, name)


def _watch(remote: Remote, job_id: str, instance: str, seconds: int) -> dict[str, Any]:
    """Tell the job's statuses as they change, until it has ended or the seconds are over."""
    deadline, last = time.monotonic() + seconds, None
    while True:
        job = wait_for(remote, job_id, instance, 0)
        if job["status"] != last:
            last = job["status"]
            click.echo(f"{job['updated_at']}  {plain(last)}", err=True)
        left = deadline - time.monotonic()
        if is_ending(last) or left <= 0:
            return job
        time.sleep(min(PAUSE_SECONDS, left))


def _hub(hub: str | None) -> str:
    return f"/hubs/{quote(hub, safe='')}" if hub else ""


COMMANDS = (objects, submit)
