"""A worker's end of the process that writes for all workers of a server: see `writer_process`."""

import asyncio
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeAlias

import msgspec

from receiver.callbacks import writer
from receiver.callbacks.deliveries import AddressCount, Failed, Item, Result
from receiver.callbacks.writer import Waiting, answer
from receiver.database.engine import Database
from receiver.errors import StoreError, StoreUnavailable
from receiver.instances.keys import Keys

_LENGTH = struct.Struct("!I")

Items: TypeAlias = list[tuple[float, Item]]  # with their deadlines


class Reply(msgspec.Struct, array_like=True):
    """Results in the order of the items. version -- of the keys that the writer judges by."""

    version: int
    results: list[Result] = []
    addresses: list[AddressCount] = []


_encode = msgspec.msgpack.Encoder().encode
_read_reply = msgspec.msgpack.Decoder(Reply).decode


class Frames:
    """Messages in a stream, each behind its length."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what came; give the messages that are whole by now."""
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= _LENGTH.size:
            end = at + _LENGTH.size + _LENGTH.unpack_from(buffer, at)[0]
            if len(buffer) < end:
                break
            yield bytes(buffer[at + _LENGTH.size : end])
            at = end
        del buffer[:at]


def framed(message: object) -> bytes:
    """Return a message behind its length."""
    encoded = _encode(message)
    return _LENGTH.pack(len(encoded)) + encoded


class RemoteWriter(asyncio.Protocol):
    """What `writer.Writer` is, for the process that writes; it lives on the worker's event loop.

    What comes at one turn of the loop is sent as one message. path -- the process's socket.
    keys -- are read anew when the writer has newer ones. note_address -- as there.
    """

    def __init__(
        self,
        path: str,
        database: Database,
        keys: Keys,
        note_address: Callable[[AddressCount], None],
    ) -> None:
        self._path, self._database, self._keys = path, database, keys
        self._note_address = note_address
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._queued: deque[Waiting] = deque()
        self._sent: deque[Waiting] = deque()
        self._is_due = False  # to be sent at the next turn of the loop
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Future[None] | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, in the thread of the loop."""
        self._loop, self._thread = loop, threading.get_ident()

    def submit(self, item: Item, done: Callable[[Result], None], seconds: float) -> None:
        """Do as `Writer.submit`; `done` is called in the loop."""
        if self._loop is None:
            raise StoreUnavailable("the server starts or stops")
        if self.waiting >= writer.MAX_WAITING:
            raise StoreUnavailable("too many are waiting to be stored")
        self._queued.append(Waiting(time.monotonic() + seconds, item, done))
        # First it is queued, then looked at what is due; `_send` does it the other way round.
        if not self._is_due:
            self._is_due = True
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._send)
            else:
                with suppress(RuntimeError):  # it is closed: the process ends
                    self._loop.call_soon_threadsafe(self._send)

    @property
    def waiting(self) -> int:
        """How many items are not answered yet."""
        return len(self._queued) + len(self._sent)

    @property
    def alive(self) -> bool:
        """Whether items are written: none was sent so long ago that nobody waits for it."""
        with suppress(IndexError):  # nothing is sent
            return time.monotonic() < self._sent[0].deadline
        return True

    def close(self) -> None:
        """Take nothing more. What was taken is answered before the loop ends."""
        self._loop = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what has come meanwhile."""
        self._transport, self._frames = transport, Frames()  # type: ignore[assignment]
        self._send()

    def data_received(self, data: bytes) -> None:
        """Answer those whose results have come."""
        for frame in self._frames.feed(data):
            reply = _read_reply(frame)
            answer([self._sent.popleft() for _ in reply.results], reply.results)
            for address in reply.addresses:
                self._note_address(address)
            if reply.version != self._keys.current.version:
                self._refresh()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever it was
        """Answer those that wait for it: committed or not, the sender comes again."""
        self._transport = None
        self._fail(self._sent)
        self._send()

    def _send(self) -> None:
        self._is_due = False
        if not self._queued or self._loop is None:
            return
        if self._transport is None:
            self._connecting = self._connecting or self._loop.create_task(self._connect())
            return
        batch = [self._queued.popleft() for _ in range(len(self._queued))]
        self._sent.extend(batch)
        self._transport.write(framed([waiting[:2] for waiting in batch]))

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, self._path)
        except OSError:
            self._fail(self._queued)
        finally:
            self._connecting = None

    @staticmethod
    def _fail(lost: deque[Waiting]) -> None:
        batch = [lost.popleft() for _ in range(len(lost))]
        answer(batch, [Failed("the process that writes is away")] * len(batch))

    def _refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().run_in_executor(None, self._read_keys)

    def _read_keys(self) -> None:
        with suppress(StoreError):  # the writer judges again meanwhile
            self._keys.fresh(self._database)
