"""The job list as people page through it: what needs a look, and back towards newer jobs.

What needs a look is found by its own index; other filters then leave out some of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast

from sqlalchemy import (
    String,
    Table,
    bindparam,
    literal_column,
    select,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.orm import Session

from receiver.database.models import CALLBACK_LOST, IS_UNDER_WAY, JobRow
from receiver.database.reading import Contains, Rows, Statement
from receiver.jobs.job import UNDER_WAY
from receiver.jobs.lists import JOB_COLUMNS, JOBS, JobLine, wanted_jobs
from receiver.jobs.overview import number, overdue
from receiver.jobs.queries import Instances, JobFilter
from receiver.lib.clock import DAY_MS
from receiver.reconcile.followups import is_overdue

Look: TypeAlias = Literal["overdue", "expiring", "lost"]
Place: TypeAlias = tuple[int, str, str]  # (time, id, instance) of a row, by which lists are sorted


_JOB = cast("Table", JobRow.__table__).c
_ORDERS: dict[Look, list[Any]] = {
    "overdue": [_JOB.first_seen_at, _JOB.id, _JOB.instance],
    "expiring": [_JOB.files_expire_at, _JOB.id, _JOB.instance],
    "lost": [_JOB.updated_at.desc(), _JOB.id.desc(), _JOB.instance.desc()],
}


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
            return [IS_UNDER_WAY, is_overdue(self.now, self.overdue_after)]
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
    read: Rows,
    watch: Watch,
    wanted: JobFilter,
    visible: Instances,
    *,
    limit: int,
    after: Place | None,
) -> list[JobLine]:
    """Give the jobs that need a look, most pressing first, from behind `after`."""
    asked = wanted_jobs(wanted, visible, after)
    if not all(asked.facets.values()):
        return []
    facets = {name: sorted(set(found)) for name, found in asked.facets.items()}
    values: dict[str, Any] = {
        **asked.bounds,
        "text": asked.text,
        "now": watch.now,
        "overdue_after": watch.overdue_after,
        "before": watch.now + DAY_MS,
    }
    for name, found in [*facets.items(), ("after", after or ())]:
        values |= {f"{name}_{n}": value for n, value in enumerate(found)}
    shape = _Shape(
        look=watch.look,
        facets=tuple((name, len(found)) for name, found in facets.items()),
        bounds=tuple(asked.bounds),
        text=bool(asked.text),
        after=after is not None,
        limit=limit,
    )
    return [JobLine(*row) for row in read(_watched(shape), values)]


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a statement depends on, but for the values."""

    look: Look
    facets: tuple[tuple[str, int], ...]  # each with the number of its values
    bounds: tuple[str, ...]
    text: bool
    after: bool
    limit: int


@lru_cache(maxsize=128)
def _watched(shape: _Shape) -> Statement:
    """Read an index in its order, or two of them that are merged: what is under way has two."""
    order = _ORDERS[shape.look]
    most: Any = literal_column(str(shape.limit))
    none: Any = literal_column("0")
    ways = []
    for mine in _looked_for(shape.look):
        way = select(*JOB_COLUMNS).where(*mine, *_filtered(shape))
        if shape.after:
            way = way.where(_behind(shape.look))
        ways.append(way.order_by(*order).limit(most).offset(none))
    if len(ways) == 1:
        return Statement(ways[0], many=True)
    merged = union_all(*(select(way.subquery()) for way in ways))
    named: list[Any] = [literal_column(column.name) for column in order]
    return Statement(merged.order_by(*named).limit(most).offset(none), many=True)


def _looked_for(look: Look) -> list[list[Any]]:
    if look == "overdue":
        late = overdue().whereclause
        return [[late, JobRow.outcome == literal_column(f"'{outcome}'")] for outcome in UNDER_WAY]
    if look == "expiring":
        expires = JobRow.files_expire_at
        return [[expires > number("now"), expires < number("before")]]
    return [[text(CALLBACK_LOST)]]


def _filtered(shape: _Shape) -> list[Any]:
    """What else is asked, said so that no index of it looks useful."""
    found: list[Any] = []
    for name, count in shape.facets:
        among = [bindparam(f"{name}_{n}", type_=String) for n in range(count)]
        found.append(JOBS.facets[name].concat(literal_column("''")).in_(among))
    for name in shape.bounds:
        column, lower = JOBS.bounds[name]
        shown, value = column + literal_column("0"), number(name)
        found.append(shown > value if lower else shown < value)
    if shape.text:
        found.append(Contains(JobRow.id, bindparam("text", type_=String)))
    return found


def _behind(look: Look) -> Any:  # noqa: ANN401 - an SQL expression
    columns = [getattr(column, "element", column) for column in _ORDERS[look]]
    here = tuple_(*columns)
    there = tuple_(*(bindparam(f"after_{n}", type_=c.type) for n, c in enumerate(columns)))
    return here < there if look == "lost" else here > there


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
    conditions = [*_conditions(wanted, visible), *(watch.conditions() if watch else ())]
    time = watch.sorted_by if watch else "updated_at"
    order = (getattr(JobRow, time), JobRow.id, JobRow.instance)
    here, there = tuple_(*order), tuple_(*before)
    newest_first = time == "updated_at"
    conditions.append(here > there if newest_first else here < there)
    ordered = order if newest_first else [column.desc() for column in order]
    statement = select(JobRow).where(*conditions).order_by(*ordered).limit(limit)
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
