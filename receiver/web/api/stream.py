"""A live feed of verified callbacks, as Server-Sent Events.

`id:` says where to go on. It may stand without an event: then all that was visible at the time in
it was sent. What is not sent though it should be is an event of its own, `missed`.
"""

from collections.abc import Iterable
from dataclasses import replace

import msgspec

from receiver.callbacks.events import EventRecord, event_number
from receiver.callbacks.feed import Reader
from receiver.errors import BadParameter, NoStream
from receiver.instances.tokens import find_bearer
from receiver.jobs.queries import reachable
from receiver.jobs.timeline import event_id
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.routes import ApiRequest
from receiver.web.auth import bearer_token, require_instance
from receiver.web.http import Response, Stream, optional
from receiver.web.problems import response_to

MEDIA_TYPE = "text/event-stream"
HEADERS = {
    "Content-Type": MEDIA_TYPE,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx passes each event on as it comes
}
_DETAILS = {
    "too_old": "events since then are no longer kept: the stream begins with the oldest",
    "unknown_id": "no event here has this id yet (another receiver's, or the clock was put back):"
    " the stream begins now",
    "body_removed": "the body of this event is no longer kept",
}


def stream_events(services: Services, request: ApiRequest[schemas.StreamQuery]) -> Response:
    """Send verified callbacks as they come, as Server-Sent Events."""
    query, bearer, http = request.query, request.bearer, request.http
    require_instance(bearer, query.instance)
    last = http.last_event_id or optional(query.last_event_id)
    after = event_number(last) if last else None
    if after is not None and after < 0:
        raise BadParameter("Last-Event-ID is not an id of a stream")
    reader = Reader(services.database, services.clock)
    missed = reader.begin(after)
    opening = b":\n\n" if missed is None else _missed(schemas.Missed(missed, _DETAILS[missed]))
    if reader.position:
        opening += position_message(reader.position)
    token = bearer_token(http)
    stream = Stream(
        reader,
        opening,
        reachable(query.instance, bearer.instances),
        lambda: find_bearer(services.database, token, services.clock()) is not None,
    )
    # What is answered by a server that cannot do it.
    problem = NoStream("no streams under this server; `receiver serve` sends them")
    return replace(response_to(problem, http.path), stream=stream)


def event_messages(
    events: Iterable[tuple[EventRecord, bytes | None]],
) -> list[tuple[int, str, bytes]]:
    """Write events as they are sent: (number, instance, message)."""
    return [
        (event_number(record.id), record.instance, _event(record, body)) for record, body in events
    ]


def position_message(n: int) -> bytes:
    """Write that all that was visible at the time in a number was sent."""
    return f":\nid: {event_id(n)}\n\n".encode()


def _event(record: EventRecord, body: bytes | None) -> bytes:
    if body is not None:
        return _message("event.received", schemas.streamed_event(record, body), record.id)
    place = record.id, record.instance, record.job
    missed = schemas.Missed("body_removed", _DETAILS["body_removed"], *place)
    return _missed(missed, record.id)


def _missed(missed: schemas.Missed, id_: str | None = None) -> bytes:
    return _message("missed", missed, id_)


def _message(type_: str, content: msgspec.Struct, id_: str | None) -> bytes:
    head = f"id: {id_}\n" if id_ else ""
    return b"%bevent: %b\ndata: %b\n\n" % (
        head.encode(),
        type_.encode(),
        msgspec.json.encode(content),
    )
