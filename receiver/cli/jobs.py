"""Commands that ask a running receiver: jobs, job, events, rejections, submissions."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args
from urllib.parse import quote

import click
import httpx

from receiver.cli.failed_rows import describe_errors, known_errors, write_failed_rows
from receiver.cli.output import (
    STILL_RUNNING,
    UNREACHABLE,
    USAGE,
    Failure,
    as_json,
    count,
    of_outcome,
    plain,
    show,
    table,
)
from receiver.cli.remote import Parameter, Remote, asks_a_receiver, checked
from receiver.errors import SignatureError
from receiver.jobs.job import UNDER_WAY, Outcome
from receiver.openconnectors.notifications import Kind

T = TypeVar("T")

MAX_WAIT_SECONDS = 60  # the API holds an answer no longer
PAUSE_SECONDS = 1.0  # where the receiver has no place left to wait at

_instances = click.option("--instance", multiple=True, help="Only of this instance; repeatable.")


def _paged(command: Callable[..., T]) -> Callable[..., T]:
    """Add the options that every list has."""
    limit = click.option(
        "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many."
    )
    cursor = click.option("--cursor", help="`next` of the page before.")
    return limit(cursor(as_json(asks_a_receiver(command))))


@click.command()
@_instances
@click.option("--status", multiple=True, help="Only of this status, as the vendor writes it.")
@click.option(
    "--outcome",
    multiple=True,
    type=click.Choice(get_args(Outcome)),
    help="Only of this outcome; repeatable.",
)
@click.option("--object", multiple=True, help="Only of this object, e.g. contact; repeatable.")
@_paged
def jobs(remote: Remote, json_: bool, **filters: Parameter) -> None:
    """List jobs, newest change first."""
    page = remote.page("/jobs", "jobs", **filters)
    rows = [{**job, **_records(job)} for job in page["jobs"]]
    columns = ("id", "instance", "status", "outcome", "loaded", "failed", "submitted", "updated_at")
    _show_page(page, table(rows, columns), json_)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--instance", help="Needed where several instances have a job of that id.")
@click.option(
    "--wait", type=click.IntRange(0), default=0, help="Seconds to wait until it has ended."
)
@click.option("--timeline", is_flag=True, help="Show what each callback and poll changed.")
@click.option("--errors", is_flag=True, help="Show which records failed and why.")
@click.option(
    "--failed-rows", type=click.Path(dir_okay=False), help="Write those rows to this file."
)
@click.option(
    "--upload",
    type=click.Path(exists=True, dir_okay=False),
    help="The file that was uploaded, for --failed-rows; else the one of its name, in this folder.",
)
@click.option(
    "--close",
    is_flag=True,
    help="Give the job up: it is `lost` until the vendor reports it.",
)
@as_json
@asks_a_receiver
def job(
    remote: Remote,
    job_id: str,
    instance: str | None,
    wait: int,
    timeline: bool,
    errors: bool,
    failed_rows: str | None,
    upload: str | None,
    close: bool,
    json_: bool,
) -> None:
    """Show what became of a job.

    Exit codes: 0 succeeded, 1 failed or cancelled, 3 ended with failed records, 4 still running;
    2 no such job, 5 no valid token, 6 no answer. With --close, 0 once it is closed.
    """
    if close:
        record = _close(remote, job_id, instance)
        show(record, describe(record), json_)
        return
    record = wait_for(remote, job_id, instance, wait)
    content, text = dict(record), describe(record)
    if timeline:
        path = f"/jobs/{_quoted(job_id)}/events"
        entries = remote.page(path, "timeline", instance=record["instance"])["timeline"]
        content["timeline"] = entries
        text += "\n\n" + table(entries, ("at", "source", "status", "changed", "note"))
    if errors or failed_rows:
        failures = known_errors(remote, record, wait)
        content |= failures
        text += "\n\n" + describe_errors(failures)
        if failed_rows:
            errors_, source = failures["errors"], upload or Path(record["file"] or "").name
            written = write_failed_rows(errors_, source, failed_rows) if errors_ else 0
            content["failed_rows"] = written
            done = f"{count(written, 'row')} written to {failed_rows}"
            text += f"\n\n{done if errors_ else f'{failed_rows} is not written'}"
    show(content, text, json_)
    leave(record, wait)


@click.command()
@_instances
@click.option(
    "--kind",
    multiple=True,
    type=click.Choice(get_args(Kind)),
    help="Only of this kind; repeatable.",
)
@click.option("--job", multiple=True, help="Only of the job with this id; repeatable.")
@_paged
def events(remote: Remote, json_: bool, **filters: Parameter) -> None:
    """List verified callbacks, newest first."""
    page = remote.page("/events", "events", **filters)
    columns = ("id", "instance", "kind", "job", "received_at", "deliveries", "key", "size")
    _show_page(page, table(page["events"], columns), json_)


@click.command()
@_instances
@click.option(
    "--reason",
    multiple=True,
    type=click.Choice([error.reason for error in SignatureError.__subclasses__()]),
    help="Only rejected for this; repeatable.",
)
@click.option(
    "--verify-again", is_flag=True, help="Have them verified with the keys there are now."
)
@_paged
def rejections(
    remote: Remote,
    json_: bool,
    verify_again: bool,
    instance: tuple[str, ...],
    **filters: Parameter,
) -> None:
    """List deliveries that were rejected for their signature, newest first.

    With --verify-again, those whose signature is right by now are stored as events; the others
    stay.
    """
    if verify_again:
        if filters["reason"] or filters["cursor"]:
            raise click.UsageError("--verify-again goes with --instance alone")
        done = checked(remote.post("/rejections/verify-again", instance=instance), "verified")
        if not done["looked"]:
            remote.require_instances(instance)
        show(done, f"{done['verified']} of {done['looked']} are verified and stored", json_)
        return
    page = remote.page("/rejections", "rejections", instance=instance, **filters)
    columns = ("id", "at", "instance", "reason", "peer", "size", "diagnosis")
    _show_page(page, table(page["rejections"], columns), json_)


@click.command()
@_instances
@click.option(
    "--dismiss", metavar="ID", help="Look no longer for the job of this one: there is none."
)
@as_json
@asks_a_receiver
def submissions(
    remote: Remote, instance: tuple[str, ...], dismiss: str | None, json_: bool
) -> None:
    """List uploads and downloads that were cut off while they were sent: the job may exist.

    `receiver reconcile` links each to its job once that is in the vendor's job list.
    """
    if dismiss is not None:
        answer = remote.post(f"/submissions/{_quoted(dismiss)}/dismiss")
        if answer.status_code == 404:
            raise Failure(USAGE, "not_found", f"no open submission {plain(dismiss)}")
        done = checked(answer, "id")
        show(done, f"{plain(done['id'])} dismissed", json_)
        return
    listed = remote.page("/submissions", "submissions", instance=instance)
    columns = ("id", "at", "instance", "object", "file", "submitted", "submitted_by")
    show(listed, table(listed["submissions"], columns), json_)


def wait_for(remote: Remote, job_id: str, instance: str | None, seconds: float) -> dict[str, Any]:
    """Ask for a job until it has ended, or until the seconds are over.

    A receiver that cannot be reached is asked again while there is time: it may be restarting.
    Raises Failure if there is no such job by then.
    """
    if not job_id:
        raise click.UsageError("the job's id is empty")
    deadline = time.monotonic() + seconds
    hold, said, is_first = 0, "", True  # the first answer comes at once: a wait for nothing shows
    while True:
        began = time.monotonic()
        failure: Failure | None = None
        try:
            job = _ask(remote, job_id, instance, hold)
            if job["outcome"] not in UNDER_WAY:
                return job
        except Failure as error:
            if error.exit_code != UNREACHABLE and error.code != "not_found":
                raise
            failure = error
        left = deadline - time.monotonic()
        if left <= 0:
            if failure is not None:
                raise failure
            return job
        if failure is not None and failure.code != said:
            said = failure.code
            missing = f"no job {job_id} yet" if said == "not_found" else failure.message
            click.echo(f"{plain(missing)}; waiting", err=True)
        if not is_first or (failure is not None and failure.exit_code == UNREACHABLE):
            time.sleep(max(0, min(PAUSE_SECONDS - (time.monotonic() - began), left)))
        hold, is_first = min(MAX_WAIT_SECONDS, max(0, int(deadline - time.monotonic()))), False


def _close(remote: Remote, job_id: str, instance: str | None) -> dict[str, Any]:
    answer = remote.post(f"/jobs/{_quoted(job_id)}/close", instance=instance)
    return _job(remote, answer, job_id, instance)


def _ask(remote: Remote, job_id: str, instance: str | None, hold: int) -> dict[str, Any]:
    path = f"/jobs/{_quoted(job_id)}"
    answer = remote.get(path, hold=hold, instance=instance, wait=hold)
    return _job(remote, answer, job_id, instance)


def _job(
    remote: Remote, answer: httpx.Response, job_id: str, instance: str | None
) -> dict[str, Any]:
    if answer.status_code == 404:
        place = ""
        if instance is not None:
            remote.require_instances([instance])
            place = f" of {instance}"
        text = f"there is no job {job_id}{place}: `receiver jobs` lists them"
        raise Failure(USAGE, "not_found", plain(text))
    return checked(answer, "id", "instance", "status", "outcome", "records")


def leave(job: dict[str, Any], waited: int) -> NoReturn:
    """Exit as the outcome says; where the wait was over, say how to go on waiting."""
    code = of_outcome(job["outcome"])
    if code == STILL_RUNNING and waited:
        again = ["receiver", "job", job["id"], "--instance", job["instance"], "--wait", str(waited)]
        click.echo(f"still in progress; go on waiting with: {shlex.join(again)}", err=True)
    sys.exit(code)


def describe(job: dict[str, Any]) -> str:
    """Describe a job in a few lines."""
    records = ", ".join(f"{plain(number)} {name}" for name, number in job["records"].items())
    lines = [
        f"job {plain(job['id'])} of {job['instance']}: {job['outcome']} ({plain(job['status'])})",
        f"  records          {records}",
    ]
    lines += [
        f"  {name.replace('_', ' '):<16} {plain(job[name])}"
        for name in ("object", "direction", "file", "message", "learnt_by", "ended_at")
        if job[name] is not None
    ]
    if job["files_expire_at"]:
        lines.append(f"  fetch files by   {job['files_expire_at']} (assumed)")
    if job["conflict"]:
        lines.append("  conflict         two different endings were reported")
    return "\n".join(lines)


def _records(job: dict[str, Any]) -> dict[str, Any]:
    counts: dict[str, Any] = job["records"]
    return counts


def _quoted(job_id: str) -> str:
    return quote(job_id, safe="")


def _show_page(page: dict[str, Any], text: str, json_: bool) -> None:
    more = f"\nmore: --cursor {page['next']}" if page["next"] else ""
    show(page, text + more, json_)


COMMANDS = (jobs, job, events, rejections, submissions)
