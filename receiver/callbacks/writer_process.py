"""One process that writes for all workers of a server, and its stand-in in each of them.

On SQLite only one can write at a time: as many writers as workers would have smaller batches, and
wait for each other's locks and forget what they have read. What is written, and how, is the
thread's (`writer`, `store`); only the items and their results cross a socket.

The process writes until the last of the server's other processes has ended, so that what they were
sent is answered; it does so by a pipe of which they all hold the other end. Killed at any instant,
what it had not answered is 503: the sender comes again, and what was committed is a duplicate.
"""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeAlias

import msgspec

from receiver.callbacks.deliveries import AddressCount, Failed, Item, Result
from receiver.callbacks.store import Store
from receiver.callbacks.writer import QueuedWriter, Waiting, write_batch, write_rejections
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.database.models import MAX_BATCH
from receiver.errors import ReceiverError, StoreError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib import logs
from receiver.lib.clock import now_ms
from receiver.settings import Settings

BUFFER_BYTES = 1 << 20

_LENGTH = struct.Struct("!I")
# To the writer: until when somebody waits, on the monotonic clock, which all processes share.
_Items: TypeAlias = list[tuple[float, Item]]


class _Reply(msgspec.Struct, array_like=True):
    """Results in the order of the items. version -- of the keys that the writer judges by."""

    version: int
    results: list[Result] = []
    addresses: list[AddressCount] = []


_encode = msgspec.msgpack.Encoder().encode
_items = msgspec.msgpack.Decoder(_Items).decode
_reply = msgspec.msgpack.Decoder(_Reply).decode


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


def _framed(message: object) -> bytes:
    encoded = _encode(message)
    return _LENGTH.pack(len(encoded)) + encoded


class _Worker:
    """A worker's end in the writer process. results -- of the batch, in the order of its items."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.frames = connection, Frames()
        self.results: list[Result] = []

    def received(self) -> list[Waiting] | None:
        """Take what it has sent; None if it is gone."""
        try:
            data = self.connection.recv(BUFFER_BYTES)
        except OSError:
            return None
        if not data:
            return None
        return [
            Waiting(item, self.results.append, deadline)
            for frame in self.frames.feed(data)
            for deadline, item in _items(frame)
        ]

    def reply(self, reply: _Reply) -> None:
        """Send it; a worker that is gone needs none."""
        try:
            self.connection.sendall(_framed(reply))
        except OSError:
            self.connection.close()


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
            batch: list[Waiting] = []
            workers: list[_Worker] = []
            for key, _ in self._selector.select():
                if key.fileobj == self._life:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                    continue
                worker: _Worker = key.data
                received = worker.received()
                if received is None:
                    self._selector.unregister(worker.connection)
                    worker.connection.close()
                elif received:
                    workers.append(worker)
                    batch += received
            for start in range(0, len(batch), MAX_BATCH):
                write_batch(self._store, batch[start : start + MAX_BATCH])
            for worker in workers:
                results, worker.results[:] = list(worker.results), []
                worker.reply(_Reply(self._keys.current.version, results))
            self._write_rejections()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        _enlarge(connection)
        self._selector.register(connection, selectors.EVENT_READ, _Worker(connection))

    def _write_rejections(self) -> None:
        if addresses := write_rejections(self._store):
            for key in list(self._selector.get_map().values()):
                if key.data is not None:
                    key.data.reply(_Reply(self._keys.current.version, [], addresses))


class RemoteWriter(QueuedWriter):
    """In a worker: what `writer.Writer` is, for the process that writes.

    keys -- are read anew when the writer has newer ones. note_address -- as there.
    """

    def __init__(
        self,
        path: str,
        database: Database,
        keys: Keys,
        note_address: Callable[[AddressCount], None],
    ) -> None:
        super().__init__()
        self._path, self._database, self._keys = path, database, keys
        self._note_address = note_address

    @property
    def alive(self) -> bool:
        """Whether items are written: none was sent so long ago that nobody waits for it."""
        if self._closed or self._pid != os.getpid() or self._link is None:
            return not self._closed
        oldest = self._link.oldest()
        return oldest is None or time.monotonic() < oldest

    @property
    def waiting(self) -> int:
        """How many items are not answered yet."""
        if self._pid != os.getpid():
            return 0
        return super().waiting + (len(self._link.sent) if self._link else 0)

    def _begin(self) -> None:
        self._link: _Link | None = None

    def _write(self, batch: Sequence[Waiting]) -> None:
        if batch:
            if self._link is None or self._link.is_lost:
                self._link = _Link(self._path, self._note)
            self._link.send(batch)

    def _end(self) -> None:
        if self._link is not None:
            self._link.close()

    def _note(self, reply: _Reply) -> None:
        for address in reply.addresses:
            self._note_address(address)
        if reply.version != self._keys.current.version:
            with suppress(StoreError):  # the writer judges again meanwhile
                self._keys.fresh(self._database)


class _Link:
    """A connection to the process that writes, until one of the two ends. note -- reads a reply."""

    def __init__(self, path: str, note: Callable[[_Reply], None]) -> None:
        self._note = note
        self._guard = threading.Lock()
        self._drained = threading.Event()
        self._connection = socket.socket(socket.AF_UNIX)
        self.sent: deque[Waiting] = deque()
        self.is_lost = False
        try:
            self._connection.connect(path)
        except OSError:
            self._lose()
            return
        _enlarge(self._connection)
        threading.Thread(target=self._receive, name="written", daemon=True).start()

    def oldest(self) -> float | None:
        """Until when somebody waits for the item that was sent first."""
        with self._guard:
            return self.sent[0].deadline if self.sent else None

    def send(self, batch: Sequence[Waiting]) -> None:
        """Send items; what cannot be sent, or is not answered, fails."""
        with self._guard:
            self.sent.extend(batch)
        items: _Items = [(waiting.deadline, waiting.item) for waiting in batch]
        try:
            self._connection.sendall(_framed(items))
        except OSError:
            self._lose()
        if self.is_lost:  # since it was looked at
            self._lose()

    def close(self) -> None:
        """Wait for what was sent, and end."""
        while (oldest := self.oldest()) is not None:
            self._drained.clear()
            if not self._drained.wait(max(0, oldest - time.monotonic())):
                break
        self._lose()

    def _receive(self) -> None:
        frames = Frames()
        with suppress(OSError):
            while data := self._connection.recv(BUFFER_BYTES):
                for frame in frames.feed(data):
                    self._answer(_reply(frame))
        self._lose()
        self._connection.close()

    def _answer(self, reply: _Reply) -> None:
        with self._guard:
            answered = [self.sent.popleft() for _ in reply.results]
        for waiting, result in zip(answered, reply.results, strict=True):
            waiting.done(result)
        self._drained.set()
        self._note(reply)

    def _lose(self) -> None:
        self.is_lost = True
        with self._guard:
            lost = list(self.sent)
            self.sent.clear()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        for waiting in lost:  # committed or not: the sender comes again
            waiting.done(Failed("the process that writes is away"))
        self._drained.set()


def _enlarge(connection: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)


def main(listener: int, life: int) -> None:
    """Be the process that writes. listener, life -- descriptors: see `receiver.server`."""
    # Whoever stops the server stops all of its processes; this one ends after the others.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    logs.configure()
    settings = Settings.from_env(os.environ)
    database = migrations.opened(settings.database_url)
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
