"""The failed records of ended jobs: which are to be fetched, and what was fetched."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, delete, exists, func, insert, select
from sqlalchemy.orm import Session

from receiver.database.leases import affected, claim, is_due
from receiver.database.models import Instance, JobRow, RecordError
from receiver.reconcile.followups import LEASE_MS, Claim, claim_of

MAX_FETCH_PAUSE_MS = LEASE_MS * 2**8  # between two attempts to fetch one job's errors


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


def errors(
    session: Session, job: str, instance: str, limit: int, after: int
) -> Sequence[RecordError]:
    """Give a job's errors from position `after` on."""
    mine = select(RecordError).where(RecordError.job == job, RecordError.instance == instance)
    page = mine.where(RecordError.position >= after).order_by(RecordError.position).limit(limit)
    return session.scalars(page).all()


def error_groups(session: Session, job: str, instance: str) -> list[dict[str, Any]]:
    """Give a job's errors by message, most frequent first, with up to three examples each."""
    mine = (RecordError.job == job, RecordError.instance == instance)
    counts = session.execute(
        select(RecordError.message, func.count().label("count"))
        .where(*mine)
        .group_by(RecordError.message)
        .order_by(func.count().desc(), RecordError.message)
        .limit(100)
    ).all()
    place = func.row_number().over(partition_by=RecordError.message, order_by=RecordError.position)
    ranked = select(RecordError.message, RecordError.entry, place.label("place")).where(*mine)
    first = ranked.subquery()
    examples: dict[str, list[str]] = {}
    for message, entry, _ in session.execute(select(first).where(first.c.place <= 3)):  # noqa: PLR2004
        examples.setdefault(message, []).append(entry)
    return [{"message": row[0], "count": row[1], "examples": examples[row[0]]} for row in counts]
