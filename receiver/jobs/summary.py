"""How it stands, for the API, the front page, the instances page and the metrics.

What could be many is counted in the transaction that changes it, the rest by an index; so it costs
the same with a million jobs.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    BindParameter,
    Connection,
    and_,
    bindparam,
    func,
    or_,
    select,
)
from sqlalchemy import literal_column as literal
from sqlalchemy.orm import Session

from receiver.database.engine import Database
from receiver.database.lookup import LookUp
from receiver.database.models import (
    IS_UNDER_WAY,
    NOT_A_JOB,
    NUMBER_BITS,
    Count,
    Event,
    Facet,
    JobRow,
    Pace,
    RejectionCount,
    Retention,
    Submission,
)
from receiver.database.models.alarms import NODE_GONE_MS, Alarm, Node
from receiver.database.page import Column, Selection, among, distinct_values
from receiver.jobs.job import FILES_MS, OUTCOMES
from receiver.jobs.public import Time
from receiver.jobs.queries import ENDED, Instances, overdue_jobs
from receiver.lib.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso

Rows: TypeAlias = Callable[[LookUp, Mapping[str, Any]], Sequence[Any]]  # gives a statement's

MAX_COUNTED = 100  # overdue jobs that the front page counts; beyond, it says that there are more


class Summary(Struct, kw_only=True):
    """What an operator looks at first. `queued_at_vendor` is null until the vendor was asked."""

    jobs: dict[str, int]
    overdue: int
    expiring_24h: int
    rejections_1h: int
    lost_callbacks: int
    queued_at_vendor: int | None
    unreadable_events: int
    unclear_submissions: int
    last_callback_at: Time | None


class Rejecting(Struct, frozen=True):
    """How an instance's deliveries are rejected since its last callback. since -- ms."""

    since: int
    count: int


class Overview(Struct, kw_only=True):
    """What the front page shows; times are ms.

    summary -- its overdue jobs are counted up to MAX_COUNTED + 1, and last_callback_at is left out.
    ended -- {(start of stretch, outcome): n}. last_callbacks, rejecting -- by instance, of all of
    them. failing_since -- as in `failing_since`. open_alarms -- how many the token sees.
    """

    summary: Summary
    ended: Mapping[tuple[int, str], int]
    last_callbacks: Mapping[str, int]
    rejecting: Mapping[str, Rejecting]
    failing_since: int | None
    open_alarms: int


class Gauges(Struct, kw_only=True):
    """What the metrics show; times are ms.

    oldest_under_way -- when the oldest job that is under way was first heard of. alarms -- how many
    are open, by kind.
    """

    summary: Summary
    oldest_under_way: int | None
    last_callbacks: Mapping[str, int]
    alarms: Mapping[str, int]


def summary(database: Database, visible: Instances, now: int, overdue_after: int) -> Summary:
    """Count what an operator looks at first. overdue_after -- ms."""
    sqlite = database.is_sqlite
    return _summary(_read_counts(database.rows, visible, now, overdue_after, sqlite=sqlite))


def overview(  # noqa: PLR0917 - what the page asks
    connection: Connection,
    visible: Instances,
    now: int,
    overdue_after: int,
    chart_start: int,
    bar_ms: int,
    rejected_within: int,
) -> Overview:
    """Read the front page.

    chart_start -- ms. bar_ms -- what one bar of the chart covers: whole hours. rejected_within --
    how far back rejections count, ms.
    """
    rows, sqlite = _rows_in(connection), connection.dialect.name == "sqlite"
    counts = _read_counts(rows, visible, now, overdue_after, sqlite=sqlite, front=True)
    # The counts name the hour in which the files expire, whole days after the end.
    hours = {"hour": (chart_start + FILES_MS) // HOUR_MS, "hours": bar_ms // HOUR_MS}
    ended = rows(_ended(_Scope(visible is not None, sqlite)), {**hours, **_named(visible)})
    last = last_callbacks(connection)
    return Overview(
        summary=_summary(counts),
        ended={(bar * bar_ms - FILES_MS, outcome): int(n) for outcome, bar, n in ended},
        last_callbacks=last,
        rejecting=rejecting(connection, now - rejected_within, last),
        failing_since=counts["failing_since"],
        open_alarms=counts["open_alarms"],
    )


def gauges(database: Database, now: int, overdue_after: int) -> Gauges:
    """Read what the metrics show, of all instances."""
    sqlite = database.is_sqlite
    with database.snapshot() as connection:
        rows = _rows_in(connection)
        return Gauges(
            summary=_summary(_read_counts(rows, None, now, overdue_after, sqlite=sqlite)),
            oldest_under_way=_OLDEST.fetch(connection)[0][0],
            last_callbacks=last_callbacks(connection),
            alarms={kind: int(n) for kind, n in _OPEN_ALARMS.fetch(connection)},
        )


def last_callbacks(connection: Connection) -> dict[str, int]:
    """Return when each instance's newest event was received, ms."""
    return {name: n >> NUMBER_BITS for name, n in _LAST_CALLBACKS.fetch(connection)}


def rejecting(connection: Connection, since: int, last: Mapping[str, int]) -> dict[str, Rejecting]:
    """Return which instances' deliveries are rejected since their last callback.

    since -- how far to look back, ms. last -- as `last_callbacks` has it.
    """
    rejecting: dict[str, Rejecting] = {}
    for name, minute, count in _REJECTED.fetch(connection, {"since": since // MINUTE_MS}):
        if minute * MINUTE_MS > last.get(name, 0):
            before = rejecting.get(name, Rejecting(minute * MINUTE_MS, 0))
            rejecting[name] = Rejecting(before.since, before.count + int(count))
    return rejecting


def failing_since(connection: Connection, now: int) -> int | None:
    """Return since when a process that is alive answers callbacks with errors, ms."""
    ((since,),) = _FAILING.fetch(connection, {"now": now})
    return since  # type: ignore[no-any-return]


def rejections_by_reason(session: Session, visible: Instances, now: int) -> dict[str, int]:
    """Count the rejections of the last hour, as Summary does, by reason; most frequent first."""
    total = func.sum(RejectionCount.count)
    where = [RejectionCount.minute > (now - HOUR_MS) // MINUTE_MS]
    if visible is not None:
        where.append(RejectionCount.instance.in_(sorted(visible)))
    grouped = select(RejectionCount.reason, total).where(*where).group_by(RejectionCount.reason)
    rows = session.execute(grouped.order_by(total.desc(), RejectionCount.reason))
    return {reason: int(n) for reason, n in rows}


def vendor_health(session: Session) -> dict[str, Pace]:
    """Return how requests to the vendor went lately, by instance."""
    return {row.instance: row for row in session.scalars(select(Pace))}


def under_way(session: Session, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Count the jobs under way of instances, and return since when the oldest is, ms."""
    statement = (
        select(Facet.instance, func.count(), func.min(JobRow.first_seen_at))
        .join(JobRow, JobRow.facet == Facet.facet)
        .where(IS_UNDER_WAY, Facet.instance.in_(names))
        .group_by(Facet.instance)
    )
    return {name: (count, int(oldest)) for name, count, oldest in session.execute(statement)}


def _rows_in(connection: Connection) -> Rows:
    return lambda statement, values: statement.fetch(connection, values)


def _named(visible: Instances) -> dict[str, list[str]]:
    return {"visible": sorted(visible or ())}


def _read_counts(
    rows: Rows,
    visible: Instances,
    now: int,
    overdue_after: int,
    *,
    sqlite: bool,
    front: bool = False,
) -> dict[str, Any]:
    """Return what `_counts` selects, by name."""
    first, end = -(-(now + 1) // HOUR_MS), (now + DAY_MS) // HOUR_MS  # whole hours
    values = {
        "now": now,
        "overdue_after": overdue_after,
        "first": first,
        "end": end,
        "first_ms": first * HOUR_MS,
        "end_ms": end * HOUR_MS,
        "tomorrow": now + DAY_MS,
        "hour_ago": (now - HOUR_MS) // MINUTE_MS,
        "max_overdue": MAX_COUNTED + 1,
        **_named(visible),
    }
    names, statement = _counts(_Scope(visible is not None, sqlite), front=front)
    (row,) = rows(statement, values)
    return dict(zip(names, row, strict=True))


def _summary(counts: Mapping[str, Any]) -> Summary:
    newest, queued = counts.get("newest"), counts["queued"]
    return Summary(
        jobs={outcome: int(counts[outcome] or 0) for outcome in OUTCOMES},
        overdue=counts["overdue"],
        expiring_24h=int(counts["whole"] or 0) + counts["begun"] + counts["ending"],
        rejections_1h=int(counts["rejections"] or 0),
        lost_callbacks=int(counts["lost_callbacks"] or 0),
        queued_at_vendor=None if queued is None else int(queued),
        unclear_submissions=counts["unclear"],
        unreadable_events=counts["unreadable"],
        last_callback_at=iso(None if newest is None else newest >> NUMBER_BITS),
    )


class _Scope(Struct, frozen=True):
    """Whether a statement is limited to some instances, and for which database it is made."""

    limited: bool
    sqlite: bool

    def of(self, column: Column) -> list[Column]:
        return [among(column, "visible", sqlite=self.sqlite)] if self.limited else []


def _number(name: str) -> BindParameter[int]:
    return bindparam(name, type_=BigInteger)


@lru_cache
def _ended(scope: _Scope) -> LookUp:
    stretch = (Count.hour // _number("hours")).label("stretch")
    hours = select(Count.facet, stretch, func.sum(Count.n).label("n"))
    ended = hours.where(Count.hour >= _number("hour")).group_by(Count.facet, stretch).subquery()
    jobs = select(Facet.outcome, ended.c.stretch, func.sum(ended.c.n)).join_from(
        ended, Facet, Facet.facet == ended.c.facet
    )
    outcomes: list[Column] = [literal(f"'{outcome}'") for outcome in ENDED]
    some = jobs.where(Facet.outcome.in_(outcomes), *scope.of(Facet.instance))
    return LookUp(some.group_by(Facet.outcome, ended.c.stretch))


@lru_cache
def _counts(scope: _Scope, *, front: bool) -> tuple[Sequence[str], LookUp]:
    """Select all counts as one row. front -- as the front page has them."""
    now = _number("now")
    expires, hour = JobRow.files_expire_at, Count.hour
    instance = JobRow.instance.concat(literal("''"))  # which has an index, but not this one
    expiring = select(func.count()).select_from(JobRow).where(*scope.of(instance))
    whole = select(func.sum(Count.n)).where(hour >= _number("first"), hour < _number("end"))
    if scope.limited:
        whole = whole.join(Facet, Facet.facet == Count.facet).where(*scope.of(Facet.instance))
    left = select(Retention.events_before * literal(str(1 << NUMBER_BITS))).scalar_subquery()
    unreadable = select(func.count()).where(Event.kind == literal("'unreadable'"))
    forgotten = and_(Submission.state == "sending", Submission.at < now - _number("overdue_after"))
    unclear = select(func.count()).where(or_(Submission.state == "unclear", forgotten))
    numbers = {
        "overdue": _overdue(scope, capped=front),
        "whole": whole,
        "begun": expiring.where(expires > now, expires < _number("first_ms")),
        "ending": expiring.where(expires >= _number("end_ms"), expires < _number("tomorrow")),
        "rejections": select(func.sum(RejectionCount.count)).where(
            RejectionCount.minute > _number("hour_ago"), *scope.of(RejectionCount.instance)
        ),
        "queued": select(func.sum(Pace.queued)).where(*scope.of(Pace.instance)),
        "unclear": unclear.where(*scope.of(Submission.instance)),
        "unreadable": unreadable.where(
            literal(NOT_A_JOB), Event.n >= left, *scope.of(Event.instance)
        ),
    }
    if front:
        is_open = Alarm.cleared_at.is_(None), *scope.of(Alarm.instance)
        numbers |= {
            "failing_since": _FAILING_SINCE,
            "open_alarms": select(func.count()).where(*is_open),
        }
    else:
        newest = select(func.max(_NEWEST)).select_from(_WITH_EVENTS)
        numbers["newest"] = newest.where(*scope.of(_WITH_EVENTS.c.value))
    jobs = _by_outcome(scope).subquery("by_outcome")
    columns = [number.scalar_subquery().label(name) for name, number in numbers.items()]
    return [*jobs.c.keys(), *numbers], LookUp(select(*jobs.c, *columns))


def _by_outcome(scope: _Scope) -> Selection:
    total, is_of = func.sum(Count.n), Facet.outcome
    outcomes = [total.filter(is_of == literal(f"'{it}'")).label(it) for it in OUTCOMES]
    lost = total.filter(Facet.callback_lost).label("lost_callbacks")
    jobs = select(*outcomes, lost).join_from(Count, Facet, Facet.facet == Count.facet)
    return jobs.where(Count.hour == literal("0"), *scope.of(Facet.instance))


def _overdue(scope: _Scope, *, capped: bool) -> Selection:
    late = overdue_jobs(literal("1")).where(*scope.of(Facet.instance))
    some = late.limit(_number("max_overdue")) if capped else late
    return select(func.count()).select_from(some.subquery("late"))


_WITH_EVENTS = distinct_values(Event.instance).subquery("with_events")
_OF_ONE = select(func.max(Event.n)).where(Event.instance == _WITH_EVENTS.c.value)
_NEWEST = _OF_ONE.correlate(_WITH_EVENTS).scalar_subquery()
_LAST_CALLBACKS = LookUp(select(_WITH_EVENTS.c.value, _NEWEST))
_REJECTED = LookUp(
    select(RejectionCount.instance, RejectionCount.minute, func.sum(RejectionCount.count))
    .where(RejectionCount.minute >= _number("since"), RejectionCount.instance != literal("''"))
    .group_by(RejectionCount.instance, RejectionCount.minute)
    .order_by(RejectionCount.minute)
)
_OPEN_ALARMS = LookUp(
    select(Alarm.kind, func.count()).where(Alarm.cleared_at.is_(None)).group_by(Alarm.kind)
)
# Of processes that are gone, nobody knows how they would answer.
_FAILING_SINCE = select(func.min(Node.failing_since)).where(
    Node.at > _number("now") - literal(str(NODE_GONE_MS))
)
_FAILING = LookUp(_FAILING_SINCE)
_FIRST = select(func.min(JobRow.first_seen_at)).where(IS_UNDER_WAY, JobRow.facet == Facet.facet)
_OLDEST = LookUp(select(func.min(_FIRST.correlate(Facet).scalar_subquery())).select_from(Facet))
