"""What is read of jobs: one of them, lists in pages, and what happened to each."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias, cast

from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Table,
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
from receiver.database.models import IS_UNDER_WAY, Facet, JobRow, UsualTime
from receiver.database.page import (
    MAX_TIME,
    MIN_TIME,
    Column,
    Selection,
    among,
    contains,
    hidden,
    page,
    page_values,
)
from receiver.jobs.job import UNDER_WAY, Job, Outcome
from receiver.jobs.projection import MAX_FACET_TEXT
from receiver.lib.clock import DAY_MS

MAX_SORTED = 1_000  # rows that may be sorted instead of being read in order
ENDED: tuple[Outcome, ...] = ("succeeded", "partial", "failed", "cancelled")

Instances: TypeAlias = frozenset[str] | None  # what a token may see; None is all
Show: TypeAlias = Literal["overdue", "expiring", "lost"]
Position: TypeAlias = tuple[int, str, str]  # (time, id, instance) of a job in a list


class Filters(Struct, frozen=True, kw_only=True):
    """Which jobs. An empty sequence or None leaves a filter open; times are ms.

    show -- what needs a look at `now`; overdue_after -- ms, where an object's usual time is not
    known. visible -- the instances that the token reaches.
    """

    instances: Sequence[str] = ()
    statuses: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    objects: Sequence[str] = ()
    directions: Sequence[str] = ()
    updated_after: int | None = None
    updated_before: int | None = None
    expires_before: int | None = None
    text: str | None = None
    file: str | None = None
    show: Show | None = None
    now: int = 0
    overdue_after: int = 0
    visible: Instances = None

    def values(self) -> dict[str, Any]:
        """Return the values of the filters that are set, by the names of their parameters."""
        instances = sorted(reachable(self.instances, self.visible) or ())
        lists: dict[str, Any] = {
            "instance": instances,
            "status": [status[:MAX_FACET_TEXT] for status in self.statuses],
            "outcome": list(self.outcomes),
            "object": [name[:MAX_FACET_TEXT] for name in self.objects],
            "direction": [name[:MAX_FACET_TEXT] for name in self.directions],
            "text": self.text,
            "file": self.file,
        }
        times = {name: getattr(self, name) for name in _BOUNDS}
        values: dict[str, Any] = {name: value for name, value in lists.items() if value}
        values |= {name: value for name, value in times.items() if value is not None}
        if self.show == "lost":
            values["callback_lost"] = [True]
        elif self.show == "overdue":
            values |= {"under_way": list(UNDER_WAY), "now": self.now}
            values |= {"overdue_after": self.overdue_after}
        return values

    def times(self) -> tuple[int, int]:
        """Return the least and the greatest time, by which the list is sorted."""
        if self.show == "expiring":
            return self.now + 1, self.now + DAY_MS - 1
        if self.show == "overdue":
            return MIN_TIME, MAX_TIME
        after, before = self.updated_after, self.updated_before
        lower = MIN_TIME if after is None else after + 1
        return lower, MAX_TIME if before is None else before - 1


class JobRecord(Struct, frozen=True):
    """A job as it is read, in the order of `_with_facets`; times are ms.

    usual_ms -- how long jobs of its object mostly take, where that is known.
    """

    id: str
    instance: str
    job: Job
    learnt_by: Literal["callback", "poll"] | None
    files_expire_at: int | None
    revision: int
    events: int
    first_seen_at: int
    updated_at: int
    polls: int
    errors_at: int | None
    outcome: Outcome
    usual_ms: int | None
    callback_lost: bool

    def overdue_by(self, now: int, overdue_after: int) -> int | None:
        """Return by how much it takes longer than it should, ms; None if it does not.

        overdue_after -- ms, if nothing is usual. IS_LATE says the same to the database.
        """
        late = (
            now - self.first_seen_at - (overdue_after if self.usual_ms is None else self.usual_ms)
        )
        return late if self.outcome in UNDER_WAY and late >= 0 else None


def list_jobs(
    database: Database,
    filters: Filters,
    limit: int,
    after: Position | None = None,
    *,
    before: Position | None = None,
) -> list[JobRecord]:
    """Read jobs, newest change first; with filters.show, most pressing first.

    after -- the position of the last job seen. before -- of the first job seen: read the page right
    before it, in the same order.
    """
    values = filters.values()
    if filters.visible is not None and "instance" not in values:
        return []
    plan = _Plan(
        show=filters.show,
        backwards=before is not None,
        after=(before or after) is not None,
        sqlite=database.is_sqlite,
    )
    with database.snapshot() as connection:
        if _FACETS.keys() & values:
            matching = _matching_facets(frozenset(values).intersection(_FACETS), plan.sqlite)
            facets = matching.fetch(connection, values)
            if not facets:
                return []
            values["facets"] = [facet for facet, _ in facets]
            values["others"] = [facet for facet, other in facets if other]
        few = (
            "expires_before" in values and plan.show not in _TIMES and _are_few(connection, values)
        )
        names = frozenset(name for name, value in values.items() if value != [])
        lower, upper = filters.times()
        values |= page_values(before or after, lower=lower, upper=upper, ascending=plan.ascending)
        rows = _jobs(limit, plan, names, few=few).fetch(connection, values)
    records = [_record(row) for row in rows]
    return records[::-1] if plan.backwards else records


def position_of(record: JobRecord, show: Show | None = None) -> Position:
    """Return a job's position in a list: what the list is sorted by."""
    time = getattr(record, _TIMES.get(show, "updated_at"))
    return time, record.id, record.instance


def find_jobs(
    database: Database, id_: str, instance: str | None = None, visible: Instances = None
) -> list[JobRecord]:
    """Read the jobs of that id, one for each instance that has it, or of the instance named."""
    names = reachable([] if instance is None else [instance], visible)
    if not id_.isascii() or "\0" in id_ or names == frozenset():
        return []
    records = map(_record, database.rows(_ANYWHERE, {"id": id_}))
    return [record for record in records if names is None or record.instance in names]


def get_job(connection: Connection, id_: str, instance: str) -> JobRecord | None:
    """Read a job as it is in this transaction."""
    rows = _THE_ONE.fetch(connection, {"id": id_, "instance": instance})
    return _record(rows[0]) if rows else None


def reachable(instances: Sequence[str], visible: Instances) -> Instances:
    """Return the instances asked for, or all if none is, as far as the token sees them."""
    if not instances:
        return visible
    return frozenset(instances) if visible is None else visible.intersection(instances)


def open_jobs(session: Session, instance: str, ids: Sequence[str]) -> dict[str, Job]:
    """Return by id those of the ids that an instance knows and that were not closed as lost."""
    jobs = select(JobRow.id, JobRow.registers).where(
        JobRow.instance == instance, JobRow.id.in_(ids), JobRow.closed_at.is_(None)
    )
    return {id_: Job.decode(registers) for id_, registers in session.execute(jobs)}


def overdue_jobs(*columns: Column) -> Selection:
    """Select the jobs under way for longer than those of their object usually are.

    Asks for `now` and `overdue_after`, ms, the latter where the usual time is not known.
    """
    return select(*columns).select_from(JOBS_AND_USUAL).where(*IS_OVERDUE)


def _seen_before(facet: Column) -> Column:
    """Return the time before which jobs of a facet that are overdue were first seen."""
    usual = select(UsualTime.ms).join_from(Facet, UsualTime, _IS_USUAL)
    of_facet = usual.where(Facet.facet == facet).correlate_except(Facet, UsualTime)
    return _NOW - func.coalesce(of_facet.scalar_subquery(), _OVERDUE_AFTER)


class _Plan(Struct, frozen=True, kw_only=True):
    """How a list is read."""

    show: Show | None
    backwards: bool
    after: bool
    sqlite: bool

    @property
    def ascending(self) -> bool:
        """Whether the earliest time comes first."""
        return (self.show in _TIMES) != self.backwards


_FACETS = {
    "instance": Facet.instance,
    "status": Facet.status,
    "outcome": Facet.outcome,
    "object": Facet.object,
    "direction": Facet.direction,
    "under_way": Facet.outcome,
    "callback_lost": Facet.callback_lost,
}
# Where a job's registers hold its file, and what a facet does not that stands for many.
_REGISTERS = {"status": (0, 0, 4), "object": (3, 1), "direction": (4, 1), "file": (5, 1)}
_BOUNDS = {
    "updated_after": JobRow.updated_at,
    "updated_before": JobRow.updated_at,
    "expires_before": JobRow.files_expire_at,
}
_IS_USUAL = and_(
    UsualTime.instance == Facet.instance,
    UsualTime.object == func.coalesce(Facet.object, literal("''")),
)
_TIMES: dict[Show | None, str] = {"overdue": "first_seen_at", "expiring": "files_expire_at"}
_JOBS = cast("Table", JobRow.__table__)
_NOW = bindparam("now", type_=JobRow.updated_at.type)
_OVERDUE_AFTER = bindparam("overdue_after", type_=JobRow.updated_at.type)
_COLUMNS = (
    JobRow.id,
    JobRow.instance,
    JobRow.registers,
    JobRow.learnt_by,
    JobRow.files_expire_at,
    JobRow.revision,
    JobRow.events,
    JobRow.first_seen_at,
    JobRow.updated_at,
    JobRow.polls,
    JobRow.errors_at,
)


@lru_cache
def _matching_facets(names: frozenset[str], sqlite: bool) -> LookUp:
    """Select the facets whose jobs may match."""
    where = []
    for name in sorted(names):
        match = among(_FACETS[name], name, sqlite=sqlite)
        where.append(or_(Facet.other, match) if name in _REGISTERS else match)
    return LookUp(select(Facet.facet, Facet.other).where(*where))


def _are_few(connection: Connection, values: dict[str, Any]) -> bool:
    ((number,),) = _EXPIRING.fetch(connection, values)
    return bool(number < MAX_SORTED)


@lru_cache(maxsize=256)
def _jobs(limit: int, plan: _Plan, names: frozenset[str], *, few: bool) -> LookUp:
    """Make the statement of a page. few -- whether so few expire in time that they are sorted."""
    name = _TIMES.get(plan.show, "updated_at")
    time = getattr(JobRow, name)
    where = _conditions(plan, names, few=few)
    ranges = None
    if "facets" in names and not few and plan.show != "expiring":
        ranges = JobRow.facet, "facets"
    elif "facets" in names:
        where.append(among(hidden(JobRow.facet), "facets", sqlite=plan.sqlite))
    keys = page(
        limit,
        [hidden(time).label(name) if few else time, JobRow.id, JobRow.instance],
        where,
        ranges,
        after=plan.after,
        ascending=plan.ascending,
        sqlite=plan.sqlite,
        upper_of=_seen_before if plan.show == "overdue" else None,
    ).subquery("page")
    # What the page is found by is in the index; the rows are read for what was found.
    same = and_(_JOBS.c.id == keys.c.id, _JOBS.c.instance == keys.c.instance)
    by = [keys.c[name], keys.c.id, keys.c.instance]
    sorted_by = [column if plan.ascending else column.desc() for column in by]
    return LookUp(_with_facets(keys.join(_JOBS, same)).order_by(*sorted_by))


def _conditions(plan: _Plan, names: frozenset[str], *, few: bool) -> list[Any]:
    """Return the conditions besides bounds of the time by which the list is sorted."""
    where: list[Any] = []
    if plan.show == "overdue":
        where.append(IS_UNDER_WAY)
    for name in sorted(_BOUNDS.keys() & names):
        column = _BOUNDS[name]
        if name != "expires_before" and plan.show not in _TIMES:
            continue
        # No other index shall look useful than that by which the page is read.
        operand: Column = column if few else hidden(column)
        bound = bindparam(name, type_=column.type)
        where.append(operand > bound if name.endswith("after") else operand < bound)
    texts: dict[str, Column] = {"text": JobRow.id, "file": register("file", sqlite=plan.sqlite)}
    where += [contains(texts[n], n, sqlite=plan.sqlite) for n in sorted(texts.keys() & names)]
    if "others" in names:
        for name in sorted(_REGISTERS.keys() & _FACETS.keys() & names):
            of_many = among(hidden(JobRow.facet), "others", sqlite=plan.sqlite)
            value = register(name, sqlite=plan.sqlite)
            where.append(or_(~of_many, among(value, name, sqlite=plan.sqlite)))
    return where


def register(name: str, *, sqlite: bool) -> Column:
    """Read a text of a job's registers, cut as facets' texts are."""
    place = _REGISTERS[name]
    if sqlite:
        steps = "".join(f"[{n}]" for n in place)
        text = f"json_extract(jobs.registers, '${steps}')"
    else:
        text = f"(jobs.registers::json #>> '{{{','.join(map(str, place))}}}')"
    value: ColumnElement[str] = literal(text)
    return func.substr(value, literal("1"), literal(str(MAX_FACET_TEXT)), type_=Facet.status.type)


def _with_facets(jobs: FromClause) -> Selection:
    """Select jobs with their facets and usual times. jobs -- the table, joined or not."""
    of_facet = jobs.join(Facet, Facet.facet == _JOBS.c.facet)
    columns = *_COLUMNS, Facet.outcome, UsualTime.ms.label("usual_ms"), Facet.callback_lost
    return select(*columns).select_from(of_facet.outerjoin(UsualTime, _IS_USUAL))


def _record(row: Sequence[Any]) -> JobRecord:
    # By position: `_asdict` took a third of what a row of a page costs.
    values = [*row]
    values[2], values[-1] = Job.decode(values[2]), bool(values[-1])
    return JobRecord(*values)


# Joined so that the index of what is under way serves, which begins with the facet.
JOBS_AND_USUAL = (
    cast("Table", Facet.__table__)
    .outerjoin(UsualTime, _IS_USUAL)
    .join(JobRow, JobRow.facet == Facet.facet)
)
HAS_NO_END = Facet.outcome.in_([literal(f"'{outcome}'") for outcome in UNDER_WAY])
_EXPECTED_MS = func.coalesce(UsualTime.ms, _OVERDUE_AFTER)
IS_LATE: Column = JobRow.first_seen_at <= _NOW - _EXPECTED_MS
OVERDUE_SINCE: Column = JobRow.first_seen_at + _EXPECTED_MS
IS_OVERDUE = (HAS_NO_END, IS_UNDER_WAY, IS_LATE)
_ID = JobRow.id == bindparam("id")
_ANYWHERE = LookUp(_with_facets(_JOBS).where(_ID).order_by(JobRow.instance))
_THE_ONE = LookUp(_with_facets(_JOBS).where(_ID, JobRow.instance == bindparam("instance")))
_EXPIRING = LookUp(
    select(func.count()).select_from(
        select(literal("1"))
        .where(JobRow.files_expire_at < bindparam("expires_before"))
        .limit(literal(str(MAX_SORTED)))
        .subquery()
    )
)
