"""/schedules: which jobs are expected when, and whether they came."""

from dataclasses import dataclass

from flask import Response

from receiver.database.engine import database_time
from receiver.schedules.registry import Schedule, State
from receiver.schedules.shown import next_due
from receiver.schedules.times import local_time
from receiver.web import Services
from receiver.web.api.schedules import reached
from receiver.web.dashboard.pages import Caller, blueprint, page
from receiver.web.dashboard.sign_in import require_operator

# How each state looks, and its words.
_STATES: dict[State, tuple[str, str]] = {
    "on_time": ("succeeded", "on time"),
    "waiting": ("pending", "waiting"),
    "late_to_start": ("partial", "late to start"),
    "running_late": ("partial", "running late"),
    "missed": ("failed", "missed"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A schedule in the list. icon, state -- of its state. next_due -- ms; local -- in its zone."""

    schedule: Schedule
    icon: str
    state: str
    next_due: int | None
    local: str


@blueprint.get("/schedules")
@require_operator
def schedules(services: Services, caller: Caller) -> Response:
    """List schedules."""
    with services.database.read() as session:
        now = database_time(session, services.clock)
        rows = [_entry(one, now) for one in reached(session, caller.bearer)]
    return page("schedules.html", rows=rows)


def _entry(one: Schedule, now: int) -> Entry:
    due = next_due(one, now)
    local = "" if due is None else f"{local_time(due, one.tz):%a %d %b %Y %H:%M %Z}"
    return Entry(one, *_STATES[one.state], due, local)
