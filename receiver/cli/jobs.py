"""Commands that ask a running receiver: jobs, job, events, rejections, submissions."""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args
from urllib.parse import quote

import click
from msgspec import to_builtins
from msgspec.structs import asdict

from receiver.cli.failed_rows import describe_errors, write_failed_rows
from receiver.cli.output import (
    STILL_RUNNING,
    USAGE,
    Failure,
    as_json,
    count,
    of_outcome,
    plain,
    show,
    table,
)
from receiver.cli.remote import asks_a_receiver
from receiver.client import Client, ClientError, Job, NoSuchJob, NotFound
from receiver.client.flows import Parameter
from receiver.errors import SignatureError
from receiver.jobs.job import Outcome
from receiver.openconnectors.notifications import Kind

T = TypeVar("T")

FETCH_SECONDS = 15  # for which a receiver may be fetching errors of a job that has just ended

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
def jobs(client: Client, json_: bool, **filters: Parameter) -> None:
    """List jobs, newest change first."""
    page = client.jobs(**filters)
    rows = [{**asdict(job), **asdict(job.records)} for job in page.jobs]
    columns = ("id", "instance", "status", "outcome", "loaded", "failed", "submitted", "updated_at")
    _show_page(to_builtins(page), table(rows, columns), json_)


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
    client: Client,
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
    if not job_id:
        raise click.UsageError("the job's id is empty")
    if close:
        record = client.close_job(job_id, instance=instance)
        show(to_builtins(record), describe(record), json_)
        return
    record = client.wait(
        job_id, instance=instance, timeout=wait, on_trouble=partial(_go_on, job_id)
    )
    content, text = to_builtins(record), describe(record)
    if timeline:
        path = f"/jobs/{quote(job_id, safe='')}/events"
        entries = client.page(path, "timeline", instance=record.instance)["timeline"]
        content["timeline"] = entries
        text += "\n\n" + table(entries, ("at", "source", "status", "changed", "note"))
    if errors or failed_rows:
        failures = client.errors(record, wait=min(wait, FETCH_SECONDS))
        content |= {"errors": failures.errors, "groups": to_builtins(failures.groups)}
        text += "\n\n" + describe_errors(failures)
        if failed_rows:
            source, written = upload or Path(record.file or "").name, 0
            if failures.errors:
                rows = failures.errors, source, failed_rows, record.records.submitted
                written = write_failed_rows(*rows)
            content["failed_rows"] = written
            done = f"{count(written, 'row')} written to {failed_rows}"
            text += f"\n\n{done if written else f'{failed_rows} is not written'}"
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
@click.option("--body", metavar="TEXT", help="Only with this in the body.")
@click.option("--header", metavar="TEXT", help="Only with this in a header or in its name.")
@click.option("--file", metavar="TEXT", help="Only of jobs with this in the file's name.")
@click.option("--received-after", metavar="TIME", help="E.g. 2026-01-31T00:00Z.")
@click.option("--received-before", metavar="TIME", help="As above.")
@_paged
def events(client: Client, json_: bool, **filters: Parameter) -> None:
    """List verified callbacks, newest first.

    Texts are searched for within 7 days, unless --job or --received-after is given.
    """
    page = client.page("/events", "events", **filters)
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
    client: Client,
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
        done = client.post("/rejections/verify-again", dict[str, int], instance=instance)
        if not done["looked"]:
            client.instances(instance)
        show(done, f"{done['verified']} of {done['looked']} are verified and stored", json_)
        return
    page = client.page("/rejections", "rejections", instance=instance, **filters)
    columns = ("id", "at", "instance", "reason", "peer", "size", "diagnosis")
    reasons = ", ".join(f"{number} {plain(name)}" for name, number in page["last_hour"].items())
    text = f"{table(page['rejections'], columns)}\nin the last hour: {reasons or 'none'}"
    _show_page(page, text, json_)


@click.command()
@_instances
@click.option(
    "--dismiss", metavar="ID", help="Look no longer for the job of this one: there is none."
)
@as_json
@asks_a_receiver
def submissions(
    client: Client, instance: tuple[str, ...], dismiss: str | None, json_: bool
) -> None:
    """List uploads and downloads that were cut off while they were sent: the job may exist.

    `receiver reconcile` links each to its job once that is in the vendor's job list.
    """
    if dismiss is not None:
        path = f"/submissions/{quote(dismiss, safe='')}/dismiss"
        try:
            done = client.post(path, dict[str, Any])
        except NotFound:
            text = f"no open submission {plain(dismiss)}"
            raise Failure(USAGE, "not_found", text) from None
        show(done, f"{plain(done['id'])} dismissed", json_)
        return
    listed = client.page("/submissions", "submissions", instance=instance)
    columns = ("id", "at", "instance", "object", "file", "submitted", "submitted_by")
    show(listed, table(listed["submissions"], columns), json_)


def _go_on(job_id: str, error: ClientError) -> None:
    """Print why a wait goes on though the job cannot be read."""
    missing = f"no job {job_id} yet" if isinstance(error, NoSuchJob) else str(error)
    click.echo(f"{plain(missing)}; waiting", err=True)


def leave(job: Job, waited: int) -> NoReturn:
    """Exit as the outcome says; where the wait was over, say how to go on waiting."""
    code = of_outcome(job.outcome)
    if code == STILL_RUNNING and waited:
        again = ["receiver", "job", job.id, "--instance", job.instance, "--wait", str(waited)]
        click.echo(f"still in progress; go on waiting with: {shlex.join(again)}", err=True)
    sys.exit(code)


def describe(job: Job) -> str:
    """Describe a job in a few lines."""
    records = ", ".join(f"{plain(number)} {name}" for name, number in asdict(job.records).items())
    lines = [
        f"job {plain(job.id)} of {job.instance}: {job.outcome} ({plain(job.status)})",
        f"  records          {records}",
    ]
    lines += [
        f"  {name.replace('_', ' '):<16} {plain(getattr(job, name))}"
        for name in ("object", "direction", "file", "message", "learnt_by", "ended_at")
        if getattr(job, name) is not None
    ]
    if job.files_expire_at:
        lines.append(f"  fetch files by   {job.files_expire_at} (assumed)")
    if job.conflict:
        lines.append("  conflict         two different endings were reported")
    return "\n".join(lines)


def _show_page(page: dict[str, Any], text: str, json_: bool) -> None:
    more = f"\nmore: --cursor {page['next']}" if page["next"] else ""
    show(page, text + more, json_)


COMMANDS = (jobs, job, events, rejections, submissions)
