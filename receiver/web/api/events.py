"""Verified callbacks in the API: lists, one of them, its bytes."""

from receiver.callbacks import events
from receiver.callbacks.events import EventRecord
from receiver.errors import BodyGone, EventGone, NotFound
from receiver.instances.tokens import Bearer
from receiver.lib.clock import DAY_MS, iso
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.routes import ApiRequest
from receiver.web.api.schemas import shown
from receiver.web.auth import require_instance
from receiver.web.http import (
    Response,
    json_response,
    optional,
    page_response,
    read_cursor,
    read_time,
)

SEARCHED_MS = 7 * DAY_MS  # in which events are searched where neither time nor job is named


def event_filters(
    services: Services, query: schemas.EventsQuery, bearer: Bearer
) -> events.EventFilters:
    """Read which events are asked for. Raises BadParameter, and Forbidden for an instance."""
    require_instance(bearer, query.instance)
    body, header, file = optional(query.body), optional(query.header), optional(query.file)
    after, before = read_time(query.received_after), read_time(query.received_before)
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


def list_events(services: Services, request: ApiRequest[schemas.EventsQuery]) -> Response:
    """List verified callbacks, newest first."""
    query = request.query
    filters = event_filters(services, query, request.bearer)
    (after,) = read_cursor(query.cursor, tuple[str]) or (None,)
    records = events.list_events(services.database, filters, query.limit + 1, after)
    return page_response(
        request.http,
        "events",
        records,
        query.limit,
        show=lambda record: shown(record, schemas.Event),
        position=lambda record: (record.id,),
    )


def show_event(services: Services, request: ApiRequest[schemas.NoQuery]) -> Response:
    """Show a verified callback."""
    return json_response(schemas.stored_event(_event(services, request)))


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


def _event(services: Services, request: ApiRequest[schemas.NoQuery]) -> EventRecord:
    event = events.get_event(services.database, request.http.id, request.bearer.instances)
    if event is None:
        raise NotFound(f"no event {request.http.id} is known")
    if not event.key:
        last, times = iso(event.last_received_at), event.deliveries
        raise EventGone(f"of {event.id} only the hash is kept; {times} deliveries, {last}")
    return event
