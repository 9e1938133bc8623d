"""What the overview and the instances page are drawn from.

Each question is bounded by an index or by a window, so that it costs the same with a million jobs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import func, literal_column, select, text
from sqlalchemy.orm import Session

from receiver.clock import HOUR_MS, MINUTE_MS
from receiver.jobs import FILES_KEPT_MS
from receiver.storage.models import UNDER_WAY, CounterRow, Instance, JobRow, Pace, RejectionCount
from receiver.storage.overview import limited, number, one_of, shape_of, values_of
from receiver.storage.queries import Instances
from receiver.storage.reading import Rows, Statement
from receiver.storage.tally import LAST_CALLBACK
from receiver.storage.watching import among

ENDED = ("succeeded", "partial", "failed", "cancelled")


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
    read: Rows, visible: Instances, since: int, width: int
) -> dict[tuple[int, str], int]:
    """Count the jobs that ended in each stretch of `width` ms: {(start of stretch, outcome): n}.

    since, width -- whole hours; counters.KEPT_HOURS is how far it can be looked back.
    """
    found: dict[tuple[int, str], int] = {}
    # The counters name the hour in which the files expire.
    values = {**values_of(visible), "first": (since + FILES_KEPT_MS) // HOUR_MS}
    for outcome, hour, n in read(_ended(shape_of(visible)), values):
        ended = hour * HOUR_MS - FILES_KEPT_MS
        place = ended - ended % width, outcome
        found[place] = found.get(place, 0) + int(n)
    return found


def instance_names(read: Rows) -> list[str]:
    """Name the instances in the database."""
    return [row[0] for row in read(_NAMES, {})]


def last_callbacks(read: Rows) -> dict[str, int]:
    """Tell when each instance's latest callback was taken, ms."""
    return {name: int(at) for name, at in read(_LAST, {})}


def refusing(read: Rows, last: Mapping[str, int], since: int) -> dict[str, Refusing]:
    """Tell which instances' deliveries are refused since they were last heard of.

    last -- as `last_callbacks` gives it. since -- ms; what was before is over in any case.
    """
    found: dict[str, Refusing] = {}
    for name, minute, count in read(_REFUSED, {"since": since // MINUTE_MS}):
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


@lru_cache(maxsize=32)
def _ended(shape: int | None) -> Statement:
    hours = (
        select(CounterRow.measure, CounterRow.bucket, func.sum(CounterRow.n))
        .where(one_of(CounterRow.measure, ENDED), CounterRow.bucket >= number("first"))
        .group_by(CounterRow.measure, CounterRow.bucket)
    )
    return Statement(limited(hours, CounterRow.instance, shape), many=True)


_NAMES = Statement(select(Instance.name).order_by(Instance.name))
_LAST = Statement(
    select(CounterRow.instance, func.max(CounterRow.n))
    .where(one_of(CounterRow.measure, (LAST_CALLBACK,)), CounterRow.bucket == literal_column("0"))
    .group_by(CounterRow.instance)
)
_REFUSED = Statement(
    select(RejectionCount.instance, RejectionCount.minute, func.sum(RejectionCount.count))
    .where(
        RejectionCount.minute >= number("since"), RejectionCount.instance != literal_column("''")
    )
    .group_by(RejectionCount.instance, RejectionCount.minute)
    .order_by(RejectionCount.minute)
)
