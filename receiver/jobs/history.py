"""What the overview and the instances page are drawn from.

Each question is bounded by an index or by a window, so that it costs the same with a million jobs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, literal_column, select
from sqlalchemy.orm import Session

from receiver.alarms.conditions import NODE_GONE_MS
from receiver.database.alarm_models import Node
from receiver.database.models import IS_UNDER_WAY, CounterRow, JobRow, Pace, RejectionCount
from receiver.database.reading import Rows, Statement
from receiver.jobs.overview import number, one_of
from receiver.jobs.queries import Instances
from receiver.jobs.tally import LAST_CALLBACK
from receiver.jobs.watching import among
from receiver.lib.clock import MINUTE_MS

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


def last_callbacks(read: Rows) -> dict[str, int]:
    """Tell when each instance's latest callback was taken, ms."""
    return {name: int(at) for name, at in read(_LAST, {})}


def refused_since(read: Rows, since: int) -> Sequence[Sequence[Any]]:
    """Give what was refused since then (ms): (instance, minute, how many), oldest first."""
    return read(_REFUSED, {"since": since // MINUTE_MS})


def refusing(refused: Iterable[Sequence[Any]], last: Mapping[str, int]) -> dict[str, Refusing]:
    """Tell which instances' deliveries are refused since they were last heard of.

    refused -- as `refused_since` gives it. last -- as `last_callbacks` does.
    """
    found: dict[str, Refusing] = {}
    for name, minute, count in refused:
        if minute * MINUTE_MS > last.get(name, 0):
            before = found.get(name, Refusing(minute * MINUTE_MS, 0))
            found[name] = Refusing(before.since, before.count + int(count))
    return found


def failing_since(read: Rows, now: int) -> int | None:
    """Tell since when a process that is alive answers callbacks with errors, ms."""
    ((since,),) = read(_FAILING, {"now": now})
    return None if since is None else int(since)


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
        .where(IS_UNDER_WAY, JobRow.instance.in_(names))
        .group_by(JobRow.instance)
    )
    return {name: (count, int(oldest)) for name, count, oldest in session.execute(statement)}


LAST = (
    select(CounterRow.instance, func.max(CounterRow.n))
    .where(one_of(CounterRow.measure, (LAST_CALLBACK,)), CounterRow.bucket == literal_column("0"))
    .group_by(CounterRow.instance)
)
REFUSED = (
    select(RejectionCount.instance, RejectionCount.minute, func.sum(RejectionCount.count))
    .where(
        RejectionCount.minute >= number("since"), RejectionCount.instance != literal_column("''")
    )
    .group_by(RejectionCount.instance, RejectionCount.minute)
)
# Of processes that are gone, nobody knows how they would answer.
FAILING = select(func.min(Node.failing_since)).where(
    Node.at > number("now") - literal_column(str(NODE_GONE_MS))
)

_LAST, _FAILING = Statement(LAST), Statement(FAILING)
_REFUSED = Statement(REFUSED.order_by(RejectionCount.minute))
