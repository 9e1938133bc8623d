"""Alarms in the API: listed, acknowledged and snoozed; and the schedules that jobs are expected by.

A token that is limited to instances reaches the alarms and schedules of those alone. All of
schedules takes the scope `operate`.
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from receiver.alarms import handling
from receiver.alarms.handling import MAX_NOTE, MAX_SNOOZE_MS, Alarm, public_alarm
from receiver.database.engine import Session, database_time
from receiver.database.models.alarms import Schedule
from receiver.errors import NotFound
from receiver.instances.tokens import Bearer
from receiver.lib.clock import MINUTE_MS
from receiver.schedules import registry
from receiver.schedules.registry import ShownSchedule, Terms, public_schedule
from receiver.web import Services
from receiver.web.api.routes import ApiRequest, route
from receiver.web.api.schemas import Cursor, Limit, NoQuery
from receiver.web.auth import record_action, require_instance
from receiver.web.http import cut, optional, read_cursor, read_json

Note = Annotated[
    str,
    Meta(pattern="^[^\\x00]*$", max_length=MAX_NOTE, description="What others should know"),
]


class AlarmsQuery(Struct, forbid_unknown_fields=True):
    """Which alarms. open -- leave out those that are resolved."""

    open: bool = False
    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class AlarmPage(Struct):
    """Alarms, newest first."""

    alarms: list[Alarm]
    next: str | None


class NoteQuery(Struct, forbid_unknown_fields=True):
    """What is said of an alarm that is acknowledged."""

    note: Note | UnsetType = UNSET


class SnoozeQuery(Struct, forbid_unknown_fields=True):
    """For how long an alarm is snoozed."""

    minutes: Annotated[int, Meta(ge=1, le=MAX_SNOOZE_MS // MINUTE_MS)]
    note: Note | UnsetType = UNSET


def list_alarms(services: Services, request: ApiRequest[AlarmsQuery]) -> AlarmPage:
    """List alarms, newest first."""
    query, visible = request.query, request.bearer.instances
    after, limit = read_cursor(query.cursor, tuple[int, int]), query.limit + 1
    with services.database.read() as session:
        found = handling.list_alarms(
            session, visible, only_open=query.open, limit=limit, after=after
        )
    rows, following = cut(found, query.limit, lambda row: (row.raised_at, row.id))
    return AlarmPage([public_alarm(row) for row in rows], following)


def acknowledge(services: Services, request: ApiRequest[NoteQuery]) -> Alarm:
    """Acknowledge an alarm: what it is about by now is reported no more, what comes later is."""
    note = optional(request.query.note)
    return handle(services, request.http.id, request.bearer, note)


def snooze(services: Services, request: ApiRequest[SnoozeQuery]) -> Alarm:
    """Report nothing of an alarm for so long, but its end; then again, if it is still open."""
    note, ms = optional(request.query.note), request.query.minutes * MINUTE_MS
    return handle(services, request.http.id, request.bearer, note, ms)


def handle(
    services: Services, id_: str, bearer: Bearer, note: str | None = None, ms: int | None = None
) -> Alarm:
    """Acknowledge an open alarm, or snooze it for `ms`. Raises NotFound, BadParameter."""
    with services.database.write() as session:
        now = database_time(session, services.clock)
        return handling.handle(
            session, id_, bearer.instances, by=bearer.name, now=now, note=note, ms=ms
        )


class Schedules(Struct):
    """Schedules, by name."""

    schedules: list[ShownSchedule]


def reached(session: Session, bearer: Bearer) -> list[Schedule]:
    """Return the schedules that a token reaches."""
    schedules = registry.list_schedules(session)
    return [schedule for schedule in schedules if bearer.may_see(schedule.instance)]


def list_schedules(services: Services, request: ApiRequest[NoQuery]) -> Schedules:
    """List schedules, each with its state and its next due time."""
    with services.database.read() as session:
        now = database_time(session, services.clock)
        schedules = reached(session, request.bearer)
        return Schedules([public_schedule(schedule, now) for schedule in schedules])


def show_schedule(services: Services, request: ApiRequest[NoQuery]) -> ShownSchedule:
    """Show a schedule."""
    with services.database.read() as session:
        schedule = _the_schedule(session, request)
        return public_schedule(schedule, database_time(session, services.clock))


def add_schedule(services: Services, request: ApiRequest[NoQuery]) -> ShownSchedule:
    """Expect jobs of an instance at certain times."""
    terms = read_json(request.http, Terms)
    require_instance(request.bearer, [terms.instance])
    with services.database.write() as session:
        now = database_time(session, services.clock)
        schedule = registry.make_schedule(terms, now)
        registry.add_schedule(session, schedule, services.settings)
        record_action(services, request.bearer, session, "schedule.add", schedule.name)
    return public_schedule(schedule, now)


def remove_schedule(services: Services, request: ApiRequest[NoQuery]) -> ShownSchedule:
    """Remove a schedule: its jobs are expected no longer, and its alarms are resolved."""
    with services.database.write() as session:
        schedule = _the_schedule(session, request)
        registry.remove_schedule(session, schedule.name)
        record_action(services, request.bearer, session, "schedule.remove", schedule.name)
        return public_schedule(schedule, database_time(session, services.clock))


def _the_schedule(session: Session, request: ApiRequest[NoQuery]) -> Schedule:
    schedule = registry.get_schedule(session, request.http.id)
    if not request.bearer.may_see(schedule.instance):
        raise NotFound(f"there is no schedule {schedule.name}")
    return schedule


ALARM_ROUTES = (
    route("/alarms", list_alarms),
    route("/alarms/{id}/acknowledge", acknowledge, 403, 404, method="POST"),
    route("/alarms/{id}/snooze", snooze, 403, 404, method="POST"),
)
_ONE = "/schedules/{id}"
SCHEDULE_ROUTES = (
    route("/schedules", list_schedules, 403, scope="operate"),
    route("/schedules", add_schedule, 403, 409, method="POST", body=Terms),
    route(_ONE, show_schedule, 403, 404, scope="operate"),
    route(_ONE, remove_schedule, 403, 404, method="DELETE"),
)
