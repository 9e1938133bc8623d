"""Whether expected jobs came: each schedule is judged by its latest due times alone.

However long nobody looked, and however far a clock stepped on, the due times in between are over.
No schedule is judged by a time before its last change: a clock that steps back fires nothing twice.
A change more than a day ahead of now was made under a wrong clock, unless now is the wrong one.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import msgspec
from sqlalchemy import BigInteger, and_, func, literal_column, or_, select, update
from sqlalchemy.engine import Row as SelectedRow
from sqlalchemy.orm import Session

from receiver.database.leases import is_steady
from receiver.database.models import IS_UNDER_WAY, Facet, JobRow
from receiver.database.models.alarms import Schedule
from receiver.database.page import MAX_TIME, Column, Selection, least
from receiver.errors import BadParameter
from receiver.jobs.job import Registers
from receiver.jobs.queries import HAS_NO_END, register
from receiver.lib.clock import DAY_MS
from receiver.schedules.registry import State, last_due, list_schedules

EARLY_MS = 10_000  # so much before its due time a job may start, by a clock that is behind ours
MAX_LATE = 100  # jobs of one schedule

_CREATED_AT = Registers.__struct_fields__.index("created_at")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found of a schedule, and what that changes in its row.

    missed -- the due time for which no job started, though its start grace is over. late -- the due
    time whose run grace is over, though `jobs` that started for it have not ended. broken -- why it
    cannot be judged.
    """

    schedule: Schedule
    changes: Mapping[str, object]
    missed: int | None
    late: int | None
    jobs: Sequence[str]
    broken: str | None = None


def judge_schedules(session: Session, now: int) -> list[Verdict]:
    """Judge each schedule; nothing is written."""
    steady = is_steady(session, now)
    return [
        _verdict(session, schedule, _reference_time(schedule, now, steady))
        for schedule in list_schedules(session)
    ]


def save(session: Session, verdicts: Iterable[Verdict]) -> None:
    """Write what changed of schedules."""
    for verdict in verdicts:
        if verdict.changes:
            this = update(Schedule).where(Schedule.name == verdict.schedule.name)
            session.execute(this.values(**verdict.changes))


def _reference_time(schedule: Schedule, now: int, steady: bool) -> int:
    """Return the time to judge a schedule by."""
    ahead = schedule.judged_at - now
    return schedule.judged_at if ahead > 0 and (ahead <= DAY_MS or not steady) else now


def _verdict(session: Session, schedule: Schedule, at: int) -> Verdict:
    try:
        return _judge(session, schedule, at)
    except BadParameter as error:  # of this one alone: the others are judged
        changes = {} if schedule.state == "broken" else {"state": "broken"}
        return Verdict(
            schedule=schedule, changes=changes, missed=None, late=None, jobs=[], broken=str(error)
        )


def _judge(session: Session, schedule: Schedule, at: int) -> Verdict:
    graces = 0, schedule.start_grace, schedule.run_grace
    due, start_due, run_due = (last_due(schedule, at - grace) for grace in graces)
    changes: dict[str, object] = {}
    fulfilled, started = schedule.due_at, schedule.started_at
    if due is not None and due != fulfilled and (run := _run(session, schedule, due)):
        fulfilled, started = due, run.start
        changes = {"due_at": due, "job": run.id, "started_at": started}
    jobs = [] if run_due is None else _late(session, schedule, run_due)
    missed = None
    if start_due is not None and fulfilled not in (due, start_due):
        missed = None if _first(session, schedule, start_due) else start_due
    in_time = None
    if due is not None and fulfilled == due and started is not None:
        in_time = started <= due + schedule.start_grace
    state = _state(missed=missed is not None, late=bool(jobs), in_time=in_time)
    changes |= {} if state == schedule.state else {"state": state}
    # Each due time that is over counts as a change: no earlier one is judged after it.
    before = [last_due(schedule, schedule.judged_at - grace) for grace in graces]
    if changes or before != [due, start_due, run_due]:
        changes["judged_at"] = at
    late = run_due if jobs else None
    return Verdict(schedule=schedule, changes=changes, missed=missed, late=late, jobs=jobs)


def _state(*, missed: bool, late: bool, in_time: bool | None) -> State:
    """in_time -- whether the job of the latest due time started so; None: none did start."""
    if missed:
        return "missed"
    if late:
        return "running_late"
    if in_time is None:
        return "waiting"
    return "on_time" if in_time else "late_to_start"


def _run(session: Session, schedule: Schedule, due: int) -> SelectedRow[*tuple[str, int]] | None:
    """Return a job that started for a due time: one in time, if any did."""
    return _first(session, schedule, due, due + schedule.start_grace) or _first(
        session, schedule, due
    )


def _late(session: Session, schedule: Schedule, due: int) -> list[str]:
    """Return the jobs that started for a due time and have not ended.

    Of a busy instance others are always in progress: where a job started in time, only such count.
    """
    is_open = HAS_NO_END, IS_UNDER_WAY
    jobs = _started(session, schedule, due, due + schedule.run_grace).where(*is_open)
    rows = session.execute(jobs.order_by(JobRow.first_seen_at).limit(MAX_LATE)).all()
    in_time = [row.id for row in rows if row.start <= due + schedule.start_grace]
    if in_time or not rows or _first(session, schedule, due, due + schedule.start_grace):
        return in_time
    return [row.id for row in rows]


def _first(
    session: Session, schedule: Schedule, since: int, until: int = MAX_TIME
) -> SelectedRow[*tuple[str, int]] | None:
    """Return a job that started between two times; None if none did."""
    # Whatever started since then has changed since then, and that is what there is an index of.
    jobs = _started(session, schedule, since, until).where(JobRow.updated_at >= since - EARLY_MS)
    return session.execute(jobs.limit(1)).first()


def _started(session: Session, schedule: Schedule, since: int, until: int) -> Selection:
    sqlite = session.get_bind().dialect.name == "sqlite"
    start = _start(sqlite=sqlite)
    first = since - EARLY_MS
    jobs = select(JobRow.id, start.label("start")).join(Facet, Facet.facet == JobRow.facet)
    jobs = jobs.where(Facet.instance == schedule.instance, JobRow.first_seen_at >= first)
    if schedule.object is not None:
        of_many = and_(Facet.other, register("object", sqlite=sqlite) == schedule.object)
        jobs = jobs.where(or_(Facet.object == schedule.object, of_many))
    return jobs.where(start >= first, start <= until)


@cache
def _start(*, sqlite: bool) -> Column:
    """When a job started: as the vendor says, but not after it was first seen."""
    created: Column = literal_column(
        f"json_extract(jobs.registers, '$[{_CREATED_AT}][1]')"
        if sqlite
        else f"(jobs.registers::json #>> '{{{_CREATED_AT},1}}')::bigint",
        BigInteger(),
    )
    seen = JobRow.first_seen_at
    return least([func.coalesce(created, seen), seen], sqlite=sqlite)
