"""The failed records of ended jobs, as the vendor gave them."""

from collections.abc import Sequence

from msgspec import Struct
from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from receiver.database.engine import Database, affected
from receiver.database.models import RecordError

MAX_GROUPS = 100
MAX_EXAMPLES = 3


def replace_failed_records(
    session: Session, instance: str, job: str, records: Sequence[tuple[str, str]]
) -> None:
    """Store a job's failed records, as (JSON, message), in the place of those that were there."""
    affected(session, delete(RecordError).filter_by(job=job, instance=instance))
    rows = [
        {"job": job, "instance": instance, "position": n, "entry": entry, "message": message}
        for n, (entry, message) in enumerate(records)
    ]
    if rows:
        session.execute(insert(RecordError), rows)


class FailedRecord(Struct, frozen=True):
    """A record that the vendor could not load. entry -- JSON, as the vendor gave it."""

    position: int
    entry: str


class FailedGroup(Struct, frozen=True):
    """Failed records with one message, and some of them (JSON)."""

    message: str
    count: int
    examples: list[str]


def list_failed_records(
    database: Database,
    job: str,
    instance: str,
    limit: int,
    start: int = 0,
    *,
    message: str | None = None,
) -> list[FailedRecord]:
    """Read a job's failed records from position `start` on. message -- only those of that group."""
    of_job = select(RecordError.position, RecordError.entry).where(
        RecordError.job == job, RecordError.instance == instance, RecordError.position >= start
    )
    if message is not None:
        of_job = of_job.where(RecordError.message == message)
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
