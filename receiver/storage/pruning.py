"""Retention: what grows for ever is deleted in small batches, so that nobody waits long for it.

Hashes and outcomes stay: a body that comes again is still known, and so is what became of its job.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from receiver.clock import MINUTE_MS
from receiver.storage.credentials import affected
from receiver.storage.database import Database
from receiver.storage.models import (
    Body,
    Event,
    Forward,
    JobRow,
    RecordError,
    RefusedAddress,
    Rejection,
    RejectionCount,
    Submission,
    TimelineEntry,
)

BATCH = 500


def prune(database: Database, bodies_before: int, details_before: int) -> dict[str, int]:
    """Delete bodies and quarantined deliveries, and timelines and counts, older than that (ms).

    Gives how many rows of each went.
    """
    steps: dict[str, Callable[[Session], int]] = {
        "bodies": lambda session: _bodies(session, bodies_before),
        "rejections": _older(Rejection, Rejection.at, bodies_before),
        "forwards": _older(Forward, Forward.at, bodies_before),
        "timeline": _older(TimelineEntry, TimelineEntry.at, details_before),
        "submissions": _older(Submission, Submission.at, details_before),
        "errors": lambda session: _errors(session, details_before),
        "counts": lambda session: affected(
            session,
            delete(RejectionCount).where(RejectionCount.minute < bodies_before // MINUTE_MS),
        ),
        "addresses": lambda session: affected(
            session, delete(RefusedAddress).where(RefusedAddress.since < bodies_before)
        ),
    }
    return {name: _repeated(database, step) for name, step in steps.items()}


def _older(table: Any, time: Any, before: int) -> Callable[[Session], int]:  # noqa: ANN401
    def step(session: Session) -> int:
        old = select(table.id).where(time < before).limit(BATCH)
        return affected(session, delete(table).where(table.id.in_(old)))

    return step


def _repeated(database: Database, step: Callable[[Session], int]) -> int:
    total = 0
    while True:
        with database.write() as session:
            gone = step(session)
        total += gone
        if not gone:
            return total


def _errors(session: Session, before: int) -> int:
    """Delete the failed records of jobs that changed last before then, some jobs at a time."""
    old = (
        select(RecordError.job, RecordError.instance)
        .join(JobRow, (JobRow.id == RecordError.job) & (JobRow.instance == RecordError.instance))
        .where(JobRow.updated_at < before)
        .distinct()
        .limit(10)
    )
    return sum(
        affected(
            session,
            delete(RecordError).where(RecordError.job == job, RecordError.instance == instance),
        )
        for job, instance in session.execute(old).all()
    )


def _bodies(session: Session, before: int) -> int:
    old = (
        select(Body.event)
        .join(Event, Event.id == Body.event)
        .where(Event.received_at < before)
        .order_by(Event.received_at)
        .limit(BATCH)
    )
    ids = list(session.scalars(old))
    return affected(session, delete(Body).where(Body.event.in_(ids))) if ids else 0
