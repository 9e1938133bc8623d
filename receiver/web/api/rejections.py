"""Rejected deliveries in the API, and another verification once the cause is fixed."""

from functools import partial

from receiver.callbacks import rejections
from receiver.callbacks.rejections import AllKeys, Quarantine
from receiver.database.engine import Session
from receiver.database.models import Rejection
from receiver.instances.tokens import Bearer
from receiver.jobs.summary import rejections_by_reason
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.routes import ApiRequest
from receiver.web.auth import record_action, require_instance, require_scope
from receiver.web.http import Response, json_response, page_response, read_cursor, read_time


def list_rejections(services: Services, request: ApiRequest[schemas.RejectionsQuery]) -> Response:
    """List deliveries that were rejected for their signature, newest first."""
    query, bearer = request.query, request.bearer
    require_instance(bearer, query.instance)
    filters = rejections.RejectionFilters(
        instances=query.instance,
        reasons=query.reason,
        peers=query.peer,
        after=read_time(query.after),
        before=read_time(query.before),
        visible=bearer.instances,
    )
    after = read_cursor(query.cursor, tuple[int, int])
    records = rejections.list_rejections(services.database, filters, query.limit + 1, after)
    keys = read_keys(services)
    with services.database.read() as session:
        causes = keys.describe(session, records, bearer.instances)
        last_hour = rejections_by_reason(session, bearer.instances, services.clock())
    cause = {record.id: text for record, text in zip(records, causes, strict=True)}
    return page_response(
        request.http,
        "rejections",
        records,
        query.limit,
        show=lambda record: schemas.shown(
            record, schemas.Rejection, id=str(record.id), diagnosis=cause[record.id]
        ),
        position=lambda record: (record.at, record.id),
        last_hour=last_hour,
    )


def verify_again(services: Services, request: ApiRequest[schemas.InstancesQuery]) -> Response:
    """Verify quarantined deliveries with the keys there are now; those that are right enter."""
    bearer, named = request.bearer, request.query.instance
    require_scope(bearer, "operate")
    require_instance(bearer, named)
    only = frozenset(named) if named else bearer.instances
    quarantine = Quarantine(services.database, services.intake.receive_again)
    again = quarantine.verify_again(only, partial(record_entry, services, bearer))
    return json_response(schemas.VerifiedAgain(again.checked, again.accepted))


def read_keys(services: Services) -> AllKeys:
    """Read all keys, to diagnose with."""
    return AllKeys.read(services.database, services.secret_box, services.settings.default_keys)


def record_entry(
    services: Services, bearer: Bearer, session: Session, rejection: Rejection, event: str
) -> None:
    """Record in the audit who had a rejected delivery verified again, which is an event by now."""
    subject, detail = f"{rejection.instance}/{event}", f"rejected as {rejection.reason}"
    record_action(services, bearer, session, "refusal.verify", subject, detail=detail)
