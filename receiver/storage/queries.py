"""What is read: jobs, events, rejections and the summary. Functions take a Session."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from receiver.clock import MINUTE_MS
from receiver.jobs import OUTCOMES
from receiver.storage import counters
from receiver.storage.followups import is_overdue
from receiver.storage.models import (
    UNDER_WAY,
    UNREADABLE,
    Body,
    CounterRow,
    Event,
    JobRow,
    Pace,
    RejectionCount,
    Submission,
    TimelineEntry,
    UsualTime,
)
from receiver.storage.tally import HOUR_MS, LAST_CALLBACK, LOST

DAY_MS = 24 * HOUR_MS
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


def known_jobs(session: Session, instance: str, ids: Sequence[str]) -> set[str]:
    """Give those of the ids that are known for an instance."""
    known = select(JobRow.id).where(JobRow.instance == instance, JobRow.id.in_(ids))
    return set(session.scalars(known))


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


def summary(session: Session, visible: Instances, now: int, overdue_after: int) -> dict[str, Any]:
    """Count what an operator looks at first. overdue_after -- in ms."""
    counted = counters.totals(session, *_among((CounterRow.instance, visible)))
    queued = session.scalar(select(func.sum(Pace.queued)).where(*_among((Pace.instance, visible))))
    return {
        "jobs": {outcome: counted.get(outcome, 0) for outcome in OUTCOMES},
        "overdue": _overdue(session, visible, now, overdue_after),
        "expiring_24h": counters.expiring(
            session,
            now,
            now + DAY_MS,
            _among((CounterRow.instance, visible)),
            _among((JobRow.instance, visible)),
        ),
        "rejections_1h": _rejections_since(session, visible, now - HOUR_MS),
        "lost_callbacks": counted.get(LOST, 0),
        "queued_at_vendor": None if queued is None else int(queued),
        "unclear_submissions": session.scalar(
            select(func.count()).where(
                Submission.state == "unclear", *_among((Submission.instance, visible))
            )
        ),
        "unreadable_events": session.scalar(
            select(func.count())
            .select_from(Event)
            .where(text(UNREADABLE), *_among((Event.instance, visible)))
        ),
        "last_callback_at": counted.get(LAST_CALLBACK),
    }


def _overdue(session: Session, visible: Instances, now: int, overdue_after: int) -> int:
    """Count jobs under way for too long, by the index of those under way for so long at least."""
    shortest = session.scalar(select(func.min(UsualTime.ms)))
    at_least = overdue_after if shortest is None else min(shortest, overdue_after)
    overdue = select(func.count()).where(
        text(UNDER_WAY),
        JobRow.first_seen_at <= now - at_least,
        is_overdue(now, overdue_after),
        *_among((JobRow.instance, visible)),
    )
    return session.scalar(overdue.select_from(JobRow)) or 0


def _rejections_since(session: Session, visible: Instances, since: int) -> int:
    statement = select(func.sum(RejectionCount.count)).where(
        RejectionCount.minute > since // MINUTE_MS, *_among((RejectionCount.instance, visible))
    )
    return int(session.scalar(statement) or 0)


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
