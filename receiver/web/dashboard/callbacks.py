"""/events and /rejections: verified callbacks, and those rejected for their signature, and why."""

from typing import get_args

from flask import Response

from receiver.callbacks.diagnosis import reason_words, why_unreadable
from receiver.callbacks.events import EventRecord, get_body, get_event
from receiver.callbacks.rejections import REASONS, explain, find_rejection
from receiver.database.models import Rejection
from receiver.errors import BodyGone, NotFound
from receiver.openconnectors.notifications import Kind
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.callbacks import read_events, read_keys, read_rejections
from receiver.web.dashboard.formatting import readable
from receiver.web.dashboard.pages import (
    Caller,
    blueprint,
    download,
    page,
    page_links,
    read_query,
)
from receiver.web.dashboard.sign_in import require_session
from receiver.web.http import optional

TEXTS = ("body", "header", "file")
TIMES = ("received_after", "received_before")

blueprint.add_app_template_filter(reason_words)


@blueprint.get("/events")
@require_session
def events(services: Services, caller: Caller) -> Response:
    """List verified callbacks, newest first."""
    query = read_query(schemas.EventsQuery)
    rows, following = read_events(services, query, caller.bearer)
    return page(
        "events.html",
        rows=rows,
        query=query,
        shown={name: optional(getattr(query, name)) for name in (*TEXTS, *TIMES)},
        kinds=get_args(Kind),
        links=page_links(following),
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


@blueprint.get("/rejections")
@require_session
def rejections(services: Services, caller: Caller) -> Response:
    """List rejected deliveries, newest first."""
    query = read_query(schemas.RejectionsQuery)
    rows, lately, following = read_rejections(services, query, caller.bearer)
    return page(
        "rejections.html",
        rows=rows,
        lately=lately,
        reasons=REASONS,
        instance=next(iter(query.instance), None),
        reason=next(iter(query.reason), None),
        links=page_links(following),
    )


@blueprint.get("/rejections/<int:id>")
@require_session
def rejection(services: Services, caller: Caller, id: int) -> Response:
    """Show a rejected delivery, why it was rejected, and its body."""
    record = the_rejection(services, caller, id)
    return page(
        "rejection.html",
        rejection=record,
        why=explain(record, read_keys(services)).text_for(caller.bearer.instances),
        signature=None if record.signature is None else record.signature.decode("latin-1"),
        body=readable(record.body),
    )


@blueprint.get("/rejections/<int:id>/body")
@require_session
def rejection_body(services: Services, caller: Caller, id: int) -> Response:
    """Return the exact bytes of a rejected delivery."""
    record = the_rejection(services, caller, id)
    if record.body is None:
        raise BodyGone("The body of this delivery was not kept.")
    return download(record.body, f"rejected-{record.id}.bin")


def the_rejection(services: Services, caller: Caller, id_: int) -> Rejection:
    """Return a quarantined delivery that the token reaches. Raises NotFound."""
    with services.database.read() as session:
        record = find_rejection(session, id_, caller.bearer.instances) if id_ < 2**63 else None
    if record is None:
        raise NotFound("This delivery is not in the quarantine, which keeps only the latest.")
    return record
