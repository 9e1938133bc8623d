"""Waiting for the writer in an event loop."""

import asyncio
from collections import deque
from contextlib import suppress

from receiver.callbacks.store import Item, Result
from receiver.callbacks.writer import Pending, Writer
from receiver.errors import StoreUnavailable

_PAUSE_SECONDS = 0.02  # between looks at all who wait: while nothing is committed they are many


class Commits:
    """Brings what the writer has done to the event loop, a batch at a time.

    `asyncio.wrap_future` would wake the loop up for each: a system call, and the interpreter's lock
    handed over, in the midst of the batch. Nor has each a timer: one looks after all.
    """

    def __init__(self, writer: Writer[Item, Result], loop: asyncio.AbstractEventLoop) -> None:
        self._writer, self._loop = writer, loop
        self._done: deque[Pending[Item, Result]] = deque()
        self._woken = False
        self._waiting: dict[Pending[Item, Result], tuple[asyncio.Future[Result], float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def of(self, item: Item, deadline: float) -> asyncio.Future[Result]:
        """Have an item committed, by `deadline` in the loop's time.

        What is returned gives its result, or raises its error; StoreUnavailable when time is over.
        """
        waiter: asyncio.Future[Result] = self._loop.create_future()
        # What is done before this line is brought after it: the loop, which runs this, brings it.
        self._waiting[self._writer.submit(item, self._put)] = waiter, deadline
        if self._timer is None or deadline < self._timer.when():
            self._look_again(deadline)
        return waiter

    def _put(self, pending: Pending[Item, Result]) -> None:
        # First this, then the look at `_woken`; below the other way round: none is left behind.
        self._done.append(pending)
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._bring)

    def _bring(self) -> None:
        self._woken = False
        while self._done:
            pending = self._done.popleft()
            waiter, _ = self._waiting.pop(pending, (None, 0))
            if waiter is None or waiter.done():
                continue
            if error := pending.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(pending.result())

    def _look_again(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for pending, (waiter, deadline) in list(self._waiting.items()):
            if deadline <= now:
                pending.cancel()
                del self._waiting[pending]
                if not waiter.done():
                    waiter.set_exception(StoreUnavailable("not committed in time"))
        if self._waiting:
            earliest = min(deadline for _, deadline in self._waiting.values())
            self._look_again(max(earliest, now + _PAUSE_SECONDS))
