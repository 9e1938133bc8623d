"""What is wrong right now, as the database shows it. Functions take a Session and only read.

However many jobs have one cause, they are one symptom, of their instance; what happens at a moment,
such as a job that fails, is wrong for an hour.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Boolean, ColumnElement, exists, func, literal_column, select, tuple_
from sqlalchemy.orm import Session

from receiver.database.alarm_models import Fetch, Node
from receiver.database.models import (
    IS_UNDER_WAY,
    NOT_A_JOB,
    NUMBER_BITS,
    Event,
    Facet,
    JobRow,
    RejectionCount,
    UsualTime,
)
from receiver.database.nodes import NODE_GONE_MS
from receiver.database.page import hidden
from receiver.jobs.queries import event_id, overdue_jobs
from receiver.jobs.summary import last_callbacks
from receiver.lib.clock import MINUTE_MS
from receiver.settings import Settings

RECENT_MS = 60 * MINUTE_MS
EXPIRES_SOON_MS = 24 * 60 * MINUTE_MS
LEAST_SILENCE_MS = 15 * MINUTE_MS
USUAL_TIMES_TO_SILENCE = 2
MOST_EXAMPLES = 5

Affected: TypeAlias = tuple[str, int, tuple[Any, ...]]  # a group, how many rows, ids of some

# Since when an instance waits for a callback.
_WAITING = (
    select(JobRow.instance, func.min(JobRow.first_seen_at))
    .where(IS_UNDER_WAY, JobRow.callback_due)
    .group_by(JobRow.instance)
    .order_by(JobRow.instance)
)
_LONGEST_USUAL = select(UsualTime.instance, func.max(UsualTime.ms)).group_by(UsualTime.instance)


@dataclass(frozen=True, slots=True)
class Symptom:
    """Something wrong. subject -- mostly an instance. count, examples -- of what is affected."""

    kind: str
    subject: str
    count: int
    detail: str = ""
    examples: tuple[str, ...] = ()


def symptoms(session: Session, settings: Settings, now: int) -> list[Symptom]:
    """Give all that is wrong."""
    return [
        *_overdue(session, settings.overdue_after, now),
        *_failed(session, now),
        *_unreadable(session, now),
        *_expiring(session, now),
        *_refused(session, now),
        *_silent(session, now),
        *_failing(session, settings.failing_after, now),
    ]


def _overdue(session: Session, overdue_after: int, now: int) -> Iterator[Symptom]:
    place = tuple_(JobRow.instance, JobRow.id)
    is_overdue = place.in_(overdue_jobs(JobRow.instance, JobRow.id))
    late = _jobs(session, JobRow.first_seen_at, is_overdue, now=now, overdue_after=overdue_after)
    for instance, count, ids in late:
        yield Symptom("overdue", instance, count, "under way for longer than is usual", ids)


def _failed(session: Session, now: int) -> Iterator[Symptom]:
    facets = select(Facet.facet).where(Facet.outcome.in_(("failed", "partial")))
    lately = JobRow.facet.in_(facets), JobRow.updated_at > now - RECENT_MS
    for instance, count, ids in _jobs(session, JobRow.updated_at.desc(), *lately):
        yield Symptom("failed", instance, count, "failed or lost records within an hour", ids)


def _unreadable(session: Session, now: int) -> Iterator[Symptom]:
    since = (now - RECENT_MS) << NUMBER_BITS
    came = Event.kind == "unreadable", literal_column(NOT_A_JOB, Boolean()), Event.n > since
    for instance, count, numbers in _examples(
        session, Event.instance, Event.n, Event.n.desc(), *came
    ):
        ids = tuple(map(event_id, numbers))
        yield Symptom("unreadable", instance, count, "verified, but not readable", ids)


def _expiring(session: Session, now: int) -> Iterator[Symptom]:
    fetched = exists().where(Fetch.job == JobRow.id, Fetch.instance == JobRow.instance)
    of_download = Facet.direction == "DOWNLOAD", Facet.outcome.in_(("succeeded", "partial"))
    soon = (
        JobRow.files_expire_at > now,
        JobRow.files_expire_at <= now + EXPIRES_SOON_MS,
        # Hidden, or all downloads there ever were would be read instead of those that expire.
        hidden(JobRow.facet).in_(select(Facet.facet).where(*of_download)),
        ~fetched,
    )
    for instance, count, ids in _jobs(session, JobRow.files_expire_at, *soon):
        yield Symptom("expiring", instance, count, "files expire within a day, unfetched", ids)


def _refused(session: Session, now: int) -> Iterator[Symptom]:
    total = func.sum(RejectionCount.count)
    recent = (
        select(RejectionCount.instance, RejectionCount.reason, total)
        .where(
            RejectionCount.minute > (now - RECENT_MS) // MINUTE_MS, RejectionCount.instance != ""
        )
        .group_by(RejectionCount.instance, RejectionCount.reason)
        .order_by(total.desc(), RejectionCount.reason)
    )
    found: dict[str, dict[str, int]] = {}
    for instance, reason, count in session.execute(recent):
        found.setdefault(instance, {})[reason] = int(count)
    for instance, reasons in sorted(found.items()):
        told = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        yield Symptom("refused", instance, sum(reasons.values()), f"within an hour, {told}")


def _silent(session: Session, now: int) -> Iterator[Symptom]:
    last = last_callbacks(session.connection())
    usual = dict(session.execute(_LONGEST_USUAL).tuples().all())
    for instance, oldest in session.execute(_WAITING):
        silence = now - max(oldest, last.get(instance, 0))
        if silence >= max(LEAST_SILENCE_MS, USUAL_TIMES_TO_SILENCE * usual.get(instance, 0)):
            of_instance = IS_UNDER_WAY, JobRow.instance == instance
            for _, count, ids in _jobs(session, JobRow.first_seen_at, *of_instance):
                told = f"no event for {silence // MINUTE_MS} minutes, with jobs under way"
                yield Symptom("silent", instance, count, told, ids)


def _failing(session: Session, failing_after: int, now: int) -> Iterator[Symptom]:
    newest = session.scalar(select(func.max(Node.at)))
    if newest is not None and newest <= now - max(failing_after, NODE_GONE_MS):
        minutes = (now - newest) // MINUTE_MS
        yield Symptom("failing", "receiver", 1, f"no process was alive for {minutes} minutes")
    failing = select(Node).where(Node.failing_since <= now - failing_after)
    rows = session.scalars(failing.where(Node.at > now - NODE_GONE_MS).order_by(Node.name)).all()
    if rows:
        minutes = (now - min(row.failing_since or now for row in rows)) // MINUTE_MS
        told = f"callbacks are answered with errors for {minutes} minutes"
        names = tuple(row.name for row in rows[:MOST_EXAMPLES])
        yield Symptom("failing", "callbacks", sum(row.failures for row in rows), told, names)


def _jobs(session: Session, order: Any, *conditions: Any, **values: int) -> list[Affected]:  # noqa: ANN401
    return _examples(session, JobRow.instance, JobRow.id, order, *conditions, **values)


def _examples(
    session: Session,
    group: Any,  # noqa: ANN401 - a column
    id_: Any,  # noqa: ANN401
    order: Any,  # noqa: ANN401
    *conditions: ColumnElement[bool],
    **values: int,
) -> list[Affected]:
    """Give for each group how many rows it has, and the ids of some."""
    ranked = (
        select(
            group.label("instance"),
            id_.label("id"),
            func.row_number().over(partition_by=group, order_by=(order, id_)).label("place"),
            func.count().over(partition_by=group).label("affected"),
        )
        .where(*conditions)
        .subquery()
    )
    first = select(ranked).where(ranked.c.place <= MOST_EXAMPLES)
    found: dict[str, tuple[int, list[Any]]] = {}
    for row in session.execute(first.order_by(ranked.c.instance, ranked.c.place), values):
        found.setdefault(row.instance, (int(row.affected), []))[1].append(row.id)
    return [(name, count, tuple(ids)) for name, (count, ids) in found.items()]
