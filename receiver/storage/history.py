"""What the overview and the instances page are drawn from. Functions take a Session.

Each question is bounded by an index or by a window, so that it costs the same with a million jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.orm import Session

from receiver.clock import MINUTE_MS
from receiver.jobs import FILES_KEPT_MS
from receiver.storage.models import UNDER_WAY, CounterRow, JobRow, Pace, RejectionCount
from receiver.storage.queries import Instances
from receiver.storage.tally import HOUR_MS, LAST_CALLBACK
from receiver.storage.watching import among

ENDED = ("succeeded", "partial", "failed", "cancelled")
_ENDED = (
    select(CounterRow.measure, CounterRow.bucket, func.sum(CounterRow.n))
    .where(CounterRow.measure.in_(ENDED), CounterRow.bucket >= bindparam("first"))
    .group_by(CounterRow.measure, CounterRow.bucket)
)
_LAST = (
    select(CounterRow.instance, func.max(CounterRow.n))
    .where(CounterRow.measure == LAST_CALLBACK, CounterRow.bucket == 0)
    .group_by(CounterRow.instance)
)


@dataclass(frozen=True, slots=True)
class Refusing:
    """An instance whose deliveries are refused since it was last heard of. since -- ms."""

    since: int
    count: int


@dataclass(frozen=True, slots=True)
class Vendor:
    """How the vendor held up when it was last asked for an instance; times are ms."""

    failures: int
    blocked_until: int
    queued: int | None
    queued_asked_at: int | None


def outcomes_over_time(
    session: Session, visible: Instances, since: int, width: int
) -> dict[tuple[int, str], int]:
    """Count the jobs that ended in each stretch of `width` ms: {(start of stretch, outcome): n}.

    since, width -- whole hours; counters.KEPT_HOURS is how far it can be looked back.
    """
    hours = _ENDED if visible is None else _ENDED.where(CounterRow.instance.in_(sorted(visible)))
    found: dict[tuple[int, str], int] = {}
    # The counters name the hour in which the files expire.
    first = (since + FILES_KEPT_MS) // HOUR_MS
    for outcome, hour, n in session.execute(hours, {"first": first}):
        ended = hour * HOUR_MS - FILES_KEPT_MS
        place = ended - ended % width, outcome
        found[place] = found.get(place, 0) + int(n)
    return found


def last_callbacks(session: Session) -> dict[str, int]:
    """Tell when each instance's latest callback was taken, ms."""
    return {name: int(at) for name, at in session.execute(_LAST)}


def refusing(session: Session, last: Mapping[str, int], since: int) -> dict[str, Refusing]:
    """Tell which instances' deliveries are refused since they were last heard of.

    last -- as `last_callbacks` gives it. since -- ms; what was before is over in any case.
    """
    minutes = (
        select(RejectionCount.instance, RejectionCount.minute, func.sum(RejectionCount.count))
        .where(RejectionCount.minute >= since // MINUTE_MS, RejectionCount.instance != "")
        .group_by(RejectionCount.instance, RejectionCount.minute)
        .order_by(RejectionCount.minute)
    )
    found: dict[str, Refusing] = {}
    for name, minute, count in session.execute(minutes):
        if minute * MINUTE_MS > last.get(name, 0):
            before = found.get(name, Refusing(minute * MINUTE_MS, 0))
            found[name] = Refusing(before.since, before.count + int(count))
    return found


def refusals(session: Session, visible: Instances, since: int) -> list[tuple[str, bool, int]]:
    """Count what was refused since then (ms): (reason, was the instance known, how many)."""
    known = RejectionCount.instance != ""
    statement = (
        select(RejectionCount.reason, known, func.sum(RejectionCount.count))
        .where(RejectionCount.minute > since // MINUTE_MS, *among(RejectionCount.instance, visible))
        .group_by(RejectionCount.reason, known)
        .order_by(func.sum(RejectionCount.count).desc(), RejectionCount.reason)
    )
    return [(reason, bool(named), int(n)) for reason, named, n in session.execute(statement)]


def vendors(session: Session) -> dict[str, Vendor]:
    """Tell how the vendor held up, by instance."""
    return {
        row.instance: Vendor(row.failures, row.blocked_until, row.queued, row.queued_asked_at)
        for row in session.scalars(select(Pace))
    }


def under_way(session: Session, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Count the jobs under way of instances, and tell since when the oldest is, ms."""
    statement = (
        select(JobRow.instance, func.count(), func.min(JobRow.first_seen_at))
        .where(text(UNDER_WAY), JobRow.instance.in_(names))
        .group_by(JobRow.instance)
    )
    return {name: (count, int(oldest)) for name, count, oldest in session.execute(statement)}
