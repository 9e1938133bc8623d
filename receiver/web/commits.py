"""Waiting for the writer in an event loop."""

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial

from receiver.callbacks.deliveries import Delivery, Receipt
from receiver.callbacks.intake import Intake
from receiver.errors import ReceiverError, StoreUnavailable


class Commits:
    """Brings what the writer has done to the event loop, a batch at a time.

    Waking the loop up for each would be a system call, and the interpreter's lock handed over, in
    the midst of the batch. Nor has each a timer: one looks after all.
    """

    def __init__(self, intake: Intake, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._intake, self._loop, self._seconds = intake, loop, seconds
        self._done: deque[tuple[asyncio.Future[Receipt], Receipt | ReceiverError]] = deque()
        self._woken = False
        self._waiting: dict[asyncio.Future[Receipt], float] = {}  # until when, in this order
        self._timer: asyncio.TimerHandle | None = None

    def of(self, delivery: Delivery) -> asyncio.Future[Receipt]:
        """Have a delivery stored; the future gives its receipt, or raises its error."""
        waiter: asyncio.Future[Receipt] = self._loop.create_future()
        self._waiting[waiter] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._expire)
        self._intake.submit(delivery, partial(self._put, waiter))
        return waiter

    def _put(self, waiter: asyncio.Future[Receipt], answer: Receipt | ReceiverError) -> None:
        # First this, then the look at `_woken`; below the other way round: none is left behind.
        self._done.append((waiter, answer))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._bring)

    def _bring(self) -> None:
        self._woken = False
        while self._done:
            waiter, answer = self._done.popleft()
            self._waiting.pop(waiter, None)
            if waiter.done():
                continue
            if isinstance(answer, Receipt):
                waiter.set_result(answer)
            else:
                waiter.set_exception(answer)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for waiter, deadline in list(self._waiting.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                break
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_exception(StoreUnavailable("not committed in time"))
