"""One process that writes for all workers of a server; `remote_writer` is its stand-in in each.

As many writers as workers would have smaller batches; on SQLite, where only one can write at a
time, they would wait for each other's locks and forget what they have read. What is written, and
how, is the thread's (`writer`, `store`); only the items and their results cross a socket.

The process writes until the last of the server's other processes has ended, so that what they were
sent is answered; it does so by a pipe of which they all hold the other end. Killed at any instant,
what it had not answered is 503: the sender comes again, and what was committed is a duplicate.
"""

import gc
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress

import msgspec
import structlog

from receiver.callbacks.deliveries import Result
from receiver.callbacks.remote_writer import Frames, Items, Reply, framed
from receiver.callbacks.store import Store
from receiver.callbacks.writer import write_batch, write_rejections
from receiver.database import migrations
from receiver.database.models import MAX_BATCH
from receiver.errors import ReceiverError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib import logs
from receiver.lib.clock import now_ms
from receiver.settings import Settings

BUFFER_BYTES = 1 << 20

log = structlog.get_logger()

_read_items = msgspec.msgpack.Decoder(Items).decode


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
        """Send it; a worker that is gone needs none, and one that takes none is disconnected.

        Waiting for one that was stopped would hold up all others. The connection is closed where
        its end is read: closed here, it would stay registered, and the next worker that was given
        the same descriptor could not be.
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
            batch: Items = []
            ends: list[tuple[_Worker, int]] = []  # of its items in the batch
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
                    batch += received
                    ends.append((worker, len(batch)))
            self._reply(ends, self._results(batch))
            self._write_rejections()

    def _results(self, batch: Items) -> list[Result]:
        parts = (batch[start : start + MAX_BATCH] for start in range(0, len(batch), MAX_BATCH))
        return [result for part in parts for result in write_batch(self._store, part)]

    def _reply(self, ends: list[tuple[_Worker, int]], results: list[Result]) -> None:
        start, version = 0, self._keys.current.version
        for worker, end in ends:
            worker.reply(Reply(version, results[start:end]))
            start = end

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
    """Be the process that writes. listener, life -- descriptors: see `receiver.server`."""
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
