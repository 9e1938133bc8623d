"""Group commit: one writer for a process, one transaction for all who wait at the moment.

A commit costs the same for one row as for a hundred, so those that arrive while one is under way
share the next. Nobody waits for a batch to fill. Only `threading` and `queue` are used, looked up
when called, so that it works in threads, in gevent's greenlets, and for an event loop.
"""

import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import structlog

from receiver.callbacks.deliveries import AddressCount, Failed, Item, Result
from receiver.database.models import MAX_BATCH
from receiver.errors import StoreUnavailable

MAX_WAITING = 2048
HANGS_AFTER_SECONDS = 4.5  # in one batch: senders were told to come again by then

log = structlog.get_logger()


class Waiting(NamedTuple):
    """An item that waits to be written. done -- is called with its result, in another thread."""

    item: Item
    done: Callable[[Result], None]
    deadline: float  # on the monotonic clock: nobody waits for it any longer


class Writes(Protocol):
    """What a writer writes to: `store.Store`."""

    def write(self, batch: Sequence[Item]) -> list[Result]:
        """Write a batch; return each item's result."""
        ...

    def write_rejections(self) -> list[AddressCount]:
        """Record what was rejected since."""
        ...


class QueuedWriter(ABC):
    """Takes items from any thread and has them written in batches from one of its own."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pid = 0
        self._closed = False

    def submit(self, item: Item, done: Callable[[Result], None], seconds: float) -> None:
        """Queue an item.

        done -- is called once, in the writer's thread, and must not block or raise.
        seconds -- after which nobody waits any more: then what was not begun is left out.
        Raises StoreUnavailable if the queue is full or the writer is closed.
        """
        waiting = Waiting(item, done, time.monotonic() + seconds)
        if self._closed:
            raise StoreUnavailable("the writer is closed")
        if self._pid != os.getpid():
            self._start()
        if self.waiting >= MAX_WAITING:
            raise StoreUnavailable("too many are waiting to be stored")
        self._queue.put(waiting)

    @property
    def waiting(self) -> int:
        """How many items wait to be written."""
        return self._queue.qsize() if self._pid == os.getpid() else 0

    def close(self) -> None:
        """Write what is queued, then stop; idempotent."""
        with self._guard:
            started = self._pid == os.getpid() and not self._closed
            self._closed = True
        if started:
            self._queue.put(None)
            self._thread.join()

    def _start(self) -> None:
        # A thread does not survive a fork, so each process starts its own at its first item.
        with self._guard:
            if self._pid != os.getpid():
                self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
                self._begin()
                self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
                self._pid = os.getpid()
                self._thread.start()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            taken = [self._queue.get()]
            while len(taken) < MAX_BATCH and not self._queue.empty():
                taken.append(self._queue.get())
            stopping = None in taken
            self._write([waiting for waiting in taken if waiting is not None])
            del taken  # or bodies would be held until the next one comes
        self._end()

    def _begin(self) -> None:  # noqa: B027 - most need nothing
        """Make ready what a process needs, before its thread starts."""

    @abstractmethod
    def _write(self, batch: Sequence[Waiting]) -> None:
        """Write a batch, and see that each item is answered once."""

    def _end(self) -> None:  # noqa: B027 - as above
        """Close what `_begin` and `_write` opened."""


class Writer(QueuedWriter):
    """Commits batches in a thread of this process.

    note_address -- is told how often an address was rejected.
    """

    def __init__(self, store: Writes, note_address: Callable[[AddressCount], None]) -> None:
        super().__init__()
        self._store, self._note_address = store, note_address
        self._began: float | None = None  # the batch that is under way

    @property
    def alive(self) -> bool:
        """Whether items can be submitted and will be written; not by one that hangs in a batch."""
        if self._closed or self._pid != os.getpid():
            return not self._closed
        began = self._began
        hangs = began is not None and time.monotonic() - began > HANGS_AFTER_SECONDS
        return self._thread.is_alive() and not hangs

    def _write(self, batch: Sequence[Waiting]) -> None:
        self._began = time.monotonic()
        write_batch(self._store, batch)
        for address in write_rejections(self._store):
            self._note_address(address)
        self._began = None


def write_batch(store: Writes, batch: Sequence[Waiting]) -> None:
    """Write what somebody still waits for, and answer all in their order, whatever breaks."""
    now = time.monotonic()
    results = iter(_written(store, [waiting.item for waiting in batch if waiting.deadline > now]))
    for waiting in batch:
        # Of what is left out nothing is lost: the sender tries again.
        is_late = waiting.deadline <= now
        waiting.done(Failed("not committed in time") if is_late else next(results))


def _written(store: Writes, items: Sequence[Item]) -> list[Result]:
    try:
        results = store.write(items) if items else []
        if len(results) == len(items):
            return results
        error: BaseException = IndexError("not a result for each")
    except BaseException as raised:  # noqa: BLE001 - who waits must be answered
        error = raised
    return [Failed(f"writing failed: {_log_failure(error)}")] * len(items)


def write_rejections(store: Writes) -> list[AddressCount]:
    """Record what was rejected; nobody waits for that, and nothing it raises matters."""
    try:
        return store.write_rejections()
    except BaseException as error:  # noqa: BLE001 - as it says
        _log_failure(error)
        return []


def _log_failure(error: BaseException) -> str:
    name = type(error).__name__
    log.error("writing failed", error=name)  # without a trace, which may hold what was sent
    return name
