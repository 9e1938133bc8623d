"""Group commit: one writer, one transaction for all who wait at the moment.

A commit costs the same for one row as for a hundred, so those that arrive while one is under way
share the next. Nobody waits for a batch to fill.
"""

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from receiver import metrics
from receiver.callbacks.deliveries import AddressCount, Failed, Item, Result
from receiver.callbacks.store import Store
from receiver.database.models import MAX_BATCH
from receiver.errors import StoreUnavailable

MAX_WAITING = 2048
HANGS_AFTER_SECONDS = 4.5  # in one batch: senders got 503 by then

log = structlog.get_logger()


class Waiting(NamedTuple):
    """An item that waits to be written. done -- is called with its result, once.

    deadline -- on the monotonic clock, which all processes share: nobody waits for it any longer.
    """

    deadline: float
    item: Item
    done: Callable[[Result], None]


class Writer:
    """Commits batches in a thread of this process.

    Only `threading` and `queue` are used, looked up when called, so that it works in threads and in
    gevent's greenlets. note_address -- called with how often an address was rejected.
    """

    def __init__(self, store: Store, note_address: Callable[[AddressCount], None]) -> None:
        self._store, self._note_address = store, note_address
        self._lock = threading.Lock()
        self._pid = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began: float | None = None  # the batch that is under way

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call `done` in this loop from now on; it is woken once a batch."""
        self._loop = loop

    def submit(self, item: Item, done: Callable[[Result], None], seconds: float) -> None:
        """Queue an item, from any thread.

        done -- is called once, in the writer's thread or the loop, and must not block.
        seconds -- after which nobody waits any more: then what was not begun is left out.
        Raises StoreUnavailable if the queue is full or the writer is closed.
        """
        waiting = Waiting(time.monotonic() + seconds, item, done)
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

    @property
    def alive(self) -> bool:
        """Whether items can be submitted and will be written; not by one that hangs in a batch."""
        if self._closed or self._pid != os.getpid():
            return not self._closed
        began = self._began
        hangs = began is not None and time.monotonic() - began > HANGS_AFTER_SECONDS
        return self._thread.is_alive() and not hangs

    def close(self) -> None:
        """Write what is queued, then stop; idempotent."""
        with self._lock:
            started = self._pid == os.getpid() and not self._closed
            self._closed = True
        if started:
            self._queue.put(None)
            self._thread.join()

    def _start(self) -> None:
        # A thread does not survive a fork, so each process starts its own at its first item.
        with self._lock:
            if self._pid != os.getpid():
                self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
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

    def _write(self, batch: Sequence[Waiting]) -> None:
        self._began = time.monotonic()
        results = write_batch(self._store, [waiting[:2] for waiting in batch])
        self._call(partial(answer, batch, results))
        for address in write_rejections(self._store):
            self._note_address(address)
        self._began = None

    def _call(self, answers: Callable[[], None]) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(answers)
            except RuntimeError:  # it is closed: the process ends
                pass
            else:
                return
        answers()


def write_batch(store: Store, batch: Sequence[tuple[float, Item]]) -> list[Result]:
    """Write those of (deadline, item) that somebody still waits for; return all results in order.

    Of what is left out nothing is lost: the sender tries again.
    """
    now = time.monotonic()
    results = iter(_written(store, [item for deadline, item in batch if deadline > now]))
    late = Failed("not committed in time")
    return [next(results) if deadline > now else late for deadline, _ in batch]


def answer(batch: Iterable[Waiting], results: Iterable[Result]) -> None:
    """Answer all who wait, whatever breaks."""
    for waiting, result in zip(batch, results, strict=True):
        try:
            waiting.done(result)
        except Exception as error:  # noqa: BLE001 - the others of the batch are answered
            log.error("an answer was not sent", error=type(error).__name__)  # noqa: TRY400
    metrics.write_counts()


def write_rejections(store: Store) -> list[AddressCount]:
    """Record what was rejected; nobody waits for that, and nothing it raises matters."""
    try:
        return store.write_rejections()
    except BaseException as error:  # noqa: BLE001 - as it says
        _log_failure(error)
        return []


def _written(store: Store, items: Sequence[Item]) -> list[Result]:
    try:
        results = store.write(items) if items else []
        if len(results) == len(items):
            return results
        error: BaseException = IndexError("not a result for each")
    except BaseException as raised:  # noqa: BLE001 - who waits must be answered
        error = raised
    return [Failed(f"writing failed: {_log_failure(error)}")] * len(items)


def _log_failure(error: BaseException) -> str:
    name = type(error).__name__
    log.error("writing failed", error=name)  # without a trace, which may hold what was sent
    return name
