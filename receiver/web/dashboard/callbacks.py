"""/events and /rejections: verified callbacks, and those rejected for their signature, and why."""

from functools import partial
from typing import get_args

from flask import Response, request, url_for

from receiver.callbacks.diagnosis import reason_words, why_unreadable
from receiver.callbacks.events import EventRecord, get_body
from receiver.callbacks.rejections import REASONS, explain, find_rejection, reverify
from receiver.database.models import Rejection
from receiver.errors import BodyGone, NotFound
from receiver.openconnectors.notifications import Kind
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.callbacks import (
    read_events,
    read_keys,
    read_rejections,
    record_entry,
    reverify_instances,
    the_event,
)
from receiver.web.auth import require_instance
from receiver.web.dashboard.formatting import readable
from receiver.web.dashboard.pages import (
    Action,
    Caller,
    Steps,
    action_page,
    blueprint,
    download,
    flash,
    page,
    page_at,
    read_query,
    redirect_to,
)

blueprint.add_app_template_filter(reason_words)


@page_at("/events")
def events(services: Services, caller: Caller) -> Response:
    """List verified callbacks, newest first."""
    query = read_query(schemas.EventsQuery)
    rows, following = read_events(services, query, caller.bearer)
    return page("events.html", rows=rows, query=query, kinds=get_args(Kind), following=following)


@page_at("/events/<string:id>")
def event(services: Services, caller: Caller, id: str) -> Response:
    """Show a verified callback, and why it could not be read if it could not."""
    record, body = _event(services, caller, id)
    unreadable = record.kind == "unreadable" and body is not None
    why = why_unreadable(body or b"") if unreadable else None
    headers = schemas.stored_event(record).headers
    return page("event.html", event=record, headers=headers, why=why, body=readable(body))


@page_at("/events/<string:id>/body")
def event_body(services: Services, caller: Caller, id: str) -> Response:
    """Return the exact bytes of a callback."""
    record, body = _event(services, caller, id)
    if body is None:
        raise BodyGone(f"The body of {record.id} was deleted at the end of its retention time.")
    return download(body, f"{record.id}.bin")


def _event(services: Services, caller: Caller, id_: str) -> tuple[EventRecord, bytes | None]:
    record = the_event(services, caller.bearer, id_)
    return record, get_body(services.database, record.id)


@page_at("/rejections")
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
        following=following,
    )


@page_at("/rejections/<int:id>")
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


@page_at("/rejections/<int:id>/body")
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


@action_page("/rejections/verify")
def verify_again(services: Services, caller: Caller) -> Steps:
    """Verify all quarantined deliveries again, or those of an instance."""
    instance = request.args.get("instance") or None
    named = [instance] if instance else []
    require_instance(caller.bearer, named)
    yield Action(
        f"Verify the rejected deliveries {f'of {instance} ' if instance else ''}again",
        "Verify again",
        url_for("dashboard.rejections", instance=instance),
        "Each delivery in the quarantine is verified with the current keys.",
        "Those with a right signature are stored as events, like any callback.",
        "The others stay in the quarantine.",
    )
    looked, verified = reverify_instances(services, caller.bearer, named)
    return f"{verified} of {looked} were verified and stored as events."


@action_page("/rejections/<int:id>/verify")
def verify_one(services: Services, caller: Caller, id: int) -> Steps:
    """Verify one quarantined delivery again."""
    rejection = the_rejection(services, caller, id)
    yield Action(
        "Verify this delivery again",
        "Verify again",
        url_for("dashboard.rejection", id=id),
        f"It is verified with the current keys of {rejection.instance}.",
        "If its signature is right, it is stored as an event, like any callback.",
    )
    record = partial(record_entry, services, caller.bearer)
    if not reverify(services.database, services.intake.receive_again, rejection, record):
        return "The signature is still not right; nothing was changed."
    flash(services, caller, "Verified: the delivery is stored as an event.")
    return redirect_to(url_for("dashboard.rejections"))
