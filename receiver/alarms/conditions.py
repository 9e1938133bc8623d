"""The conditions that need a person, and which of them the database shows right now.

However many jobs have one cause, they are one condition, of their instance; what happens at a
moment, such as a job that fails, is one for an hour. Functions take a Session and only read.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TypeAlias

from sqlalchemy import (
    Boolean,
    ColumnElement,
    ColumnExpressionArgument,
    exists,
    func,
    literal_column,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from receiver.callbacks.diagnosis import reason_words
from receiver.database.leases import is_steady
from receiver.database.models import (
    IS_UNDER_WAY,
    NOT_A_JOB,
    NUMBER_BITS,
    Event,
    Facet,
    Heartbeat,
    JobRow,
    Pace,
    RejectionCount,
    UsualTime,
)
from receiver.database.models.alarms import NODE_GONE_MS, Fetch, Node, Schedule
from receiver.database.page import hidden
from receiver.jobs.queries import IS_OVERDUE, JOBS_AND_USUAL, OVERDUE_SINCE
from receiver.jobs.summary import last_callbacks, under_way
from receiver.jobs.timeline import event_id
from receiver.lib.clock import DAY_MS, MINUTE_MS, iso
from receiver.schedules.check import Verdict
from receiver.schedules.times import local_time
from receiver.settings import Settings
from receiver.subscriptions.log import count_waiting
from receiver.subscriptions.registry import list_subscriptions

RECENT_MS = 60 * MINUTE_MS
EXPIRES_SOON_MS = 24 * 60 * MINUTE_MS
MIN_SILENCE_MS = 15 * MINUTE_MS
USUAL_TIMES_TO_SILENCE = 2
MAX_EXAMPLES = 5
# So many right callbacks within so long to one wrong: the key is right, the wrong one a stray.
RIGHT_TO_ONE_STRAY = 10
STRAY_MS = 15 * MINUTE_MS
MAX_RIGHT = 1000  # that are read; where there would have to be more, nothing is a stray
MIN_VENDOR_FAILURES = 3  # of all work for an instance, in a row

# Since when an instance waits for a callback.
_WAITING = (
    select(JobRow.instance, func.min(JobRow.first_seen_at))
    .where(IS_UNDER_WAY, JobRow.callback_due)
    .group_by(JobRow.instance)
    .order_by(JobRow.instance)
)
_MAX_USUAL_TIMES = select(UsualTime.instance, func.max(UsualTime.ms)).group_by(UsualTime.instance)


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that needs a person. subject -- mostly an instance. count -- of what is affected.

    examples -- ids of some of what is affected. newest -- of what is affected, when the last one
    became so, ms: a later one is news; 0 where no more of the same is. instance -- where the
    subject is none, but it is about the jobs of one.
    """

    kind: str
    subject: str
    count: int
    detail: str = ""
    examples: tuple[str, ...] = ()
    newest: int = 0
    instance: str = ""


def active_conditions(session: Session, settings: Settings, now: int) -> list[Condition]:
    """Return every condition that holds."""
    return [
        *_overdue(session, settings.overdue_after, now),
        *_failed(session, now),
        *_unreadable(session, now),
        *_expiring(session, now),
        *_rejected(session, now),
        *_silent(session, now),
        *_queued(session),
        *_failing(session, settings.failing_after, now),
        *_clock(session, now),
        *_undeliverable(session, now),
        *_lost(session, now),
        *_vendor(session, now),
    ]


def _overdue(session: Session, overdue_after: int, now: int) -> Iterator[Condition]:
    usual = {"now": now, "overdue_after": overdue_after}
    late = [*_examples(session, "overdue", OVERDUE_SINCE, *IS_OVERDUE, usual=usual)]
    open_jobs = under_way(session, [condition.subject for condition in late])
    for condition in late:
        minutes = (now - open_jobs[condition.subject][1]) // MINUTE_MS
        yield replace(condition, detail=f"the oldest has been in progress for {minutes} minutes")


def _failed(session: Session, now: int) -> Iterator[Condition]:
    facets = select(Facet.facet).where(Facet.outcome.in_(("failed", "partial")))
    lately = JobRow.facet.in_(facets), JobRow.updated_at > now - RECENT_MS
    detail = "failed or lost records within an hour"
    return _examples(session, "failed", JobRow.updated_at, *lately, detail=detail, last_first=True)


def _unreadable(session: Session, now: int) -> Iterator[Condition]:
    since = (now - RECENT_MS) << NUMBER_BITS
    came = Event.kind == "unreadable", literal_column(NOT_A_JOB, Boolean()), Event.n > since
    detail = "verified, but not readable"
    for condition in _examples(
        session, "unreadable", Event.n, *came, detail=detail, last_first=True, of_events=True
    ):
        ids = tuple(event_id(int(number)) for number in condition.examples)
        yield replace(condition, examples=ids, newest=condition.newest >> NUMBER_BITS)


def _expiring(session: Session, now: int) -> Iterator[Condition]:
    fetched = exists().where(Fetch.job == JobRow.id, Fetch.instance == JobRow.instance)
    of_download = Facet.direction == "DOWNLOAD", Facet.outcome.in_(("succeeded", "partial"))
    soon = (
        JobRow.files_expire_at > now,
        JobRow.files_expire_at <= now + EXPIRES_SOON_MS,
        # Hidden, or all downloads there ever were would be read instead of those that expire.
        hidden(JobRow.facet).in_(select(Facet.facet).where(*of_download)),
        ~fetched,
    )
    detail = "files expire within a day, unfetched"
    return _examples(session, "expiring", JobRow.files_expire_at, *soon, detail=detail)


def _rejected(session: Session, now: int) -> Iterator[Condition]:
    total, newest = func.sum(RejectionCount.count), func.max(RejectionCount.minute)
    recent = (
        select(RejectionCount.instance, RejectionCount.reason, total, newest)
        .where(
            RejectionCount.minute > (now - RECENT_MS) // MINUTE_MS, RejectionCount.instance != ""
        )
        .group_by(RejectionCount.instance, RejectionCount.reason)
        .order_by(total.desc(), RejectionCount.reason)
    )
    by_instance: dict[str, dict[str, int]] = {}
    last_wrong: dict[str, int] = {}
    for instance, reason, count, minute in session.execute(recent):
        by_instance.setdefault(instance, {})[reason] = int(count)
        last_wrong[instance] = max(minute, last_wrong.get(instance, 0))
    for instance, reasons in sorted(by_instance.items()):
        wrong = sum(reasons.values())
        if not _is_key_right(session, instance, wrong, last_wrong[instance], now):
            parts = [f"{reason_words(reason)}: {count}" for reason, count in reasons.items()]
            yield Condition("rejected", instance, wrong, f"within an hour, {', '.join(parts)}")


def _is_key_right(session: Session, instance: str, wrong: int, last_wrong: int, now: int) -> bool:
    """Whether right callbacks came in a later minute than the last wrong one, or far more of them.

    Those of jobs alone: test callbacks of our own have a right signature whatever the vendor's key
    is. last_wrong -- a minute since the epoch.
    """
    many = RIGHT_TO_ONE_STRAY * wrong
    of_jobs = Event.instance == instance, Event.kind == "bulk_job"
    right = select(Event.n).where(*of_jobs, Event.n > (now - RECENT_MS) << NUMBER_BITS)
    right = right.order_by(Event.n.desc()).limit(min(many, MAX_RIGHT))
    times = [n >> NUMBER_BITS for n in session.scalars(right)]
    if times and times[0] // MINUTE_MS > last_wrong:
        return True
    return len(times) == many and times[-1] > now - STRAY_MS


def _silent(session: Session, now: int) -> Iterator[Condition]:
    last = last_callbacks(session.connection())
    usual = {row[0]: row[1] for row in session.execute(_MAX_USUAL_TIMES)}
    for instance, oldest in session.execute(_WAITING):
        silence = now - max(oldest, last.get(instance, 0))
        if silence >= max(MIN_SILENCE_MS, USUAL_TIMES_TO_SILENCE * usual.get(instance, 0)):
            detail = f"no event for {silence // MINUTE_MS} minutes, with jobs in progress"
            waiting = IS_UNDER_WAY, JobRow.instance == instance
            for one in _examples(session, "silent", JobRow.first_seen_at, *waiting, detail=detail):
                yield replace(one, newest=0)


def _failing(session: Session, failing_after: int, now: int) -> Iterator[Condition]:
    # A row from the future was written under a wrong clock, and shows nobody alive.
    newest = session.scalar(select(func.max(Node.at)).where(Node.at <= now + NODE_GONE_MS))
    if newest is not None and newest <= now - max(failing_after, NODE_GONE_MS):
        minutes = (now - newest) // MINUTE_MS
        yield Condition("failing", "receiver", 1, f"no process was alive for {minutes} minutes")
    failing = select(Node).where(Node.failing_since <= now - failing_after)
    rows = session.scalars(failing.where(Node.at > now - NODE_GONE_MS).order_by(Node.name)).all()
    if rows:
        minutes = (now - min(row.failing_since or now for row in rows)) // MINUTE_MS
        why = next((f": {row.reason}" for row in rows if row.reason), "")
        detail = f"callbacks are answered with errors for {minutes} minutes{why}"
        names = tuple(row.name for row in rows[:MAX_EXAMPLES])
        yield Condition("failing", "callbacks", sum(row.failures for row in rows), detail, names)


def _queued(session: Session) -> Iterator[Condition]:
    queued = select(Pace).where(Pace.queued > 0).order_by(Pace.instance)
    for row in session.scalars(queued):
        detail = f"as of {(iso(row.queued_asked_at) or '')[:16]}Z"
        yield Condition("queued", row.instance, row.queued or 0, detail)


def _clock(session: Session, now: int) -> Iterator[Condition]:
    if not is_steady(session, now):
        trusted = session.scalar(select(Heartbeat.steady_at)) or 0
        days, way = abs(now - trusted) // DAY_MS, "ahead of" if now > trusted else "behind"
        yield Condition("clock", "database", 1, f"{days} days {way} the last write of a node")


def _undeliverable(session: Session, now: int) -> Iterator[Condition]:
    reasons = {"gone": "it answered 410 (gone)", "failing": "it accepted nothing for five days"}
    for row in list_subscriptions(session):
        if row.disabled_for in reasons:
            since = f"{(iso(row.disabled_at) or '')[:16]}Z"
            detail = f"disabled since {since}: {reasons[row.disabled_for]}"
            yield Condition("undeliverable", row.name, 1, detail)
        elif row.failing_since is not None and row.failing_since <= now - RECENT_MS:
            count, answer = count_waiting(session, row.name)
            minutes = (now - row.failing_since) // MINUTE_MS
            detail = f"nothing was accepted for {minutes} minutes: {answer}"
            yield Condition("undeliverable", row.name, count, detail)


def _lost(session: Session, now: int) -> Iterator[Condition]:
    lost = JobRow.facet.in_(select(Facet.facet).where(Facet.callback_lost))
    lately = lost, JobRow.updated_at > now - RECENT_MS
    detail = "ended within an hour, detected by polling"
    return _examples(session, "lost", JobRow.updated_at, *lately, detail=detail, last_first=True)


def _vendor(session: Session, now: int) -> Iterator[Condition]:
    recent = Pace.blocked_until.between(now - RECENT_MS, now + RECENT_MS)
    failing = select(Pace).where(Pace.failures >= MIN_VENDOR_FAILURES, recent)
    for row in session.scalars(failing.order_by(Pace.instance)):
        yield Condition("vendor", row.instance, 1, row.reason or "it fails")


def schedule_conditions(verdicts: Iterable[Verdict]) -> Iterator[Condition]:
    """Return the conditions of schedules that were judged."""
    for verdict in verdicts:
        one, jobs = verdict.schedule, tuple(verdict.jobs)
        about = f"{one.instance} ({one.object})" if one.object else one.instance
        if verdict.broken is not None:
            broken = verdict.broken
            yield Condition("schedule_broken", one.name, 1, broken, instance=one.instance)
        if verdict.missed is not None:
            detail = f"no job of {about} started for {_due(one, verdict.missed)}"
            yield Condition(
                "schedule_missed", one.name, 1, detail, (), verdict.missed, one.instance
            )
        if verdict.late is not None:
            detail = f"in progress for {about} since {_due(one, verdict.late)}"
            named = jobs[:MAX_EXAMPLES]
            at = verdict.late
            yield Condition("schedule_late", one.name, len(jobs), detail, named, at, one.instance)


def _due(schedule: Schedule, at: int) -> str:
    return f"{local_time(at, schedule.tz):%Y-%m-%d %H:%M} {schedule.tz}"


Moment: TypeAlias = (
    ColumnElement[int] | InstrumentedAttribute[int] | InstrumentedAttribute[int | None]
)


def _examples(
    session: Session,
    kind: str,
    at: Moment,
    *conditions: ColumnExpressionArgument[bool],
    detail: str = "",
    last_first: bool = False,
    of_events: bool = False,
    usual: Mapping[str, int] | None = None,
) -> Iterator[Condition]:
    """Return a condition for each instance that has such rows, with the ids of some.

    at -- when a row became one of these; those with the earliest come first, or with the latest.
    of_events -- rather than of jobs. usual -- by which jobs are overdue.
    """
    group, id_ = (Event.instance, Event.n) if of_events else (JobRow.instance, JobRow.id)
    order = at.desc() if last_first else at.asc()
    # In a function, or SQLite reads all rows there are in the order of their instances.
    alike = func.coalesce(group, "")
    ranked = (
        select(
            group.label("instance"),
            id_.label("id"),
            func.row_number().over(partition_by=alike, order_by=(order, id_)).label("place"),
            func.count().over(partition_by=alike).label("affected"),
            func.max(at).over(partition_by=alike).label("newest"),
        )
        .select_from(Event if of_events else JOBS_AND_USUAL if usual else JobRow)
        .where(*conditions)
        .subquery()
    )
    first = select(ranked).where(ranked.c.place <= MAX_EXAMPLES)
    rows = session.execute(first.order_by(ranked.c.instance, ranked.c.place), usual)
    for instance, of_instance in groupby(rows, attrgetter("instance")):
        some = list(of_instance)
        ids = tuple(str(row.id) for row in some)
        yield Condition(kind, instance, some[0].affected, detail, ids, some[0].newest)
