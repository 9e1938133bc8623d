"""Callbacks in the API: verified ones (events), rejected ones, and verifying those again."""

from collections.abc import Sequence
from functools import partial

from receiver.callbacks import events, rejections
from receiver.callbacks.events import EventRecord
from receiver.callbacks.rejections import explain_listed, reverify_all
from receiver.database.engine import Session
from receiver.database.models import Rejection
from receiver.errors import BodyGone, EventGone, NotFound
from receiver.instances.keys import DecryptedKey
from receiver.instances.tokens import Bearer
from receiver.jobs.public import from_record
from receiver.jobs.summary import rejections_by_reason
from receiver.lib.clock import DAY_MS, iso
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.routes import ApiRequest
from receiver.web.auth import record_action, require_instance
from receiver.web.http import Response, cut, optional, read_cursor

SEARCHED_MS = 7 * DAY_MS  # in which events are searched where neither time nor job is named


def event_filters(
    services: Services, query: schemas.EventsQuery, bearer: Bearer
) -> events.EventFilters:
    """Read which events are asked for. Raises BadParameter, and Forbidden for an instance."""
    require_instance(bearer, query.instance)
    body, header, file = optional(query.body), optional(query.header), optional(query.file)
    after: int | None = optional(query.received_after)
    before = optional(query.received_before)
    if (body or header or file) and after is None and not query.job:
        after = (services.clock() if before is None else before) - SEARCHED_MS
    return events.EventFilters(
        instances=query.instance,
        kinds=query.kind,
        jobs=query.job,
        received_after=after,
        received_before=before,
        body=body,
        header=header,
        file=file,
        visible=bearer.instances,
    )


def read_events(
    services: Services, query: schemas.EventsQuery, bearer: Bearer
) -> tuple[Sequence[EventRecord], str | None]:
    """Read a page of verified callbacks, newest first; return the cursor of the next one, too."""
    filters = event_filters(services, query, bearer)
    (after,) = read_cursor(query.cursor, tuple[str]) or (None,)
    records = events.list_events(services.database, filters, query.limit + 1, after)
    return cut(records, query.limit, lambda record: (record.id,))


def list_events(services: Services, request: ApiRequest[schemas.EventsQuery]) -> schemas.EventPage:
    """List verified callbacks, newest first."""
    records, following = read_events(services, request.query, request.bearer)
    return schemas.EventPage([from_record(it, schemas.Event) for it in records], following)


def show_event(services: Services, request: ApiRequest[schemas.NoQuery]) -> schemas.StoredEvent:
    """Show a verified callback."""
    return schemas.stored_event(_event(services, request))


def show_body(services: Services, request: ApiRequest[schemas.NoQuery]) -> Response:
    """Give the exact bytes of a callback."""
    event = _event(services, request)
    body = events.get_body(services.database, event.id)
    if body is None:
        raise BodyGone(f"the body of {event.id} is kept no longer")
    headers = {
        "Content-Type": schemas.BYTES,
        "Content-Disposition": f'attachment; filename="{event.id}.bin"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(200, headers, body)


def the_event(services: Services, bearer: Bearer, id_: str) -> EventRecord:
    """Return an event that the token reaches. Raises NotFound."""
    event = events.get_event(services.database, id_, bearer.instances)
    if event is None:
        raise NotFound(f"there is no event {id_}, or the token does not reach its instance")
    return event


def _event(services: Services, request: ApiRequest[schemas.NoQuery]) -> EventRecord:
    event = the_event(services, request.bearer, request.http.id)
    if not event.key:
        last, times = iso(event.last_received_at), event.deliveries
        raise EventGone(f"of {event.id} only the hash is kept; {times} deliveries, {last}")
    return event


def read_rejections(
    services: Services, query: schemas.RejectionsQuery, bearer: Bearer
) -> tuple[Sequence[tuple[Rejection, str]], dict[str, int], str | None]:
    """Read a page of rejected deliveries, newest first, each with the reason in words.

    Return how many were rejected in the last hour, by reason, and the cursor of the next page, too.
    """
    require_instance(bearer, query.instance)
    filters = rejections.RejectionFilters(
        instances=query.instance,
        reasons=query.reason,
        peers=query.peer,
        after=optional(query.after),
        before=optional(query.before),
        visible=bearer.instances,
    )
    after = read_cursor(query.cursor, tuple[int, int])
    keys = read_keys(services)
    with services.database.read() as session:
        found = rejections.list_rejections(session, filters, query.limit + 1, after)
        records, following = cut(found, query.limit, lambda record: (record.at, record.id))
        causes = explain_listed(session, records, keys, bearer.instances)
        last_hour = rejections_by_reason(session, bearer.instances, services.clock())
    return list(zip(records, causes, strict=True)), last_hour, following


def list_rejections(
    services: Services, request: ApiRequest[schemas.RejectionsQuery]
) -> schemas.RejectionPage:
    """List deliveries that were rejected for their signature, newest first."""
    records, last_hour, following = read_rejections(services, request.query, request.bearer)
    shown = [
        from_record(record, schemas.Rejection, id=str(record.id), diagnosis=cause)
        for record, cause in records
    ]
    return schemas.RejectionPage(shown, last_hour, following)


def verify_again(
    services: Services, request: ApiRequest[schemas.InstancesQuery]
) -> schemas.VerifiedAgain:
    """Verify quarantined deliveries with the keys there are now; those that are right enter."""
    again = reverify_instances(services, request.bearer, request.query.instance)
    return schemas.VerifiedAgain(*again)


def reverify_instances(
    services: Services, bearer: Bearer, instances: Sequence[str]
) -> tuple[int, int]:
    """As `reverify_all`, of these instances; of all that the token reaches if none is named."""
    require_instance(bearer, instances)
    only = frozenset(instances) if instances else bearer.instances
    record = partial(record_entry, services, bearer)
    return reverify_all(services.database, services.intake.receive_again, only, record)


def read_keys(services: Services) -> list[DecryptedKey]:
    """Read all keys, to explain rejections with."""
    default_keys = services.settings.default_keys
    return rejections.read_keys(services.database, services.secret_box, default_keys)


def record_entry(
    services: Services, bearer: Bearer, session: Session, rejection: Rejection, event: str
) -> None:
    """Record in the audit who had a rejected delivery verified again, which is an event by now."""
    subject, detail = f"{rejection.instance}/{event}", f"rejected as {rejection.reason}"
    record_action(services, bearer, session, "rejection.verify", subject, detail=detail)
