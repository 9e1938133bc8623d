"""Commands that make the database forget: prune, erase."""

import sys
import time
from collections.abc import Mapping

import click

from receiver.cli.exits import USAGE, Failure
from receiver.cli.output import as_json, show
from receiver.cli.serve import actor, opened
from receiver.database.engine import Database
from receiver.database.leases import database_time
from receiver.database.retention import Retention
from receiver.errors import StoreError
from receiver.instances import audit
from receiver.jobs import lists
from receiver.jobs.erasure import erase as erase_job
from receiver.lib.clock import now_ms
from receiver.settings import INSTANCE_NAME, duration_ms


@click.command()
@click.option("--older-than", metavar="DURATION", help="Instead of both settings, e.g. 90d.")
@click.option("--dry-run", is_flag=True, help="Only count what would go.")
@as_json
def prune(older_than: str | None, dry_run: bool, json_: bool) -> None:
    """Delete what is older than RECEIVER_KEEP_BODIES and RECEIVER_KEEP_EVENTS; outcomes stay.

    Hashes stay too: a callback that comes again is still a duplicate. A running receiver does this
    each hour by itself; both may run at once, and what was interrupted goes on where it stood.
    """
    try:
        age = duration_ms(older_than) if older_than else None
    except ValueError as error:
        raise click.UsageError(f"--older-than {error}") from None
    with opened() as (settings, database):
        retention = Retention(settings, database, now_ms, actor=actor())
        if dry_run:
            show(would := retention.due(age), _told(would, "would go"), json_)
            return
        gone: dict[str, int] = {}
        progress = _Progress()
        for kind, rows in retention.passing(age):
            gone[kind] = gone.get(kind, 0) + rows
            progress.tell(kind, gone[kind])
        progress.end()
    show(gone, _told(gone, "deleted"), json_)


@click.command()
@click.option("--job", "job_id", required=True, metavar="ID")
@click.option("--instance", help="Needed where several instances have that id.")
@as_json
def erase(job_id: str, instance: str | None, json_: bool) -> None:
    """Erase what may be about people from a job, for good; its outcome and counts stay.

    Bodies, failed records, message, file name, callback payload and what its client was told go. A
    callback or poll that comes later does not bring them back.
    """
    with opened() as (_, database):
        name = _instance_of(database, job_id, instance)
        with database.write() as session:
            gone = erase_job(session, job_id, name, database_time(session, now_ms))
            if gone is not None:
                subject, detail = f"{name}/{job_id}", _told(gone, "erased")
                audit.note(
                    session,
                    at=now_ms(),
                    actor=actor(),
                    action="erase",
                    subject=subject,
                    detail=detail,
                )
        if gone is None:
            raise Failure(USAGE, "not_found", f"no job {job_id} is known")
        if not _is_log_empty(database):
            click.echo("the database's log may hold it until it is overwritten", err=True)
    show({"job": job_id, "instance": name, **gone}, _told(gone, "erased"), json_)


def _is_log_empty(database: Database) -> bool:
    try:
        return database.empty_log()
    except StoreError:  # the job is erased all the same
        return False


def _instance_of(database: Database, job_id: str, instance: str | None) -> str:
    if "\0" in job_id or (instance is not None and not INSTANCE_NAME.fullmatch(instance)):
        raise Failure(USAGE, "not_found", "no such job is known")
    rows = lists.jobs_called(database.rows, job_id, instance, None)
    if not rows:
        raise Failure(USAGE, "not_found", f"no job {job_id} is known")
    if len(rows) > 1:
        names = ", ".join(sorted(row.instance for row in rows))
        raise Failure(USAGE, "ambiguous_job", f"job {job_id} is known to {names}: --instance?")
    return rows[0].instance


class _Progress:
    """One line for a person who waits, renewed a few times a second."""

    def __init__(self) -> None:
        self._shown_at = 0.0

    def tell(self, kind: str, rows: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - self._shown_at > 0.2:  # noqa: PLR2004
            self._shown_at = time.monotonic()
            click.echo(f"\r\x1b[K{rows:,} {kind}", err=True, nl=False)

    def end(self) -> None:
        if self._shown_at:
            click.echo("\r\x1b[K", err=True, nl=False)


def _told(gone: Mapping[str, int], what: str) -> str:
    return ", ".join(f"{count} {name}" for name, count in gone.items()) + f" {what}"


COMMANDS = (prune, erase)
