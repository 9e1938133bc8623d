"""The job list as people page through it: what needs a look, and back towards newer jobs.

What needs a look is few, and found by its own index; other filters then leave out some of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from receiver.storage.followups import UNDER_WAY, is_overdue
from receiver.storage.models import JobRow
from receiver.storage.queries import DAY_MS, Instances, JobFilter

Look: TypeAlias = Literal["overdue", "expiring", "lost"]
Place: TypeAlias = tuple[int, str, str]  # (updated_at, id, instance)


@dataclass(frozen=True, slots=True)
class Watch:
    """What needs a look: overdue or expiring at `now`, ms, or the callback was lost.

    overdue_after -- ms, where an object's usual time is not known.
    """

    look: Look
    now: int
    overdue_after: int

    def conditions(self) -> list[Any]:
        """Say it in SQL."""
        if self.look == "overdue":
            return [JobRow.outcome.in_(UNDER_WAY), is_overdue(self.now, self.overdue_after)]
        if self.look == "expiring":
            return [
                JobRow.files_expire_at > self.now,
                JobRow.files_expire_at < self.now + DAY_MS,
            ]
        return [JobRow.callback_lost]


def job_row(session: Session, id_: str, instance: str) -> JobRow | None:
    """Give all that is kept of a job."""
    return session.get(JobRow, (id_, instance))


def watched(
    session: Session,
    watch: Watch,
    wanted: JobFilter,
    visible: Instances,
    *,
    limit: int,
    after: Place | None,
) -> Sequence[JobRow]:
    """Give the jobs that need a look, newest change first, from behind `after`."""
    statement = select(JobRow).where(*watch.conditions(), *_conditions(wanted, visible))
    if after is not None:
        statement = statement.where(tuple_(*_ORDER) < tuple_(*after))
    newest = statement.order_by(*(column.desc() for column in _ORDER))
    return session.scalars(newest.limit(limit)).all()


def newer(
    session: Session,
    watch: Watch | None,
    wanted: JobFilter,
    visible: Instances,
    *,
    limit: int,
    before: Place,
) -> Sequence[JobRow]:
    """Give the jobs that changed next after `before`, newest change first."""
    watching = watch.conditions() if watch else []
    statement = (
        select(JobRow)
        .where(*watching, *_conditions(wanted, visible), tuple_(*_ORDER) > tuple_(*before))
        .order_by(*_ORDER)
        .limit(limit)
    )
    return session.scalars(statement).all()[::-1]


def among(column: Any, values: Sequence[str] | frozenset[str] | None) -> list[Any]:  # noqa: ANN401
    """Say that a column holds one of the values; None, or an empty list, leaves it open."""
    if values or values == frozenset():
        return [column.in_(sorted(values))]
    return []


def _conditions(wanted: JobFilter, visible: Instances) -> list[Any]:
    found = [
        *among(JobRow.instance, wanted.instances),
        *among(JobRow.status, wanted.statuses),
        *among(JobRow.outcome, wanted.outcomes),
        *among(JobRow.object, wanted.objects),
        *among(JobRow.direction, wanted.directions),
        *among(JobRow.instance, visible),
    ]
    if wanted.updated_after is not None:
        found.append(JobRow.updated_at > wanted.updated_after)
    if wanted.updated_before is not None:
        found.append(JobRow.updated_at < wanted.updated_before)
    if wanted.expires_before is not None:
        found.append(JobRow.files_expire_at < wanted.expires_before)
    if wanted.text:
        found.append(JobRow.id.contains(wanted.text, autoescape=True))
    return found


_ORDER = (JobRow.updated_at, JobRow.id, JobRow.instance)
