"""/api/v1/events, /rejections and /summary: what arrived, what was refused, how it stands."""

from typing import Any

from flask import Response

from receiver.clock import iso
from receiver.errors import BodyGone, EventGone, NotFound
from receiver.storage import queries
from receiver.storage.models import FORGOTTEN
from receiver.web import services, shapes
from receiver.web.api import answers, blueprint, json_response, moment, paged, position_of, spec
from receiver.web.auth import check_instances, who


@blueprint.get("/events")
@spec.validate(resp=answers(shapes.EventPage, 403))
def list_events(query: shapes.EventsQuery) -> Response:
    """List verified callbacks, newest first."""
    check_instances(query.instance)
    wanted = queries.EventFilter(
        instances=query.instance,
        kinds=query.kind,
        jobs=query.job,
        received_after=moment(query.received_after),
        received_before=moment(query.received_before),
    )
    after = position_of(query.cursor, (int, str))
    with services().database.read() as session:
        rows = queries.events(session, wanted, who().instances, query.limit + 1, after)
    return paged(rows, query.limit, "events", shapes.event, lambda row: (row.received_at, row.id))


@blueprint.get("/events/<string:id>")
@spec.validate(resp=answers(shapes.Event, 404, 410))
def show_event(id: str, query: shapes.NoQuery) -> Response:  # noqa: A002, ARG001 - refuses parameters
    """Show a verified callback."""
    return json_response(shapes.event(_event(id)))


@blueprint.get("/events/<string:id>/body")
@spec.validate(resp=answers(None, 404, 410))
def show_body(id: str, query: shapes.NoQuery) -> Response:  # noqa: A002, ARG001 - refuses parameters
    """Give the exact bytes of a callback."""
    row = _event(id)
    with services().database.read() as session:
        body = queries.body(session, row.id)
    if body is None:
        raise BodyGone(f"the body of {row.id} is kept no longer")
    response = Response(body, mimetype="application/octet-stream")
    response.headers["Content-Disposition"] = f'attachment; filename="{row.id}.bin"'
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@blueprint.get("/rejections")
@spec.validate(resp=answers(shapes.RejectionPage, 403))
def list_rejections(query: shapes.RejectionsQuery) -> Response:
    """List deliveries that were refused for their signature, newest first."""
    check_instances(query.instance)
    wanted = queries.RejectionFilter(
        instances=query.instance,
        reasons=query.reason,
        peers=query.peer,
        after=moment(query.after),
        before=moment(query.before),
    )
    after = position_of(query.cursor, (int, int))
    with services().database.read() as session:
        rows = queries.rejections(session, wanted, who().instances, query.limit + 1, after)
    return paged(rows, query.limit, "rejections", shapes.rejection, lambda row: (row.at, row.id))


@blueprint.get("/summary")
@spec.validate(resp=answers(shapes.Summary))
def show_summary(query: shapes.NoQuery) -> Response:  # noqa: ARG001 - refuses parameters
    """Count what an operator looks at first."""
    overdue_after = services().settings.overdue_after
    with services().database.read() as session:
        counts = queries.summary(session, who().instances, services().clock(), overdue_after)
    counts["last_callback_at"] = iso(counts["last_callback_at"])
    return json_response(counts)


def _event(event_id: str) -> Any:  # noqa: ANN401 - a row
    with services().database.read() as session:
        row = None if "\0" in event_id else queries.event(session, event_id, who().instances)
    if row is None:
        raise NotFound(f"no event {event_id} is known")
    if row.received_at == FORGOTTEN:
        last = iso(row.last_received_at)
        raise EventGone(f"of {row.id} only the hash is kept; {row.deliveries} deliveries, {last}")
    return row
