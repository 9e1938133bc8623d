"""/api/v1/events, /rejections and /summary: what arrived, what was refused, how it stands."""

from flask import Response

from receiver.database.models import FORGOTTEN
from receiver.errors import BodyGone, EventGone, NotFound
from receiver.jobs import lists, queries
from receiver.jobs.lists import EventLine
from receiver.jobs.overview import summary
from receiver.lib.clock import iso
from receiver.web import schemas as shapes
from receiver.web import services
from receiver.web.answers import answer_json, moment, paged, position_of
from receiver.web.api import asked, blueprint, documented, response
from receiver.web.auth import check_instances, question, who


@blueprint.get("/events")
@documented(shapes.EventsQuery, shapes.EventPage, 403)
def list_events() -> Response:
    """List verified callbacks, newest first."""
    query = asked(shapes.EventsQuery)
    check_instances(query.instance)
    wanted = queries.EventFilter(
        instances=query.instance,
        kinds=query.kind,
        jobs=query.job,
        received_after=moment(query.received_after),
        received_before=moment(query.received_before),
    )
    after = position_of(query.cursor, (int, str))
    read = services().database.rows
    found = lists.events(read, wanted, who().instances, query.limit + 1, after)
    return response(
        paged(
            found,
            query.limit,
            "events",
            shapes.event,
            lambda line: (line.received_at, line.id),
            question(),
        )
    )


@blueprint.get("/events/<string:id>")
@documented(shapes.NoQuery, shapes.Event, 404, 410)
def show_event(id: str) -> Response:  # noqa: A002
    """Show a verified callback."""
    asked(shapes.NoQuery)
    return response(answer_json(shapes.event(_event(id))))


@blueprint.get("/events/<string:id>/body")
@documented(shapes.NoQuery, None, 404, 410)
def show_body(id: str) -> Response:  # noqa: A002
    """Give the exact bytes of a callback."""
    asked(shapes.NoQuery)
    row = _event(id)
    with services().database.read() as session:
        body = queries.body(session, row.id)
    if body is None:
        raise BodyGone(f"the body of {row.id} is kept no longer")
    headers = {
        "Content-Disposition": f'attachment; filename="{row.id}.bin"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(body, headers=headers, mimetype="application/octet-stream")


@blueprint.get("/rejections")
@documented(shapes.RejectionsQuery, shapes.RejectionPage, 403)
def list_rejections() -> Response:
    """List deliveries that were refused for their signature, newest first."""
    query = asked(shapes.RejectionsQuery)
    check_instances(query.instance)
    wanted = queries.RejectionFilter(
        instances=query.instance,
        reasons=query.reason,
        peers=query.peer,
        after=moment(query.after),
        before=moment(query.before),
    )
    after = position_of(query.cursor, (int, int))
    read = services().database.rows
    found = lists.rejections(read, wanted, who().instances, query.limit + 1, after)
    return response(
        paged(
            found,
            query.limit,
            "rejections",
            shapes.rejection,
            lambda line: (line.at, line.id),
            question(),
        )
    )


@blueprint.get("/summary")
@documented(shapes.NoQuery, shapes.Summary)
def show_summary() -> Response:
    """Count what an operator looks at first."""
    asked(shapes.NoQuery)
    overdue_after = services().settings.overdue_after
    read = services().database.rows
    counts = summary(read, who().instances, services().clock(), overdue_after)
    counts["last_callback_at"] = iso(counts["last_callback_at"])
    return response(answer_json(counts))


def _event(event_id: str) -> EventLine:
    row = lists.event(services().database.rows, event_id, who().instances)
    if row is None:
        raise NotFound(f"no event {event_id} is known")
    if row.received_at == FORGOTTEN:
        last = iso(row.last_received_at)
        raise EventGone(f"of {row.id} only the hash is kept; {row.deliveries} deliveries, {last}")
    return row
