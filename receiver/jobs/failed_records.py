"""The failed records of ended jobs: which are to be fetched, and what was fetched."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, delete, exists, func, insert, select, update
from sqlalchemy.orm import Session

from receiver.database.models import Instance, JobRow, RecordError
from receiver.instances.credentials import affected
from receiver.reconcile.followups import Claim, claim_of, is_claimed


def due_errors(session: Session, instance: str, now: int) -> list[Claim]:
    """Give the ended jobs of an instance whose errors are still to be fetched."""
    mine = select(JobRow).where(JobRow.instance == instance, JobRow.errors_at <= now)
    return [claim_of(row, row.errors_tries) for row in session.scalars(mine)]


def with_due_errors(session: Session, now: int) -> list[str]:
    """Name the instances that have such jobs and vendor secrets to fetch with."""
    can = Instance.element_token.is_not(None) & Instance.user_secret.is_not(None)
    # For each instance one look into the index: asked for the instances of such jobs, SQLite would
    # read all jobs there are.
    due = exists().where(JobRow.instance == Instance.name, JobRow.errors_at <= now)
    return list(session.scalars(select(Instance.name).where(can, due)))


def claim_errors(session: Session, claim: Claim, next_at: int) -> bool:
    """Take the fetching of a job's errors; False if another node did."""
    mine = update(JobRow).where(
        *is_claimed(claim), JobRow.errors_tries == claim.tries, JobRow.errors_at.is_not(None)
    )
    statement = mine.values(errors_at=next_at, errors_tries=JobRow.errors_tries + 1)
    return affected(session, statement) == 1


def renew_errors(session: Session, claim: Claim, next_at: int) -> bool:
    """Keep the fetching of a job's errors for longer; False if it is another node's by now."""
    mine = update(JobRow).where(
        *is_claimed(claim), JobRow.errors_tries == claim.tries + 1, JobRow.errors_at.is_not(None)
    )
    later = case((JobRow.errors_at > next_at, JobRow.errors_at), else_=next_at)
    return affected(session, mine.values(errors_at=later)) == 1


def keep_errors(session: Session, claim: Claim, entries: Sequence[tuple[str, str]]) -> bool:
    """Keep a job's errors, as (JSON, message), in the place of those that were there.

    False, and nothing is kept, if the claim holds no longer: the job was reset, or erased.
    """
    mine = update(JobRow).where(
        *is_claimed(claim), JobRow.errors_tries == claim.tries + 1, JobRow.errors_at.is_not(None)
    )
    if not affected(session, mine.values(errors_at=None)):
        return False
    session.execute(
        delete(RecordError).where(
            RecordError.job == claim.job, RecordError.instance == claim.instance
        )
    )
    rows = [
        {
            "job": claim.job,
            "instance": claim.instance,
            "position": position,
            "entry": entry,
            "message": message,
        }
        for position, (entry, message) in enumerate(entries)
    ]
    if rows:
        session.execute(insert(RecordError), rows)
    return True


def give_up_errors(session: Session, claim: Claim) -> None:
    """Try no more: the vendor has them no longer."""
    mine = update(JobRow).where(*is_claimed(claim), JobRow.errors_tries == claim.tries + 1)
    session.execute(mine.values(errors_at=None))


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
