"""/events: verified callbacks, those that are no jobs too, and their bodies."""

from typing import get_args
from urllib.parse import urlencode

from flask import Response, request

from receiver.callbacks.diagnosis import why_unreadable
from receiver.callbacks.events import EventRecord, get_body, get_event, list_events
from receiver.errors import BodyGone, NotFound
from receiver.openconnectors.notifications import Kind
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.events import event_filters
from receiver.web.dashboard.formatting import readable
from receiver.web.dashboard.pages import Caller, blueprint, download, filled_parameters, link, page
from receiver.web.dashboard.sign_in import require_session
from receiver.web.http import optional, parameters, read_cursor, write_cursor

TEXTS = ("body", "header", "file")
TIMES = ("received_after", "received_before")


@blueprint.get("/events")
@require_session
def events(services: Services, caller: Caller) -> Response:
    """List verified callbacks, newest first."""
    pairs = filled_parameters()
    query = parameters(urlencode(pairs), schemas.EventsQuery)
    filters = event_filters(services, query, caller.bearer)
    (after,) = read_cursor(query.cursor, tuple[str]) or (None,)
    rows = list_events(services.database, filters, query.limit + 1, after)
    last = rows[query.limit - 1] if len(rows) > query.limit else None
    return page(
        "events.html",
        rows=rows[: query.limit],
        query=query,
        shown={name: optional(getattr(query, name)) for name in (*TEXTS, *TIMES)},
        kinds=get_args(Kind),
        filtered=len(pairs) > ("cursor" in request.args),
        older=last and link(cursor=write_cursor((last.id,))),
        newest=link(cursor=None) if after else None,
    )


@blueprint.get("/events/<string:id>")
@require_session
def event(services: Services, caller: Caller, id: str) -> Response:
    """Show a verified callback, and why it could not be read if it could not."""
    record, body = _event(services, caller, id)
    unreadable = record.kind == "unreadable" and body is not None
    why = why_unreadable(body or b"") if unreadable else None
    headers = schemas.stored_event(record).headers
    return page("event.html", event=record, headers=headers, why=why, body=readable(body))


@blueprint.get("/events/<string:id>/body")
@require_session
def event_body(services: Services, caller: Caller, id: str) -> Response:
    """Return the exact bytes of a callback."""
    record, body = _event(services, caller, id)
    if body is None:
        raise BodyGone(f"The body of {record.id} was deleted at the end of its retention time.")
    return download(body, f"{record.id}.bin")


def _event(services: Services, caller: Caller, id_: str) -> tuple[EventRecord, bytes | None]:
    record = get_event(services.database, id_, caller.bearer.instances)
    if record is None:
        raise NotFound(f"There is no event {id_}.")
    return record, get_body(services.database, record.id)
