"""Commands that ask a running receiver: jobs, job, events, rejections."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import click

from receiver.cli.exits import STILL_RUNNING, UNREACHABLE, USAGE, Failure, of_outcome
from receiver.cli.failed_rows import describe_errors, known_errors, write_failed_rows
from receiver.cli.output import as_json, plain, show, table
from receiver.cli.remote import Remote, asks_a_receiver, checked
from receiver.jobs.job import is_ending

LONGEST_WAIT_SECONDS = 60  # the API holds an answer no longer
PAUSE_SECONDS = 1.0  # where the receiver has no place left to wait at


@click.command()
@click.option("--instance", multiple=True)
@click.option("--status", multiple=True, help="The vendor's word, as it came.")
@click.option("--outcome", multiple=True)
@click.option("--object", multiple=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="`next` of the page before.")
@as_json
@asks_a_receiver
def jobs(remote: Remote, json_: bool, **filters: Any) -> None:  # noqa: ANN401
    """List jobs, newest change first."""
    page = remote.page("/jobs", "jobs", **filters)
    rows = [{**job, **_records(job)} for job in page["jobs"]]
    columns = ("id", "instance", "status", "outcome", "loaded", "failed", "submitted", "updated_at")
    _show_page(page, table(rows, columns), json_)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--instance", help="Needed where several instances have a job of that id.")
@click.option("--wait", type=click.IntRange(0), default=0, help="Seconds to wait for its end.")
@click.option("--timeline", is_flag=True, help="Tell what each callback and poll changed.")
@click.option("--errors", is_flag=True, help="Tell which records failed and why.")
@click.option(
    "--failed-rows", type=click.Path(dir_okay=False), help="Write those rows to this CSV."
)
@click.option(
    "--upload",
    type=click.Path(exists=True, dir_okay=False),
    help="The file that was uploaded, for --failed-rows; else the one of its name, in this folder.",
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
    json_: bool,
) -> None:
    """Tell what became of a job.

    Exit codes: 0 succeeded, 1 failed or cancelled, 3 ended with failed records, 4 still running;
    2 no such job, 5 no valid token, 6 no answer.
    """
    found = wait_for(remote, job_id, instance, wait)
    content, text = dict(found), describe(found)
    if timeline:
        path = f"/jobs/{_quoted(job_id)}/events"
        entries = remote.page(path, "timeline", instance=found["instance"])["timeline"]
        content["timeline"] = entries
        text += "\n\n" + table(entries, ("at", "source", "status", "changed", "note"))
    if errors or failed_rows:
        failures = known_errors(remote, found, wait)
        content |= failures
        text += "\n\n" + describe_errors(failures)
        if failed_rows:
            known, source = failures["errors"], upload or Path(found["file"] or "").name
            count = write_failed_rows(known, source, failed_rows) if known else 0
            content["failed_rows"] = count
            told = f"{count} rows written to {failed_rows}"
            text += f"\n\n{told if known else f'{failed_rows} is not written'}"
    show(content, text, json_)
    leave(found, wait)


@click.command()
@click.option("--instance", multiple=True)
@click.option("--kind", multiple=True)
@click.option("--job", multiple=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="`next` of the page before.")
@as_json
@asks_a_receiver
def events(remote: Remote, json_: bool, **filters: Any) -> None:  # noqa: ANN401
    """List verified callbacks, newest first."""
    page = remote.page("/events", "events", **filters)
    columns = ("id", "instance", "kind", "job", "received_at", "deliveries", "key", "size")
    _show_page(page, table(page["events"], columns), json_)


@click.command()
@click.option("--instance", multiple=True)
@click.option("--reason", multiple=True)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="`next` of the page before.")
@click.option(
    "--verify-again", is_flag=True, help="Have them verified with the keys there are now."
)
@as_json
@asks_a_receiver
def rejections(remote: Remote, json_: bool, verify_again: bool, **filters: Any) -> None:  # noqa: ANN401
    """List deliveries that were refused for their signature, newest first.

    With --verify-again, those whose signature is right by now enter as events; the others stay.
    """
    if verify_again:
        if filters["reason"] or filters["cursor"]:
            raise click.UsageError("--verify-again goes with --instance alone")
        done = checked(
            remote.post("/rejections/verify-again", instance=filters["instance"]), "verified"
        )
        show(done, f"{done['verified']} of {done['looked']} are verified and entered", json_)
        return
    page = remote.page("/rejections", "rejections", **filters)
    columns = ("id", "at", "instance", "reason", "peer", "size")
    _show_page(page, table(page["rejections"], columns), json_)


def wait_for(remote: Remote, job_id: str, instance: str | None, seconds: float) -> dict[str, Any]:
    """Ask for a job until it has ended, or until the seconds are over.

    A receiver that cannot be reached is asked again while there is time: it may be restarting.
    Raises Failure if nobody knows the job by then.
    """
    if not job_id:
        raise click.UsageError("a job's id is not empty")
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        left = max(0, deadline - asked)
        failure: Failure | None = None
        try:
            job = _ask(remote, job_id, instance, min(LONGEST_WAIT_SECONDS, int(left)))
            if is_ending(job["status"]) or not left:
                return job
        except Failure as error:
            if error.exit_code != UNREACHABLE and error.code != "not_found":
                raise
            failure = error
        if time.monotonic() >= deadline:
            if failure is not None:
                raise failure
            return job
        time.sleep(max(0, min(PAUSE_SECONDS - (time.monotonic() - asked), left)))


def _ask(remote: Remote, job_id: str, instance: str | None, hold: int) -> dict[str, Any]:
    path = f"/jobs/{_quoted(job_id)}"
    answer = remote.get(path, patience=hold, instance=instance, wait=hold)
    if answer.status_code == 404:  # noqa: PLR2004
        raise Failure(USAGE, "not_found", f"no job {job_id} is known to this receiver")
    return checked(answer, "id", "instance", "status", "outcome", "records")


def leave(job: dict[str, Any], waited: int) -> NoReturn:
    """Exit as the outcome says; where the wait was over, tell how to go on waiting."""
    code = of_outcome(job["outcome"])
    if code == STILL_RUNNING and waited:
        again = ["receiver", "job", job["id"], "--instance", job["instance"], "--wait", str(waited)]
        click.echo(f"still under way; go on waiting with: {shlex.join(again)}", err=True)
    sys.exit(code)


def describe(job: dict[str, Any]) -> str:
    """Tell of a job in a few lines."""
    records = ", ".join(f"{plain(count)} {name}" for name, count in job["records"].items())
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
        lines.append("  conflict         two different endings were told")
    return "\n".join(lines)


def _records(job: dict[str, Any]) -> dict[str, Any]:
    counts: dict[str, Any] = job["records"]
    return counts


def _quoted(job_id: str) -> str:
    return quote(job_id, safe="")


def _show_page(page: dict[str, Any], text: str, json_: bool) -> None:
    more = f"\nmore: --cursor {page['next']}" if page["next"] else ""
    show(page, text + more, json_)


COMMANDS = (jobs, job, events, rejections)
