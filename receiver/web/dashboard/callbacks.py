"""/events and /rejections: verified callbacks, and those rejected for their signature, and why."""

from typing import get_args
from urllib.parse import urlencode

from flask import Response, request
from msgspec import UNSET, Struct, UnsetType

from receiver.callbacks.diagnosis import Reason, reason_words, why_unreadable
from receiver.callbacks.events import EventRecord, get_body, get_event, list_events
from receiver.callbacks.rejections import (
    REASONS,
    RejectionFilters,
    find_rejection,
    list_rejections,
)
from receiver.database.models import Rejection
from receiver.errors import BodyGone, NotFound
from receiver.jobs.summary import rejections_by_reason
from receiver.openconnectors.notifications import Kind
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.callbacks import event_filters, read_keys
from receiver.web.auth import require_instance
from receiver.web.dashboard.formatting import readable
from receiver.web.dashboard.pages import Caller, blueprint, download, filled_parameters, link, page
from receiver.web.dashboard.sign_in import require_session
from receiver.web.http import optional, parameters, read_cursor, write_cursor

A_PAGE = 50  # of rejections
TEXTS = ("body", "header", "file")
TIMES = ("received_after", "received_before")

blueprint.add_app_template_filter(reason_words)


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


class RejectionsQuery(Struct, forbid_unknown_fields=True):
    """Which rejected deliveries are listed."""

    instance: schemas.Word | UnsetType = UNSET
    reason: Reason | UnsetType = UNSET
    cursor: schemas.Cursor | UnsetType = UNSET


@blueprint.get("/rejections")
@require_session
def rejections(services: Services, caller: Caller) -> Response:
    """List rejected deliveries, newest first."""
    query = parameters(urlencode(filled_parameters()), RejectionsQuery)
    instance, reason = optional(query.instance), optional(query.reason)
    require_instance(caller.bearer, [instance] if instance else [])
    wanted = RejectionFilters(
        instances=[instance] if instance else [],
        reasons=[reason] if reason else [],
        visible=caller.bearer.instances,
    )
    after = read_cursor(query.cursor, tuple[int, int])
    keys = read_keys(services)
    rows = list_rejections(services.database, wanted, A_PAGE + 1, after)
    with services.database.read() as session:
        causes = keys.describe(session, rows[:A_PAGE], caller.bearer.instances)
        lately = rejections_by_reason(session, caller.bearer.instances, services.clock())
    more = write_cursor((rows[A_PAGE - 1].at, rows[A_PAGE - 1].id)) if len(rows) > A_PAGE else None
    return page(
        "rejections.html",
        rows=list(zip(rows, causes, strict=False)),
        lately=lately,
        reasons=REASONS,
        instance=instance,
        reason=reason,
        older=more and link(cursor=more),
        newest=link(cursor=None) if after else None,
    )


@blueprint.get("/rejections/<int:id>")
@require_session
def rejection(services: Services, caller: Caller, id: int) -> Response:
    """Show a rejected delivery, why it was rejected, and its body."""
    record = the_rejection(services, caller, id)
    return page(
        "rejection.html",
        rejection=record,
        why=read_keys(services).explain(record).text_for(caller.bearer.instances),
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
