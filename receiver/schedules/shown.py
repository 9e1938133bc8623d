"""A schedule as everybody is shown it: by the API, the command line and the dashboard."""

import msgspec
from msgspec import Struct

from receiver.errors import BadParameter
from receiver.jobs.shown import Time
from receiver.lib.clock import iso
from receiver.schedules.registry import Schedule, State, written
from receiver.schedules.times import due_times, local_time


class ShownSchedule(Struct):
    """A schedule; `due_at`, `job` and `started_at` are of the latest due time that was fulfilled.

    `next_due_local` is the next due time in the schedule's own zone.
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
    due_at: Time | None
    job: str | None
    started_at: Time | None
    created_at: Time


def as_shown(schedule: Schedule, now: int) -> ShownSchedule:
    """Show a schedule as it is now, ms."""
    due = next_due(schedule, now)
    facts = msgspec.structs.asdict(schedule)
    times = {name: iso(facts[name]) for name in ("due_at", "started_at", "created_at")}
    graces = {name: written(facts[name]) for name in ("start_grace", "run_grace")}
    local = None if due is None else local_time(due, schedule.tz).isoformat()
    coming = {"next_due_at": iso(due), "next_due_local": local}
    return msgspec.convert(facts | times | graces | coming, ShownSchedule)


def next_due(schedule: Schedule, now: int) -> int | None:
    """Return the due time that comes next, ms; None if none does, or it cannot be known."""
    try:
        return next(due_times(schedule.cron, schedule.tz, now), None)
    except BadParameter:
        return None
