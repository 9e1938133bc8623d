"""What is read of jobs: one of them, lists in pages, and what happened to each."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy import literal_column as literal
from sqlalchemy.orm import Session

from receiver.database.alarm_models import Fetch
from receiver.database.engine import Database, upsert
from receiver.database.models import (
    IS_UNDER_WAY,
    NUMBER_BITS,
    Event,
    Facet,
    JobRow,
    TimelineEntry,
    UsualTime,
)
from receiver.database.page import Column, Selection, among, contains, hidden, numbers_of, page
from receiver.jobs.job import UNDER_WAY, Job, Outcome
from receiver.jobs.projection import MAX_FACET_TEXT
from receiver.lib.clock import DAY_MS
from receiver.openconnectors.notifications import Source

MAX_TIMELINE = 10_000
FEW = 1_000  # rows that may be sorted instead of being read in order
ENDED: tuple[Outcome, ...] = ("succeeded", "partial", "failed", "cancelled")

Instances: TypeAlias = frozenset[str] | None  # what a token may see; None is all
Show: TypeAlias = Literal["overdue", "expiring", "lost"]
Place: TypeAlias = tuple[int, str, str]  # (time, instance, id) of a job in a list


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
    show: Show | None = None
    now: int = 0
    overdue_after: int = 0
    visible: Instances = None

    def values(self) -> dict[str, Any]:
        """Name the values of what is asked."""
        instances = sorted(reachable(self.instances, self.visible) or ())
        lists: dict[str, Any] = {
            "instance": instances,
            "status": [status[:MAX_FACET_TEXT] for status in self.statuses],
            "outcome": list(self.outcomes),
            "object": [name[:MAX_FACET_TEXT] for name in self.objects],
            "direction": [name[:MAX_FACET_TEXT] for name in self.directions],
            "text": self.text,
        }
        times = {name: getattr(self, name) for name in _BOUNDS}
        asked: dict[str, Any] = {name: value for name, value in lists.items() if value}
        asked |= {name: value for name, value in times.items() if value is not None}
        if self.show == "lost":
            asked["callback_lost"] = [True]
        elif self.show is not None:
            asked |= {"now": self.now, "overdue_after": self.overdue_after}
        return asked


class JobRecord(Struct, frozen=True):
    """A job as it is read; times are ms.

    usual_ms -- how long jobs of its object mostly take, where that is known.
    """

    id: str
    instance: str
    job: Job
    outcome: Outcome
    learnt_by: Literal["callback", "poll"] | None
    files_expire_at: int | None
    revision: int
    events: int
    first_seen_at: int
    updated_at: int
    callback_lost: bool
    polls: int
    errors_at: int | None
    usual_ms: int | None

    def is_overdue(self, now: int, overdue_after: int) -> bool:
        """Whether it takes longer than it should. overdue_after -- ms, if nothing is usual."""
        usual = overdue_after if self.usual_ms is None else self.usual_ms
        return self.outcome in UNDER_WAY and self.first_seen_at + usual <= now


class Entry(Struct, frozen=True):
    """What one callback, poll or submission changed in a job, or why it changed nothing.

    event -- the id of a callback's event; what follows is of that too.
    """

    at: int
    source: Source
    status: str | None
    changed: list[str]
    note: str | None
    event: str | None = None
    size: int | None = None
    key: str | None = None
    deliveries: int | None = None
    last_received_at: int | None = None


def list_jobs(
    database: Database,
    filters: Filters,
    limit: int,
    after: Place | None = None,
    *,
    before: Place | None = None,
) -> list[JobRecord]:
    """Read jobs, newest change first, or most pressing first if some are to be shown.

    after -- `place_of` the last job that was seen. before -- of the first one: for the jobs that
    stand right before it, in the same order.
    """
    values = filters.values()
    if filters.visible is not None and "instance" not in values:
        return []
    backwards = before is not None
    with database.snapshot() as connection:
        by = _Plan(filters.show, database.is_sqlite, backwards, after is not None or backwards)
        if _FACETS.keys() & values or filters.show == "overdue":
            facets = _facets(connection, frozenset(values), values, sqlite=database.is_sqlite)
            if not facets:
                return []
            values["facets"] = [row.facet for row in facets]
            values["instances"] = sorted({row.instance for row in facets})
            values["others"] = [row.facet for row in facets if row.other]
        few = "expires_before" in values and _are_few(connection, values["expires_before"])
        asked = frozenset(name for name, value in values.items() if value != [])
        values |= numbers_of(limit, before or after)
        rows = connection.execute(_jobs(by, asked, few=few), values).all()
    found = [_record(row) for row in rows]
    return found[::-1] if backwards else found


def place_of(record: JobRecord, show: Show | None = None) -> Place:
    """Return where a job stands in a list."""
    time = getattr(record, _TIMES.get(show, "updated_at"))
    return time, record.instance, record.id


def find_jobs(
    database: Database, id_: str, instance: str | None = None, visible: Instances = None
) -> list[JobRecord]:
    """Read the jobs of that id, one for each instance that has it, or of the instance named."""
    names = reachable([] if instance is None else [instance], visible)
    if not id_.isascii() or "\0" in id_ or names == frozenset():
        return []
    if names is None:
        return [_record(row) for row in database.rows(_ANYWHERE, {"id": id_})]
    rows = (database.rows(_ONE, {"id": id_, "instance": name}) for name in sorted(names))
    return [_record(row) for found in rows for row in found]


def reachable(instances: Sequence[str], visible: Instances) -> Instances:
    """Return the instances asked for, or all if none is, as far as the token sees them."""
    if not instances:
        return visible
    return frozenset(instances) if visible is None else visible.intersection(instances)


def open_jobs(session: Session, instance: str, ids: Sequence[str]) -> dict[str, Job]:
    """Return by id those of the ids that an instance knows and that were not closed as lost."""
    known = select(JobRow.id, JobRow.registers).where(
        JobRow.instance == instance, JobRow.id.in_(ids), JobRow.closed_at.is_(None)
    )
    return {id_: Job.decode(registers) for id_, registers in session.execute(known)}


def note_fetched(session: Session, job: str, instance: str, now: int) -> None:
    """Remember that a job's file was fetched, whole."""
    new = upsert(session, Fetch).values(job=job, instance=instance, at=now)
    session.execute(
        new.on_conflict_do_update(index_elements=[Fetch.job, Fetch.instance], set_={"at": now})
    )


def timeline(database: Database, job: str, instance: str) -> list[Entry]:
    """Read what happened to a job, in the order we learnt it."""
    rows = database.rows(_TIMELINE, {"job": job, "instance": instance})
    return [
        Entry(
            n >> NUMBER_BITS,
            source,
            status,
            json.loads(changed or "[]"),
            note,
            event_id(n) if source == "callback" else None,
            *of_event,
        )
        for n, source, status, changed, note, *of_event in rows
    ]


def event_id(n: int) -> str:
    """Return an event's id."""
    return f"{n:016x}"


def is_overdue() -> ColumnElement[bool]:
    """Whether a job is under way for longer than those of its object usually are.

    Asks for `now` and `overdue_after`, ms, the latter where the usual time is not known.
    """
    usual = (
        select(func.coalesce(UsualTime.ms, bindparam("overdue_after")))
        .select_from(Facet.__table__.outerjoin(UsualTime, _IS_USUAL))
        .where(Facet.facet == JobRow.facet, _one_of(Facet.outcome, UNDER_WAY))
    )
    seen_before: Column = bindparam("now") - usual.correlate(JobRow).scalar_subquery()
    return and_(IS_UNDER_WAY, JobRow.first_seen_at <= seen_before)


class _Plan(Struct, frozen=True):
    """How a list is read."""

    show: Show | None
    sqlite: bool
    backwards: bool
    after: bool


_FACETS = {
    "instance": Facet.instance,
    "status": Facet.status,
    "outcome": Facet.outcome,
    "object": Facet.object,
    "direction": Facet.direction,
    "callback_lost": Facet.callback_lost,
}
# Where a job's registers hold what its facet does not, if that stands for many.
_REGISTERS = {"status": (0, 0, 4), "object": (3, 1), "direction": (4, 1)}
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
_COLUMNS = (
    JobRow.id,
    JobRow.instance,
    JobRow.registers,
    JobRow.facet,
    JobRow.learnt_by,
    JobRow.files_expire_at,
    JobRow.revision,
    JobRow.events,
    JobRow.first_seen_at,
    JobRow.updated_at,
    JobRow.polls,
    JobRow.errors_at,
)


def _facets(
    connection: Connection, asked: frozenset[str], values: dict[str, Any], *, sqlite: bool
) -> Sequence[Any]:
    return connection.execute(_matching(asked.intersection(_FACETS), sqlite), values).all()


@lru_cache
def _matching(asked: frozenset[str], sqlite: bool) -> Selection:
    """Select the facets whose jobs may match."""
    where = []
    for name in sorted(asked):
        match = among(_FACETS[name], name, sqlite=sqlite)
        where.append(or_(Facet.other, match) if name in _REGISTERS else match)
    return select(Facet.facet, Facet.instance, Facet.other).where(*where)


def _are_few(connection: Connection, expires_before: int) -> bool:
    return connection.execute(_EXPIRING, {"expires_before": expires_before}).scalar_one() < FEW


@lru_cache(maxsize=256)
def _jobs(plan: _Plan, asked: frozenset[str], *, few: bool) -> Selection:
    """Make the statement of a page. few -- whether so few expire in time that they are sorted."""
    time = getattr(JobRow, _TIMES.get(plan.show, "updated_at"))
    ranges: tuple[Any, str] | None = None
    if plan.show == "overdue":
        ranges = JobRow.instance, "instances"
    elif plan.show != "expiring" and not few and "facets" in asked:
        ranges = JobRow.facet, "facets"
    order = [hidden(time).label("time") if few else time, JobRow.instance, JobRow.id]
    where = _conditions(plan, asked, few=few)
    if "facets" in asked and (ranges is None or ranges[1] != "facets"):
        where.append(among(hidden(JobRow.facet), "facets", sqlite=plan.sqlite))
    ascending = (plan.show in _TIMES) != plan.backwards
    rows = page(
        [*_COLUMNS, *(order[:1] if few else ())],
        order,
        where,
        ranges,
        after=plan.after,
        ascending=ascending,
        sqlite=plan.sqlite,
    )
    jobs = rows.subquery("page")
    by = [jobs.c[time.key], jobs.c.instance, jobs.c.id]
    sorted_by = [column if ascending else column.desc() for column in by]
    return _whole(jobs).order_by(*sorted_by)


def _conditions(plan: _Plan, asked: frozenset[str], *, few: bool) -> list[Any]:
    where: list[Any] = []
    if plan.show == "overdue":
        where.append(is_overdue())
    if plan.show == "expiring":
        expires, now = JobRow.files_expire_at, bindparam("now", type_=JobRow.updated_at.type)
        where += [expires > now, expires < now + literal(str(DAY_MS))]
    for name in sorted(_BOUNDS.keys() & asked):
        column: Any = _BOUNDS[name]
        # No other index shall look useful than that by which the page is read.
        leads = few if name == "expires_before" else not few and plan.show not in _TIMES
        shown, value = column if leads else hidden(column), bindparam(name, type_=column.type)
        where.append(shown > value if name.endswith("after") else shown < value)
    if "text" in asked:
        where.append(contains(JobRow.id, "text", sqlite=plan.sqlite))
    if "others" in asked:
        for name in sorted(_REGISTERS.keys() & asked):
            of_many = among(hidden(JobRow.facet), "others", sqlite=plan.sqlite)
            value = _register(_REGISTERS[name], sqlite=plan.sqlite)
            where.append(or_(~of_many, among(value, name, sqlite=plan.sqlite)))
    return where


def _register(place: Sequence[int], *, sqlite: bool) -> Any:  # noqa: ANN401 - an SQL expression
    """Read a text of a job's registers, cut as facets' texts are."""
    value: Column
    if sqlite:
        value = func.json_extract(
            JobRow.registers, literal(f"'${''.join(f'[{n}]' for n in place)}'")
        )
    else:
        value = literal(f"(jobs.registers::json #>> '{{{','.join(map(str, place))}}}')")
    return func.substr(value, literal("1"), literal(str(MAX_FACET_TEXT)), type_=Facet.status.type)


def _whole(jobs: Any) -> Selection:  # noqa: ANN401 - a table or subquery
    """Add what is known of jobs by their facets."""
    names = (column.key for column in _COLUMNS)
    facts = (Facet.outcome, Facet.callback_lost, UsualTime.ms.label("usual_ms"))
    of_facet = jobs.join(Facet, Facet.facet == jobs.c.facet)
    return select(*(jobs.c[name] for name in names), *facts).select_from(
        of_facet.outerjoin(UsualTime, _IS_USUAL)
    )


def _one_of(column: Column, words: Sequence[str]) -> Column:
    return column.in_([literal(f"'{word}'") for word in words])


def _record(row: Any) -> JobRecord:  # noqa: ANN401 - a row of `_whole`
    return JobRecord(
        row.id,
        row.instance,
        Job.decode(row.registers),
        row.outcome,
        row.learnt_by,
        row.files_expire_at,
        row.revision,
        row.events,
        row.first_seen_at,
        row.updated_at,
        bool(row.callback_lost),
        row.polls,
        row.errors_at,
        row.usual_ms,
    )


_ID = JobRow.id == bindparam("id")
_ONE = _whole(JobRow.__table__).where(_ID, JobRow.instance == bindparam("instance"))
_NAMES = select(Facet.instance).distinct().subquery("names")
_ANYWHERE = _whole(JobRow.__table__).where(_ID, JobRow.instance.in_(select(_NAMES)))
_EXPIRING = select(func.count()).select_from(
    select(literal("1"))
    .where(JobRow.files_expire_at < bindparam("expires_before"))
    .limit(literal(str(FEW)))
    .subquery()
)
_TIMELINE: Any = (
    union_all(
        # Hidden, or all events of the instance would be read in their order.
        select(
            hidden(Event.n),
            literal("'callback'"),
            Event.status,
            Event.changed,
            Event.note,
            Event.size,
            Event.key,
            Event.deliveries,
            Event.last_received_at,
        ).where(
            Event.instance == bindparam("instance"), Event.job == bindparam("job"), Event.key != ""
        ),
        select(
            TimelineEntry.n,
            TimelineEntry.source,
            TimelineEntry.status,
            TimelineEntry.changed,
            TimelineEntry.note,
            *(literal("NULL"),) * 4,
        ).where(
            TimelineEntry.instance == bindparam("instance"), TimelineEntry.job == bindparam("job")
        ),
    )
    .order_by(literal("1"))
    .limit(literal(str(MAX_TIMELINE)))
)
