"""The job list as people page through it: what needs a look, and back towards newer jobs.

What needs a look is found by its own index; other filters then leave out some of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import select, text, tuple_
from sqlalchemy.orm import Session

from receiver.clock import DAY_MS
from receiver.storage.followups import is_overdue
from receiver.storage.models import CALLBACK_LOST, UNDER_WAY, JobRow
from receiver.storage.queries import Instances, JobFilter

Look: TypeAlias = Literal["overdue", "expiring", "lost"]
Place: TypeAlias = tuple[int, str, str]  # (time, id, instance) of a row, by which lists are sorted


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
            return [text(UNDER_WAY), is_overdue(self.now, self.overdue_after)]
        if self.look == "expiring":
            return [
                JobRow.files_expire_at > self.now,
                JobRow.files_expire_at < self.now + DAY_MS,
            ]
        return [text(CALLBACK_LOST)]

    @property
    def sorted_by(self) -> str:
        """The time that matters: what is longest overdue, or expires soonest, comes first."""
        return {"overdue": "first_seen_at", "expiring": "files_expire_at"}.get(
            self.look, "updated_at"
        )


def place(row: Any, watch: Watch | None) -> Place:  # noqa: ANN401 - a row of a job
    """Tell where a job stands in a list."""
    return getattr(row, watch.sorted_by if watch else "updated_at"), row.id, row.instance


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
    """Give the jobs that need a look, most pressing first, from behind `after`."""
    return _page(session, watch, [*_conditions(wanted, visible)], limit, after)


def newer(
    session: Session,
    watch: Watch | None,
    wanted: JobFilter,
    visible: Instances,
    *,
    limit: int,
    before: Place,
) -> Sequence[JobRow]:
    """Give the jobs that stand right before `before`, in the order of the list."""
    found = _page(session, watch, [*_conditions(wanted, visible)], limit, before, back=True)
    return found[::-1]


def _page(
    session: Session,
    watch: Watch | None,
    conditions: list[Any],
    limit: int,
    start: Place | None,
    *,
    back: bool = False,
) -> Sequence[JobRow]:
    time = watch.sorted_by if watch else "updated_at"
    order = (getattr(JobRow, time), JobRow.id, JobRow.instance)
    ascending = (time != "updated_at") != back
    if watch is not None:
        conditions += watch.conditions()
    if start is not None:
        here, there = tuple_(*order), tuple_(*start)
        conditions.append(here > there if ascending else here < there)
    ordered = order if ascending else [column.desc() for column in order]
    statement = select(JobRow).where(*conditions).order_by(*ordered).limit(limit)
    return session.scalars(statement).all()


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
