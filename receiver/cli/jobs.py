"""Commands that ask a running receiver for what it has, and `listen`, for what comes."""

import re
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import httpx
from msgspec import to_builtins
from msgspec.structs import asdict

from receiver.callbacks.diagnosis import Reason
from receiver.cli.options import (
    Command,
    json_option,
    limit_option,
    not_empty,
    only,
    pass_client,
    reads,
    wait_option,
)
from receiver.cli.output import (
    Exit,
    Failure,
    count,
    describe,
    exit_with_outcome,
    plain,
    show,
    table,
)
from receiver.cli.submit import list_retries, write_failed_rows
from receiver.client import Callback, Client, ClientError, ErrorPage, Missed, NoSuchJob, NotFound
from receiver.client.flows import Parameter, quoted
from receiver.jobs.job import Outcome
from receiver.jobs.record_errors import row_of
from receiver.lib.http_client import failure_reason, make_client
from receiver.openconnectors.notifications import Kind

FETCH_SECONDS = 15  # for which a receiver may be fetching errors of a job that has just ended

CONNECT_SECONDS = 10  # to the program that `listen` passes callbacks on to
ANSWER_SECONDS = 300  # whoever debugs the program needs time
MAX_PAUSE_SECONDS = 8.0
MASKED = "[masked]"  # what the receiver stores of a header that may be a secret
# Of one connection, not of the callback.
_LEFT_OUT = re.compile(
    "(host|connection|content-length|transfer-encoding|keep-alive|expect|te|trailer|upgrade|proxy-.*)"
)

_instances = only("of this instance", "--instance")


def _paged(command: Command) -> Command:
    """Add the options that every list has."""
    cursor = click.option("--cursor", help="`next` of the page before.")
    return limit_option(cursor(json_option(pass_client(command))))


@click.command()
@_instances
@only("of this status, as the vendor writes it", "--status")
@only("of this outcome", "--outcome", choices=get_args(Outcome))
@only("of this object, e.g. contact", "--object")
@click.option("--file", metavar="TEXT", help="Only with this in the file's name.")
@click.option("--updated-after", metavar="TIME", help="E.g. 2026-01-31T00:00Z.")
@_paged
def jobs(client: Client, json_: bool, **filters: Parameter) -> None:
    """List jobs, newest change first."""
    page = client.jobs(**filters)
    rows = [{**asdict(job), **asdict(job.records)} for job in page.jobs]
    columns = ("id", "instance", "status", "outcome", "loaded", "failed", "submitted", "updated_at")
    _show_page(to_builtins(page), table(rows, columns), json_)


@click.command()
@click.argument("job_id", metavar="ID", callback=reads(not_empty))
@click.option("--instance", help="Needed where several instances have a job of that id.")
@wait_option
@click.option("--timeline", is_flag=True, help="Show what each callback and poll changed.")
@click.option("--errors", is_flag=True, help="Show which records failed and why.")
@click.option(
    "--failed-rows",
    type=click.Path(dir_okay=False),
    callback=reads(not_empty),
    help="Write those rows to this file.",
)
@click.option("--force", is_flag=True, help="Let --failed-rows replace a file that is not empty.")
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
@json_option
@pass_client
def job(
    client: Client,
    job_id: str,
    instance: str | None,
    wait: int,
    timeline: bool,
    errors: bool,
    failed_rows: str | None,
    force: bool,
    upload: str | None,
    close: bool,
    json_: bool,
) -> None:
    """Show what became of a job.

    Exit codes: 0 succeeded, 1 failed or cancelled, 3 ended with failed records, 4 still running;
    2 no such job, 5 no valid token, 6 no answer. With --close, 0 once it is closed.
    """
    if failed_rows and not force and (file := Path(failed_rows)).is_file() and file.stat().st_size:
        message = f"--failed-rows {failed_rows}: the file is there already; --force replaces it"
        raise Failure(Exit.USAGE, "file_exists", message)
    if close:
        record = client.close_job(job_id, instance=instance)
        show(to_builtins(record), describe(record), json_)
        return
    record = client.wait(
        job_id, instance=instance, timeout=wait, on_trouble=partial(_report_trouble, job_id)
    )
    content, text = to_builtins(record), describe(record)
    if timeline:
        path = f"/jobs/{quoted(job_id)}/events"
        entries = client.page(path, "timeline", instance=record.instance)["timeline"]
        content["timeline"] = entries
        text += "\n\n" + table(entries, ("at", "source", "status", "changed", "note"))
    if errors or failed_rows:
        failures = client.errors(record, wait=min(wait, FETCH_SECONDS))
        content |= {"errors": failures.errors, "groups": to_builtins(failures.groups)}
        none = record.records.failed == 0 and not failures.groups
        text += "\n\n" + ("no record failed" if none else describe_errors(failures))
        with suppress(ClientError):  # among very many jobs the search may take too long
            content["retries"] = [retry.id for retry in list_retries(client, record)]
            text += "".join(f"\nsent again as job {plain(id_)}" for id_ in content["retries"])
        if failed_rows:
            source, written = upload or Path(record.file or "").name, 0
            if failures.errors:
                rows = failures.errors, source, failed_rows, record.records.submitted
                written = write_failed_rows(*rows)
            content["failed_rows"] = written
            done = f"{count(written, 'row')} written to {failed_rows}"
            text += f"\n\n{done if written else f'{failed_rows} is not written'}"
    show(content, text, json_)
    exit_with_outcome(record, wait)


@click.command()
@_instances
@only("of this kind", "--kind", choices=get_args(Kind))
@only("of the job with this id", "--job")
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
@only("rejected for this", "--reason", choices=get_args(Reason))
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
@json_option
@pass_client
def submissions(
    client: Client, instance: tuple[str, ...], dismiss: str | None, json_: bool
) -> None:
    """List uploads and downloads that were cut off while they were sent: the job may exist.

    `receiver reconcile` links each to its job once that is in the vendor's job list.
    """
    if dismiss is not None:
        path = f"/submissions/{quoted(dismiss)}/dismiss"
        try:
            done = client.post(path, dict[str, Any])
        except NotFound:
            text = f"no open submission {plain(dismiss)}"
            raise Failure(Exit.USAGE, "not_found", text) from None
        show(done, f"{plain(done['id'])} dismissed", json_)
        return
    listed = client.page("/submissions", "submissions", instance=instance)
    columns = ("id", "at", "instance", "object", "file", "submitted", "submitted_by")
    show(listed, table(listed["submissions"], columns), json_)


def _report_trouble(job_id: str, error: ClientError) -> None:
    """Print why a wait goes on though the job cannot be read."""
    missing = f"no job {job_id} yet" if isinstance(error, NoSuchJob) else str(error)
    click.echo(f"{plain(missing)}; waiting", err=True)


def _show_page(page: dict[str, Any], text: str, json_: bool) -> None:
    more = f"\nmore: --cursor {page['next']}" if page["next"] else ""
    show(page, text + more, json_)


def describe_errors(failures: ErrorPage) -> str:
    """Describe why records failed, most frequent cause first."""
    if not failures.groups:
        return "no failed records are known: there are none, or not yet, or they were erased"
    lines = []
    for group in failures.groups:
        rows = [row_of(example) for example in group.examples]
        named = ", ".join(str(row) for row in rows if row is not None)
        example = f" (row {named}{', …' if group.count > len(rows) else ''})" if named else ""
        lines.append(f"{group.count:>7}  {plain(group.message)}{example}")
    return "failed records by cause\n" + "\n".join(lines)


def _local_url(text: str) -> str:
    if "@" in text:  # every user of a machine can see it
        raise ValueError("must have no user name and no password")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text}: must be a URL like http://localhost:3000/hook")
    return text


def _event_id(text: str) -> str:
    if not re.fullmatch("[0-7][0-9a-f]{15}", text):
        raise ValueError(f"{text}: must be the id of an event: `receiver events` lists it")
    return text


@click.command()
@click.option(
    "--forward-to", metavar="URL", callback=reads(_local_url), help="POST each there, as it came."
)
@_instances
@click.option(
    "--after",
    metavar="ID",
    callback=reads(_event_id),
    help="Start after this event; by default, with the next one.",
)
@pass_client
def listen(
    client: Client,
    forward_to: str | None,
    instance: tuple[str, ...],
    after: str | None,
) -> None:
    """Show callbacks as they come; with --forward-to, pass them on to a program of yours.

    Headers and bytes are as they came, so that the program can verify the signature. One at a time,
    in order; while the program or the receiver is away, it is tried again, and nothing is left out.
    """
    client.instances(instance)
    timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    with make_client(lambda: httpx.Client(timeout=timeout, trust_env=False)) as local:
        for event in client.events(
            instance=instance,
            after=after,
            on_begin=lambda: click.echo("listening; Ctrl-C ends it", err=True),
            on_trouble=lambda error: click.echo(f"{plain(error)}; connecting again", err=True),
        ):
            if isinstance(event, Missed):
                about = f" (event {event.event}, job {event.job})" if event.event else ""
                click.echo(f"missed: {plain(event.detail + about)}", err=True)
                continue
            facts = [event.received_at, event.id, event.instance, event.job, event.kind]
            if forward_to:
                facts.append(_forward(local, forward_to, event))
            click.echo("  ".join(map(plain, facts)))


def _forward(local: httpx.Client, url: str, event: Callback) -> str:
    """POST a callback until it is answered; return the status and how long that took."""
    headers = [
        (name.encode(), value.strip(" \t").encode("latin-1"))
        for name, value in (event.headers or {}).items()
        if not _LEFT_OUT.fullmatch(name) and value != MASKED
    ]
    pause = 0.25
    while True:
        began = time.monotonic()
        try:
            with local.stream("POST", url, content=event.body, headers=headers) as answer:
                return f"{answer.status_code} in {(time.monotonic() - began) * 1000:.0f} ms"
        except httpx.LocalProtocolError:  # another server had let it in
            return "not sent: one of its headers is not valid HTTP"
        except httpx.TransportError as error:
            if pause < 0.5:
                click.echo(f"no answer from {url}: {failure_reason(error)}; trying again", err=True)
        time.sleep(pause)
        pause = min(pause * 2, MAX_PAUSE_SECONDS)
