"""Group commit: one writer for a process, one transaction for all who wait at the moment.

A commit costs the same for one row as for a hundred, so those that arrive while one is under way
share the next. Nobody waits for a batch to fill. Only `threading` and `queue` are used, looked up
when called, so that it works in threads, in gevent's greenlets, and for an asyncio task.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

import structlog

from receiver.errors import ReceiverError, StoreRefused, StoreUnavailable

log = structlog.get_logger()

I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")

_STOP = None
HANGS_AFTER_SECONDS = 4.5  # in one batch: senders were told to come again by then


class Writer(Generic[I, R]):
    """Takes items from any thread and commits them in batches from one.

    commit -- writes a batch in one transaction and gives a result for each item; an item's result
    that is an exception is raised to whoever waits for that item. Raises StoreUnavailable, which
    all of the batch get, or StoreRefused, upon which the items are committed one by one.
    rescue -- what to do with a single item that the store refuses for good.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[I]], Sequence[R | ReceiverError]],
        rescue: Callable[[I, StoreRefused], R],
        *,
        capacity: int = 2048,
        largest_batch: int = 256,
    ) -> None:
        self._commit, self._rescue = commit, rescue
        self._capacity, self._largest_batch = capacity, largest_batch
        self._guard = threading.Lock()
        self._pid = 0
        self._began: float | None = None  # the batch that is under way
        self._closed = False

    def submit(self, item: I) -> "Future[R]":
        """Queue an item; its Future is done once it is committed.

        Raises StoreUnavailable if the queue is full or the writer is closed.
        """
        future: Future[R] = Future()
        with self._guard:
            if self._closed:
                raise StoreUnavailable("the writer is closed")
            self._start()
            try:
                self._queue.put_nowait((item, future))
            except queue.Full:
                raise StoreUnavailable("too many are waiting to be stored") from None
        return future

    @property
    def alive(self) -> bool:
        """Whether items can be submitted and will be written; not by one that hangs in a batch."""
        if self._closed or self._pid != os.getpid():
            return not self._closed
        began = self._began
        hangs = began is not None and time.monotonic() - began > HANGS_AFTER_SECONDS
        return self._thread.is_alive() and not hangs

    @property
    def waiting(self) -> int:
        """How many items wait for the next batch."""
        return self._queue.qsize() if self._pid == os.getpid() else 0

    def close(self) -> None:
        """Write what is queued, then stop; idempotent."""
        with self._guard:
            started = self._pid == os.getpid() and not self._closed
            self._closed = True
        if started:
            self._queue.put(_STOP)
            self._thread.join()

    def _start(self) -> None:
        # A thread does not survive a fork, so each process starts its own at its first item.
        if self._pid == os.getpid():
            return
        self._queue: queue.Queue[tuple[I, Future[R]] | None] = queue.Queue(self._capacity)
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._pid = os.getpid()
        self._thread.start()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            taken = [self._queue.get()]
            while len(taken) < self._largest_batch and not self._queue.empty():
                taken.append(self._queue.get())
            stopping = _STOP in taken
            # Who gave up waiting has cancelled: the sender tries again, so nothing is lost.
            live = [entry for entry in taken if entry and entry[1].set_running_or_notify_cancel()]
            if live:
                self._began = time.monotonic()
                self._write(live)
                self._began = None

    def _write(self, batch: "list[tuple[I, Future[R]]]") -> None:
        try:
            results = self._commit([item for item, _ in batch])
            answered = list(zip(batch, results, strict=True))
        except StoreRefused as refused:
            self._write_singly(batch, refused)
        except BaseException as error:  # noqa: BLE001 - who waits must be answered, whatever broke
            _fail(batch, error)
        else:
            for (_, future), result in answered:
                if isinstance(result, ReceiverError):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _write_singly(self, batch: "list[tuple[I, Future[R]]]", refused: StoreRefused) -> None:
        if len(batch) > 1:
            for entry in batch:
                self._write([entry])
            return
        item, future = batch[0]
        try:
            future.set_result(self._rescue(item, refused))
        except BaseException as error:  # noqa: BLE001 - as above
            _fail(batch, error)


def _fail(batch: "Sequence[tuple[I, Future[R]]]", error: BaseException) -> None:
    if not isinstance(error, ReceiverError):
        log.error("writing a batch failed", error=type(error).__name__)
        error = StoreUnavailable(f"writing failed: {type(error).__name__}")
    for _, future in batch:
        future.set_exception(error)
