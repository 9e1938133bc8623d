"""The failed records of ended jobs: which are to be fetched, and what was fetched."""

from collections.abc import Sequence

from msgspec import Struct
from sqlalchemy import case, delete, exists, func, insert, select
from sqlalchemy.orm import Session

from receiver.database.engine import Database, affected
from receiver.database.leases import claim, is_due
from receiver.database.models import Instance, JobRow, RecordError
from receiver.reconcile.followups import LEASE_MS, Claim, claim_of

MAX_FETCH_PAUSE_MS = LEASE_MS * 2**8  # between two attempts to fetch one job's errors

MAX_GROUPS = 100
MAX_EXAMPLES = 3


def due_errors(session: Session, instance: str, now: int) -> list[Claim]:
    """Give the ended jobs of an instance whose errors are still to be fetched."""
    due = is_due(JobRow.errors_at, now, MAX_FETCH_PAUSE_MS)
    mine = select(JobRow).where(JobRow.instance == instance, JobRow.errors_at.is_not(None), due)
    return [claim_of(row, row.errors_tries) for row in session.scalars(mine)]


def with_due_errors(session: Session, now: int) -> list[str]:
    """Name the instances that have such jobs and vendor secrets to fetch with."""
    can = Instance.element_token.is_not(None) & Instance.user_secret.is_not(None)
    # For each instance one look into the index: asked for the instances of such jobs, SQLite would
    # read all jobs there are.
    due = exists().where(
        JobRow.instance == Instance.name,
        JobRow.errors_at.is_not(None),
        is_due(JobRow.errors_at, now, MAX_FETCH_PAUSE_MS),
    )
    return list(session.scalars(select(Instance.name).where(can, due)))


def claim_errors(session: Session, now: int, fetch: Claim) -> bool:
    """Take the fetching of a job's errors; False if another node did."""
    pause = min(MAX_FETCH_PAUSE_MS, LEASE_MS * 2 ** min(fetch.tries, 20))
    seen = {"errors_tries": fetch.tries}
    lease = {"errors_at": now + pause, "errors_tries": fetch.tries + 1}
    return claim(session, JobRow, fetch.key, seen, lease, JobRow.errors_at.is_not(None))


def renew_errors(session: Session, now: int, fetch: Claim) -> bool:
    """Keep the fetching of a job's errors for longer; False if it is another node's by now."""
    until = now + LEASE_MS
    longer = case((JobRow.errors_at > until, JobRow.errors_at), else_=until)
    seen = {"errors_tries": fetch.tries + 1}
    lease = {"errors_at": longer}
    return claim(session, JobRow, fetch.key, seen, lease, JobRow.errors_at.is_not(None))


def keep_errors(session: Session, fetch: Claim, entries: Sequence[tuple[str, str]]) -> bool:
    """Keep a job's errors, as (JSON, message), in the place of those that were there.

    False, and nothing is kept, if the claim holds no longer: the job was reset, or erased.
    """
    seen, pending = {"errors_tries": fetch.tries + 1}, JobRow.errors_at.is_not(None)
    if not claim(session, JobRow, fetch.key, seen, {"errors_at": None}, pending):
        return False
    of_job = RecordError.job == fetch.job, RecordError.instance == fetch.instance
    affected(session, delete(RecordError).where(*of_job))
    rows = [
        {
            "job": fetch.job,
            "instance": fetch.instance,
            "position": position,
            "entry": entry,
            "message": message,
        }
        for position, (entry, message) in enumerate(entries)
    ]
    if rows:
        session.execute(insert(RecordError), rows)
    return True


def give_up_errors(session: Session, fetch: Claim) -> None:
    """Try no more: the vendor has them no longer."""
    claim(session, JobRow, fetch.key, {"errors_tries": fetch.tries + 1}, {"errors_at": None})


class FailedRecord(Struct, frozen=True):
    """A record that the vendor could not load. entry -- JSON, as the vendor gave it."""

    position: int
    entry: str
    message: str


class FailedGroup(Struct, frozen=True):
    """Failed records with one message, and some of them (JSON)."""

    message: str
    count: int
    examples: list[str]


def list_failed_records(
    database: Database, job: str, instance: str, limit: int, start: int = 0
) -> list[FailedRecord]:
    """Read a job's failed records from position `start` on."""
    of_job = select(RecordError.position, RecordError.entry, RecordError.message).where(
        RecordError.job == job, RecordError.instance == instance, RecordError.position >= start
    )
    rows = database.rows(of_job.order_by(RecordError.position).limit(limit))
    return [FailedRecord(*row) for row in rows]


def group_failed_records(database: Database, job: str, instance: str) -> list[FailedGroup]:
    """Read a job's failed records by message, most frequent first."""
    place = func.row_number().over(partition_by=RecordError.message, order_by=RecordError.position)
    count = func.count().over(partition_by=RecordError.message)
    ranked = (
        select(RecordError.message, RecordError.entry, place.label("place"), count.label("count"))
        .where(RecordError.job == job, RecordError.instance == instance)
        .subquery()
    )
    first = select(ranked).where(ranked.c.place <= MAX_EXAMPLES)
    order = ranked.c.count.desc(), ranked.c.message, ranked.c.place
    groups: dict[str, FailedGroup] = {}
    for message, entry, _, total in database.rows(
        first.order_by(*order).limit(MAX_GROUPS * MAX_EXAMPLES)
    ):
        groups.setdefault(message, FailedGroup(message, total, [])).examples.append(entry)
    return list(groups.values())[:MAX_GROUPS]
