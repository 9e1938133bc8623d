"""Expected schedules: whose job is to start when, and to end by when; kept, and shown."""

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from receiver.database.models.alarms import Schedule
from receiver.errors import AlreadyThere, BadParameter, NotFound
from receiver.instances.registry import instance_names
from receiver.jobs.public import Time, from_record
from receiver.lib.clock import iso
from receiver.schedules import times
from receiver.settings import INSTANCE_NAME, Settings, duration_ms, duration_text

State: TypeAlias = Literal[
    "on_time", "waiting", "late_to_start", "running_late", "missed", "broken"
]

MAX_SCHEDULES = 100
STATES: tuple[State, ...] = get_args(State)
_OBJECT = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user writes to expect jobs. Both graces count from the due time."""

    name: str
    instance: str
    object: str | None = None
    cron: str
    tz: str = "UTC"
    start_grace: str
    run_grace: str


def last_due(schedule: Schedule, at: int) -> int | None:
    """Return the latest due time up to `at` since it was added, ms; None if there was none."""
    due = times.last_due(schedule.cron, schedule.tz, at)
    return due if due is not None and due > schedule.created_at else None


def make_schedule(terms: Terms, now: int) -> Schedule:
    """Make a schedule of what a user wrote. Raises BadParameter, which says what is wrong."""
    if not INSTANCE_NAME.fullmatch(terms.name):
        raise BadParameter("a name is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    if terms.object is not None and not _OBJECT.fullmatch(terms.object):
        raise BadParameter("an object is 1 to 200 printable characters")
    start_grace = _grace("start grace", terms.start_grace)
    run_grace = _grace("run grace", terms.run_grace)
    shortest = times.shortest_interval(terms.cron, terms.tz, now)
    for name, grace in (("start", start_grace), ("run", run_grace)):
        if grace >= shortest:
            raise BadParameter(
                f"the {name} grace is {duration_text(grace)} and must be shorter than"
                f" {duration_text(shortest)}, after which a job is due again: shorten it, or let"
                " cron be due less often"
            )
    if run_grace < start_grace:
        raise BadParameter("the run grace must not be shorter than the start grace")
    given = msgspec.structs.asdict(terms) | {"cron": " ".join(terms.cron.split())}
    graces = {"start_grace": start_grace, "run_grace": run_grace}
    return Schedule(**given | graces, state="waiting", created_at=now, judged_at=now)


def _grace(name: str, text: str) -> int:
    try:
        return duration_ms(text)
    except ValueError as error:
        raise BadParameter(f"the {name} {text!r} {error}, and above zero") from None


def add_schedule(session: Session, schedule: Schedule, settings: Settings) -> None:
    """Add a schedule. Raises BadParameter, AlreadyThere."""
    name, instance = schedule.name, schedule.instance
    if instance not in instance_names(session, settings):
        raise BadParameter(f"there is no instance {instance!r}: see `receiver instances list`")
    schedules = {one.name for one in list_schedules(session)}
    if name in schedules:
        raise AlreadyThere(f"there is a schedule {name} already")
    if len(schedules) >= MAX_SCHEDULES:
        raise BadParameter(f"there are {MAX_SCHEDULES} schedules: remove one first")
    session.add(schedule)
    session.flush()


def list_schedules(session: Session) -> Sequence[Schedule]:
    """Return all, by name."""
    return session.scalars(select(Schedule).order_by(Schedule.name)).all()


def get_schedule(session: Session, name: str) -> Schedule:
    """Return one. Raises NotFound."""
    for schedule in list_schedules(session):
        if schedule.name == name:
            return schedule
    raise NotFound(f"there is no schedule {name}")


def remove_schedule(session: Session, name: str) -> None:
    """Remove one. Raises NotFound."""
    session.delete(get_schedule(session, name))
    session.flush()


def count_by_state(session: Session) -> dict[str, float]:
    """Return how many schedules each state has."""
    states = select(Schedule.state, func.count()).group_by(Schedule.state)
    counted = {state: int(number) for state, number in session.execute(states)}
    return {state: counted.get(state, 0) for state in STATES}


class ShownSchedule(msgspec.Struct):
    """A schedule; `due_at`, `job` and `started_at` are of the latest due time that was fulfilled.

    `next_due_local` is the next due time in the schedule's own zone, `last_due_at` the one before
    it, fulfilled or not.
    """

    name: str
    instance: str
    object: str | None
    cron: str
    tz: str
    start_grace: str
    run_grace: str
    state: State
    next_due_at: Time | None
    next_due_local: Time | None
    last_due_at: Time | None
    due_at: Time | None
    job: str | None
    started_at: Time | None
    created_at: Time


def public_schedule(schedule: Schedule, now: int) -> ShownSchedule:
    """Return a schedule as the API and the command line have it, as it is now, ms."""
    due = next_due(schedule, now)
    return from_record(
        schedule,
        ShownSchedule,
        start_grace=duration_text(schedule.start_grace),
        run_grace=duration_text(schedule.run_grace),
        next_due_at=iso(due),
        next_due_local=due and times.local_time(due, schedule.tz).isoformat(),
        last_due_at=None if due is None else iso(last_due(schedule, now)),
    )


def next_due(schedule: Schedule, now: int) -> int | None:
    """Return the due time that comes next, ms; None if none does, or it cannot be known."""
    try:
        return next(times.due_times(schedule.cron, schedule.tz, now), None)
    except BadParameter:
        return None
