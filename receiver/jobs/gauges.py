"""What is measured when metrics are read: numbers that the database has, and no process alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from receiver.database.alarm_models import Alarm
from receiver.database.models import IS_UNDER_WAY, CounterRow, JobRow
from receiver.database.reading import Rows
from receiver.jobs.overview import summary
from receiver.jobs.tally import LAST_CALLBACK


@dataclass(frozen=True, slots=True)
class Gauges:
    """Counts as `overview.summary` has them, and more; times are ms.

    oldest_under_way -- when the oldest job that has not ended was first heard of.
    last_callbacks -- by instance. alarms -- how many are open, by kind.
    """

    summary: dict[str, Any]
    jobs: Mapping[str, float]
    oldest_under_way: int | None
    last_callbacks: dict[str, int]
    alarms: Mapping[str, float]


def gauges(read: Rows, session: Session, now: int, overdue_after: int) -> Gauges:
    """Read all of them."""
    counted = summary(read, None, now, overdue_after)
    under_way = select(func.min(JobRow.first_seen_at)).where(IS_UNDER_WAY)
    last = (
        select(CounterRow.instance, func.max(CounterRow.n))
        .where(CounterRow.measure == LAST_CALLBACK)
        .group_by(CounterRow.instance)
    )
    open_alarms = (
        select(Alarm.kind, func.count()).where(Alarm.cleared_at.is_(None)).group_by(Alarm.kind)
    )
    return Gauges(
        summary=counted,
        jobs=counted["jobs"],
        oldest_under_way=session.scalar(under_way),
        last_callbacks={row[0]: row[1] for row in session.execute(last)},
        alarms={row[0]: row[1] for row in session.execute(open_alarms)},
    )
