"""One process that writes for all workers of a server; `RemoteWriter` is its stand-in in each.

As many writers as workers would have smaller batches; on SQLite, where only one can write at a
time, they would wait for each other's locks and forget what they have read. What is written, and
how, is the thread's (`writer`, `store`); only the items and their results cross a socket.

The process writes until the last of the server's other processes has ended, so that what they were
sent is answered; it does so by a pipe of which they all hold the other end. Killed at any instant,
what it had not answered is 503: the sender comes again, and what was committed is a duplicate.
"""

import asyncio
import gc
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TypeAlias

import msgspec
import structlog

from receiver.callbacks import writer
from receiver.callbacks.deliveries import AddressCount, Failed, Item, Result
from receiver.callbacks.store import Store
from receiver.callbacks.writer import Waiting, answer, write_batch, write_rejections
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.database.models import MAX_BATCH
from receiver.errors import ReceiverError, StoreError, StoreUnavailable
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib import logs
from receiver.lib.clock import now_ms
from receiver.settings import Settings

BUFFER_BYTES = 1 << 20

Items: TypeAlias = list[tuple[float, Item]]  # with their deadlines

log = structlog.get_logger()


class Reply(msgspec.Struct, array_like=True):
    """Results in the order of the items. version -- of the keys that the writer judges by."""

    version: int
    results: list[Result] = []
    addresses: list[AddressCount] = []


_LENGTH = struct.Struct("!I")
_encode = msgspec.msgpack.Encoder().encode
_read_items = msgspec.msgpack.Decoder(Items).decode
_read_reply = msgspec.msgpack.Decoder(Reply).decode


class Frames:
    """Messages in a stream, each preceded by its length."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take what came; yield the messages that are complete by now."""
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
    """Return a message, preceded by its length."""
    encoded = _encode(message)
    return _LENGTH.pack(len(encoded)) + encoded


class RemoteWriter(asyncio.Protocol):
    """What `writer.Writer` is, for the process that writes; it lives on the worker's event loop.

    Items submitted within one turn of the loop are sent as one message. path -- the process's
    socket. keys -- read anew when the writer has newer ones. note_address -- as of Writer.
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
        self._is_scheduled = False  # whether the loop will call `_send`
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
        # Queued before the flag is read, and `_send` clears it before it reads the queue: else an
        # item could be queued in between and wait for the next one.
        if not self._is_scheduled:
            self._is_scheduled = True
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
        """Send what was queued meanwhile."""
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
        self._is_scheduled = False
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
            self._keys.refresh(self._database)


class _Worker:
    """A worker's end in the writer process."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self._frames = connection, Frames()

    def received(self) -> Items | None:
        """Take what it has sent; None if it is gone."""
        try:
            data = self.connection.recv(BUFFER_BYTES)
        except OSError:
            return None
        if not data:
            return None
        return [item for frame in self._frames.feed(data) for item in _read_items(frame)]

    def reply(self, reply: Reply) -> None:
        """Send a reply; disconnect a worker that does not take it.

        To wait for one that was stopped would hold up all others. The connection is shut down, and
        closed in `run`, which reads its end: closed here, its descriptor would stay registered, and
        a new worker with the same one could not be.
        """
        try:
            self.connection.sendall(framed(reply))
        except OSError as error:
            if isinstance(error, BlockingIOError):
                log.warning("a worker that takes no answers is disconnected")
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


class WriterProcess:
    """Takes items from all workers at once and writes them in batches."""

    def __init__(self, listener: socket.socket, life: int, store: Store, keys: Keys) -> None:
        self._listener, self._life = listener, life
        self._store, self._keys = store, keys
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(life, selectors.EVENT_READ)

    def run(self) -> None:
        """Write until nobody is left who could send anything."""
        while True:
            batch: list[tuple[_Worker, Items]] = []
            for key, _ in self._selector.select():
                if key.fileobj == self._life:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                    continue
                worker: _Worker = key.data
                items = worker.received()
                if items is None:
                    self._selector.unregister(worker.connection)
                    worker.connection.close()
                elif items:
                    batch.append((worker, items))
            results = iter(self._results([item for _, items in batch for item in items]))
            for worker, items in batch:
                version = self._keys.current.version
                worker.reply(Reply(version, list(islice(results, len(items)))))
            self._write_rejections()

    def _results(self, items: Items) -> list[Result]:
        parts = (items[start : start + MAX_BATCH] for start in range(0, len(items), MAX_BATCH))
        return [result for part in parts for result in write_batch(self._store, part)]

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(0)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self._selector.register(connection, selectors.EVENT_READ, _Worker(connection))

    def _write_rejections(self) -> None:
        if addresses := write_rejections(self._store):
            for key in list(self._selector.get_map().values()):
                if key.data is not None:
                    key.data.reply(Reply(self._keys.current.version, [], addresses))


def main(listener: int, life: int) -> None:
    """Run the process that writes. listener, life -- descriptors: see `receiver.server`."""
    # Whoever stops the server stops all of its processes; this one ends after the others.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    logs.configure()
    settings = Settings.from_env(os.environ)
    database = migrations.open_database(settings.database_url)
    keys = Keys(SecretBox(settings.encryption_keys), settings.default_keys)
    process = WriterProcess(
        socket.socket(fileno=listener), life, Store(database, keys, now_ms), keys
    )
    gc.collect()
    gc.freeze()
    try:
        process.run()
    finally:
        database.close()


if __name__ == "__main__":
    try:
        main(*map(int, sys.argv[1:]))
    except ReceiverError:
        sys.exit(1)  # each worker says what is wrong
