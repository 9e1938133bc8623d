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
from typing import Generic, TypeVar, cast

import structlog

from receiver.errors import ReceiverError, StatementRefused, StoreRefused, StoreUnavailable

log = structlog.get_logger()

I = TypeVar("I")  # noqa: E741 - an item
R = TypeVar("R")

_STOP = None
HANGS_AFTER_SECONDS = 4.5  # in one batch: senders were told to come again by then


class Pending(Generic[I, R]):
    """An item that waits to be committed, and then what became of it.

    What `concurrent.futures.Future` does, but for a lock of its own: that costs as much as all else
    that is done for a callback in the queue.
    """

    __slots__ = ("_error", "_event", "_guard", "_result", "_settled", "_taken", "_tell", "item")

    def __init__(
        self,
        item: I,
        tell: "Callable[[Pending[I, R]], None] | None" = None,
        guard: "threading.Lock | None" = None,
    ) -> None:
        self.item, self._tell, self._guard = item, tell, guard or threading.Lock()
        self._taken = self._settled = False
        self._event: threading.Event | None = None
        self._result: R | None = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether its end is known."""
        return self._settled

    def cancel(self) -> bool:
        """Have the item left out, unless its batch has begun; tell whether it will be."""
        with self._guard:
            return self.take()

    def take(self) -> bool:
        """Claim it, under the writer's lock: nobody else writes it or leaves it out any more."""
        taken, self._taken = self._taken, True
        return not taken

    def settle(self, result: R | None, error: BaseException | None = None) -> None:
        """Note its end and tell whoever waits."""
        self._result, self._error = result, error
        # First this, then the look at `_event`; in `exception` the other way round.
        self._settled = True
        if self._event is not None:
            self._event.set()
        if self._tell is not None:
            self._tell(self)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the result, `timeout` seconds at most.

        Raises the item's error, or TimeoutError.
        """
        if error := self.exception(timeout):
            raise error
        return cast("R", self._result)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as `result` does; give the item's error. Raises TimeoutError."""
        if not self._settled:
            self._event = self._event or threading.Event()
            if not self._settled and not self._event.wait(timeout):
                raise TimeoutError
        return self._error


class Writer(Generic[I, R]):
    """Takes items from any thread and commits them in batches from one.

    commit -- writes a batch in one transaction and gives a result for each item; an item's result
    that is an exception is raised to whoever waits for that item. Raises StoreUnavailable, which
    all of the batch get, or StatementRefused or StoreRefused, upon which the items are committed
    one by one: a single one must not fail its neighbours.
    rescue -- what to do with a single item that raises StoreRefused.
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

    def submit(self, item: I, tell: Callable[[Pending[I, R]], None] | None = None) -> Pending[I, R]:
        """Queue an item; what is returned is done once it is committed.

        tell -- is called with it then, in the writer's thread, and must not block or raise.
        Raises StoreUnavailable if the queue is full or the writer is closed.
        """
        pending = Pending(item, tell, self._guard)
        with self._guard:
            if self._closed:
                raise StoreUnavailable("the writer is closed")
            self._start()
            if self._queue.qsize() >= self._capacity:
                raise StoreUnavailable("too many are waiting to be stored")
            self._queue.put(pending)
        return pending

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
        self._queue: queue.SimpleQueue[Pending[I, R] | None] = queue.SimpleQueue()
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
            with self._guard:
                # Who gave up waiting has cancelled: the sender tries again, so nothing is lost.
                batch = [pending for pending in taken if pending and pending.take()]
            if batch:
                self._began = time.monotonic()
                self._write(batch)
                self._began = None
            del taken, batch  # or bodies would be held until the next one comes

    def _write(self, batch: list[Pending[I, R]]) -> None:
        try:
            results = self._commit([pending.item for pending in batch])
            answered = list(zip(batch, results, strict=True))
        except (StatementRefused, StoreRefused) as refused:
            self._write_singly(batch, refused)
        except BaseException as error:  # noqa: BLE001 - who waits must be answered, whatever broke
            _fail(batch, error)
        else:
            for pending, result in answered:
                if isinstance(result, ReceiverError):
                    pending.settle(None, result)
                else:
                    pending.settle(result)

    def _write_singly(
        self, batch: list[Pending[I, R]], refused: StatementRefused | StoreRefused
    ) -> None:
        if len(batch) > 1:
            for pending in batch:
                self._write([pending])
            return
        if isinstance(refused, StatementRefused):
            _fail(batch, refused)
            return
        try:
            batch[0].settle(self._rescue(batch[0].item, refused))
        except BaseException as error:  # noqa: BLE001 - as above
            _fail(batch, error)


def _fail(batch: Sequence[Pending[I, R]], error: BaseException) -> None:
    if not isinstance(error, ReceiverError):
        log.error("writing a batch failed", error=type(error).__name__)
        error = StoreUnavailable(f"writing failed: {type(error).__name__}")
    for pending in batch:
        pending.settle(None, error)
