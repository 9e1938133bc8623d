"""Expected schedules in the API.

All of it takes the scope `operate`. A token that is limited to instances reaches their schedules.
"""

from msgspec import Struct

from receiver.database.engine import Session, database_time
from receiver.errors import NotFound
from receiver.instances.tokens import Bearer
from receiver.schedules import registry
from receiver.schedules.registry import Schedule, Terms
from receiver.schedules.shown import ShownSchedule, as_shown
from receiver.web import Services
from receiver.web.api.routes import ApiRequest, route
from receiver.web.api.schemas import NoQuery
from receiver.web.auth import record_action, require_instance, require_scope
from receiver.web.http import Response, json_response, read_json


class Schedules(Struct):
    """Schedules, by name."""

    schedules: list[ShownSchedule]


def reached(session: Session, bearer: Bearer) -> list[Schedule]:
    """Return the schedules that a token reaches. Raises Forbidden."""
    require_scope(bearer, "operate")
    return [one for one in registry.list_schedules(session) if bearer.may_see(one.instance)]


def list_schedules(services: Services, request: ApiRequest[NoQuery]) -> Response:
    """List schedules, each with its state and its next due time."""
    with services.database.read() as session:
        now = database_time(session, services.clock)
        schedules = [as_shown(one, now) for one in reached(session, request.bearer)]
    return json_response(Schedules(schedules))


def show_schedule(services: Services, request: ApiRequest[NoQuery]) -> Response:
    """Show a schedule."""
    with services.database.read() as session:
        one = _the_schedule(session, request)
        return json_response(as_shown(one, database_time(session, services.clock)))


def add_schedule(services: Services, request: ApiRequest[NoQuery]) -> Response:
    """Expect jobs of an instance at certain times."""
    require_scope(request.bearer, "operate")
    terms = read_json(request.http, Terms)
    require_instance(request.bearer, [terms.instance])
    with services.database.write() as session:
        now = database_time(session, services.clock)
        one = registry.make_schedule(terms, now)
        registry.add_schedule(session, one, services.settings)
        record_action(services, request.bearer, session, "schedule.add", one.name)
    return json_response(as_shown(one, now))


def remove_schedule(services: Services, request: ApiRequest[NoQuery]) -> Response:
    """Remove a schedule: its jobs are expected no longer, and its alarms are resolved."""
    with services.database.write() as session:
        one = _the_schedule(session, request)
        registry.remove_schedule(session, one.name)
        record_action(services, request.bearer, session, "schedule.remove", one.name)
        return json_response(as_shown(one, database_time(session, services.clock)))


def _the_schedule(session: Session, request: ApiRequest[NoQuery]) -> Schedule:
    require_scope(request.bearer, "operate")
    one = registry.get_schedule(session, request.http.id)
    if not request.bearer.may_see(one.instance):
        raise NotFound(f"there is no schedule {one.name}")
    return one


_ONE = "/schedules/{id}"
SCHEDULE_ROUTES = (
    route("/schedules", list_schedules, Schedules, 403),
    route("/schedules", add_schedule, ShownSchedule, 403, 409, method="POST", body=Terms),
    route(_ONE, show_schedule, ShownSchedule, 403, 404),
    route(_ONE, remove_schedule, ShownSchedule, 403, 404, method="DELETE"),
)
