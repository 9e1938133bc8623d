"""Commands that work with the vendor through a running receiver: objects, submit, download."""

import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import click

from receiver.cli.jobs import describe, leave, wait_for
from receiver.cli.output import (
    STILL_RUNNING,
    UNREACHABLE,
    USAGE,
    Failure,
    as_json,
    of_outcome,
    plain,
    show,
)
from receiver.cli.remote import Remote, asks_a_receiver
from receiver.jobs.job import is_ending
from receiver.openconnectors.notifications import parse
from receiver.openconnectors.shapes import MEDIA_TYPES

UPLOAD_SECONDS = 600
PAUSE_SECONDS = 1.0


def _not_empty(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not value.strip("/ "):
        raise click.BadParameter("is empty")
    return value


_TYPES: dict[str, str] = {f".{name}": media_type for name, media_type in MEDIA_TYPES.items()}
_object_option = click.option(
    "--object", "object_name", required=True, callback=_not_empty, help="E.g. contact."
)
_hub_option = click.option("--hub", help="The vendor's hub; else a path without one.")


@click.command()
@click.option("--instance", required=True, help="Name of the connector instance.")
@_hub_option
@as_json
@asks_a_receiver
def objects(remote: Remote, instance: str, hub: str | None, json_: bool) -> None:
    """List the objects that can be uploaded for an instance."""
    names = remote.vendor("GET", f"{_hub(hub)}/objects", instance).json()
    show(names, "\n".join(map(plain, names)), json_)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@_object_option
@click.option("--instance", required=True, help="Name of the connector instance.")
@_hub_option
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
    """Upload a file as a bulk job; with --wait, exit as `receiver job` does.

    FILE may be `-`, which reads standard input.
    """
    file = "/dev/stdin" if file == "-" else file
    name = os.fsencode(Path(file).name).decode("utf-8", "replace")
    media_type = _TYPES.get(Path(name).suffix.lower(), MEDIA_TYPES["csv"])
    with _seekable(Path(file)) as (content, size), _progress(f"uploading {name}", size) as tell:
        answer = remote.vendor(
            "POST",
            f"{_hub(hub)}/bulk/{quote(object_name, safe='')}",
            instance,
            params={"path": f"/{name}"},
            files={"file": (name, _Watched(content, tell), media_type)},
            timeout=UPLOAD_SECONDS,
        )
    job_id = _created(answer.content, instance)
    resume = ["receiver", "job", job_id, "--instance", instance, "--wait", str(wait or 600)]
    if not wait:
        show(answer.json(), f"wait for it with: {shlex.join(resume)}", json_)
        return
    job = _watch(remote, job_id, instance, wait)
    show(job, describe(job), json_)
    leave(job, wait)


@click.command()
@_object_option
@click.option("--instance", required=True, help="Name of the connector instance.")
@_hub_option
@click.option("--query", help="What to fetch, as `select … from …`; else all records.")
@click.option("--where", help="Which records, in the vendor's words; not with --query.")
@click.option(
    "--format", "format_", type=click.Choice(list(MEDIA_TYPES)), help="Format of the file."
)
@click.option("--wait", type=click.IntRange(0), default=600, show_default=True, help="Seconds.")
@click.option("--job", "job_id", help="Resume: fetch the file of this job instead of a new one.")
@click.option("--output", required=True, type=click.Path(dir_okay=False), help="`-`: to stdout.")
@as_json
@asks_a_receiver
def download(
    remote: Remote,
    object_name: str,
    instance: str,
    hub: str | None,
    query: str | None,
    where: str | None,
    format_: str | None,
    wait: int,
    job_id: str | None,
    output: str,
    json_: bool,
) -> None:
    """Have a bulk download made, wait for it, and save its file; exit as `receiver job` does."""
    if query and where:
        raise click.UsageError("--where goes without --query, which has one of its own")
    if job_id is None:
        path, request = _order(object_name, query, where, format_)
        answer = remote.vendor("POST", f"{_hub(hub)}{path}", instance, **request, timeout=60)
        job_id = _created(answer.content, instance)
    resume = ["receiver", "download", "--job", job_id, "--object", object_name]
    resume += ["--instance", instance, "--output", output]
    job = _watch(remote, job_id, instance, wait)
    code = of_outcome(job["outcome"])
    if code == STILL_RUNNING:
        click.echo(f"still in progress; resume with: {shlex.join(resume)}", err=True)
    elif job["outcome"] in ("succeeded", "partial"):
        try:
            _fetch(remote, job_id, instance, output)
        except Failure as error:
            advice = f"{error.message}; resume with: {shlex.join(resume)}"
            raise Failure(error.exit_code, error.code, advice) from None
    if output != "-":
        show(job, describe(job), json_)
    sys.exit(code)


def _order(
    object_name: str, query: str | None, where: str | None, format_: str | None
) -> tuple[str, dict[str, Any]]:
    if query:
        named = {"fileFormat": format_} if format_ else {}
        return "/bulk/query", {"params": {"q": query, **named}}
    # The vendor's word for CSV is its own.
    words = {**_TYPES, ".csv": "txt/csv"}
    facts = {"objectName": object_name, "where": where, "format": words.get(f".{format_}")}
    order = {name: value for name, value in facts.items() if value is not None}
    return "/bulk/download", {"json": order}


def _fetch(remote: Remote, job_id: str, instance: str, output: str) -> None:
    path = f"/jobs/{quote(job_id, safe='')}/result"
    if output == "-":
        remote.save(path, sys.stdout.buffer, lambda _: None, instance=instance)
        return
    target = Path(output)
    # A device, a pipe or a link is never replaced.
    is_special = target.is_symlink() or (target.exists() and not target.is_file())
    unfinished = target if is_special else Path(f"{output}.part")
    try:
        with unfinished.open("wb") as file, _progress(f"saving {output}", None) as tell:
            remote.save(path, file, tell, instance=instance)
        unfinished.replace(target)
    except OSError as error:
        raise Failure(USAGE, "cannot_write", f"{output}: {error.strerror}") from None
    finally:
        if not is_special:
            unfinished.unlink(missing_ok=True)


def _created(answer: bytes, instance: str) -> str:
    """Return the id of the job that the vendor created, in whatever shape it says so."""
    notification = parse(answer)
    if notification.kind != "bulk_job" or notification.job is None:
        raise Failure(
            UNREACHABLE,
            "no_job",
            "the vendor's answer names no job; it may have been created: look at its job list"
            f" before you send again ({plain(answer[:200].decode('utf-8', 'replace'))})",
        )
    click.echo(f"job {notification.job} of {instance}: {plain(notification.status)}", err=True)
    return notification.job


@contextmanager
def _seekable(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file whose size is known; of a pipe, a copy."""
    with path.open("rb") as content:
        if path.is_file():
            yield content, path.stat().st_size
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(content, copy)
            size = copy.tell()
            copy.seek(0)
            yield copy, size


@contextmanager
def _progress(label: str, size: int | None) -> Iterator[Callable[[int], None]]:
    """Show how many bytes went through, on a terminal."""
    if size is None:
        yield lambda _: None
        return
    bar: Any = click.progressbar(length=size, label=plain(label), file=sys.stderr)
    with bar as shown:
        yield shown.update


class _Watched:
    """A file that reports how far it was read; the rest is the file's own."""

    def __init__(self, file: IO[bytes], on_progress: Callable[[int], None]) -> None:
        self._file, self._on_progress = file, on_progress

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._on_progress(len(piece))
        return piece

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def _watch(remote: Remote, job_id: str, instance: str, seconds: int) -> dict[str, Any]:
    """Tell the job's statuses as they change, until it has ended or the seconds are over.

    A receiver that cannot be reached is asked again while there is time: it may be restarting.
    """
    deadline, last = time.monotonic() + seconds, None
    while True:
        left = deadline - time.monotonic()
        try:
            job = wait_for(remote, job_id, instance, 0)
        except Failure as error:
            if error.exit_code != UNREACHABLE or left <= 0:
                raise
            time.sleep(min(PAUSE_SECONDS, left))
            continue
        if job["status"] != last:
            last = job["status"]
            click.echo(f"{job['updated_at']}  {plain(last)}", err=True)
        if is_ending(last) or left <= 0:
            return job
        time.sleep(min(PAUSE_SECONDS, left))


def _hub(hub: str | None) -> str:
    return f"/hubs/{quote(hub, safe='')}" if hub else ""


COMMANDS = (objects, submit, download)
