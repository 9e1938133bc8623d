"""Reading the receiver's stream of events, without I/O; `clients` connects and waits."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypedDict, Unpack

import httpx
import msgspec

from receiver.client.answers import Callback, Missed
from receiver.client.errors import ClientError, RequestRejected, Unreachable
from receiver.client.flows import API, Parameter, Request, require_success

SILENT_SECONDS = 40  # the receiver sends something each 15 s
MAX_PAUSE_SECONDS = 8.0
MAX_REMEMBERED = 50_000  # ids; who connects again is sent those of the last 20 s once more

Event: TypeAlias = Callback | Missed

_SHAPES: dict[bytes, type[Event]] = {b"event.received": Callback, b"missed": Missed}


class EventChoice(TypedDict, total=False):
    """What `Client.events` takes."""

    instance: Sequence[str]
    after: str | None
    on_trouble: Callable[[ClientError], object]
    on_begin: Callable[[], object]


class EventStream:
    """Where a reader is: the last id, where it began, and which ids came."""

    def __init__(self, **choice: Unpack[EventChoice]) -> None:
        self._instance = choice.get("instance", ())
        self._last, self._start = choice.get("after"), b""
        self._on_trouble, self._on_begin = choice.get("on_trouble"), choice.get("on_begin")
        # Where it goes on is sent once more, with the last 20 s before it.
        self._ids = dict.fromkeys([self._last.encode()] if self._last else ())
        self._has_begun = self._goes_on = False
        self._failures = 0

    def request(self) -> Request:
        """Return what to ask, to go on behind all that came."""
        self._buffer = bytearray()
        params: dict[str, Parameter] = {"instance": self._instance, "last_event_id": self._last}
        path = f"{API}/stream"
        return Request(method="GET", path=path, params=params, timeout=SILENT_SECONDS)

    def begin(self, answer: httpx.Response) -> None:
        """Look at the head of the answer. Raises ClientError."""
        try:
            require_success(answer)
        except RequestRejected as error:
            if answer.status_code != 429:
                raise
            raise Unreachable(str(error), error.code) from None
        self._has_begun, self._failures = True, 0
        if self._on_begin:
            self._on_begin()

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Take a piece of the answer; yield the events that are complete by now, each once."""
        self._buffer += piece
        while (end := self._buffer.find(b"\n\n")) >= 0:
            lines = bytes(self._buffer[:end]).split(b"\n")
            del self._buffer[: end + 2]
            fields = dict(line.partition(b": ")[::2] for line in lines)
            id_, shape = fields.get(b"id", b""), _SHAPES.get(fields.get(b"event", b""))
            if self._last is None:  # what was there before is sent to who comes again soon
                self._start = id_
            self._last = id_.decode() or self._last
            if shape is not None and not self._has_had(id_):
                yield msgspec.json.decode(fields[b"data"], type=shape)

    def pause(self, trouble: ClientError) -> float:
        """Return the seconds to wait before the next try. Raises the trouble if none succeeded."""
        if not self._has_begun:
            raise trouble
        if self._on_trouble and not self._failures:
            self._on_trouble(trouble)
        self._goes_on = True
        self._failures += 1
        return float(min(2.0**self._failures / 4, MAX_PAUSE_SECONDS))

    def _has_had(self, id_: bytes) -> bool:
        # On the first connection, an id from before the start is of what was committed since.
        if not id_ or id_ in self._ids or (self._goes_on and id_ < self._start):
            return bool(id_)
        self._ids[id_] = None
        if len(self._ids) > MAX_REMEMBERED:
            del self._ids[next(iter(self._ids))]
        return False
