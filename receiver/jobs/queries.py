"""What is read: jobs, events, rejections and the summary. Functions take a Session."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from receiver.database.models import Body, JobRow, TimelineEntry
from receiver.jobs.job import Job

LONGEST_TIMELINE = 10_000

Instances = frozenset[str] | None  # what a token may see; None is all


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs. An empty tuple or None leaves that question open; times are ms."""

    instances: Sequence[str] = ()
    statuses: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    objects: Sequence[str] = ()
    directions: Sequence[str] = ()
    updated_after: int | None = None
    updated_before: int | None = None
    expires_before: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events; as JobFilter."""

    instances: Sequence[str] = ()
    kinds: Sequence[str] = ()
    jobs: Sequence[str] = ()
    received_after: int | None = None
    received_before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionFilter:
    """Which rejections; as JobFilter."""

    instances: Sequence[str] = ()
    reasons: Sequence[str] = ()
    peers: Sequence[str] = ()
    after: int | None = None
    before: int | None = None


def jobs_by_age(session: Session, wanted: JobFilter, limit: int, offset: int) -> Sequence[JobRow]:
    """Give jobs in the order in which they were first heard of, newest first."""
    filters = _among(
        (JobRow.instance, wanted.instances),
        (JobRow.status, wanted.statuses),
        (JobRow.object, wanted.objects),
        (JobRow.direction, wanted.directions),
    )
    newest = (JobRow.first_seen_at.desc(), JobRow.id.desc())
    statement = select(JobRow).where(*filters).order_by(*newest)
    return session.scalars(statement.limit(limit).offset(offset)).all()


def open_jobs(session: Session, instance: str, ids: Sequence[str]) -> dict[str, Job]:
    """Return by id those of the ids that an instance knows and that were not closed as lost."""
    known = select(JobRow.id, JobRow.registers).where(
        JobRow.instance == instance, JobRow.id.in_(ids), JobRow.outcome != "lost"
    )
    return {id_: Job.decode(registers) for id_, registers in session.execute(known)}


def timeline(session: Session, id_: str, instance: str) -> Sequence[TimelineEntry]:
    """Give what happened to a job, in the order we learnt it."""
    return session.scalars(
        select(TimelineEntry)
        .where(TimelineEntry.job == id_, TimelineEntry.instance == instance)
        .order_by(TimelineEntry.id)
        .limit(LONGEST_TIMELINE)
    ).all()


def body(session: Session, id_: str) -> bytes | None:
    """Give the exact bytes of an event, or None once they were pruned."""
    return session.scalar(select(Body.body).where(Body.event == id_))


def _among(*filters: tuple[Any, Any]) -> list[Any]:
    return [
        column.in_(sorted(values)) for column, values in filters if values or values == frozenset()
    ]


def _between(column: Any, after: int | None, before: int | None) -> list[Any]:  # noqa: ANN401
    bounds = []
    if after is not None:
        bounds.append(column > after)
    if before is not None:
        bounds.append(column < before)
    return bounds
