"""Waiting for the writer in an event loop."""

import asyncio
from collections import deque
from concurrent.futures import Future

from receiver.errors import StoreUnavailable
from receiver.storage.store import Result


class Commits:
    """Brings what the writer has done to the event loop, a batch at a time.

    `asyncio.wrap_future` would wake the loop up for each: a system call, and the interpreter's lock
    handed over, in the midst of the batch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: deque[tuple[asyncio.Future[Result], Future[Result]]] = deque()
        self._woken = False

    async def of(self, future: "Future[Result]", seconds: float) -> Result:
        """Give a future's result, or raise its error; StoreUnavailable when the time is over."""
        waiter: asyncio.Future[Result] = self._loop.create_future()
        future.add_done_callback(lambda done: self._put(waiter, done))
        deadline = self._loop.call_later(seconds, _expire, waiter, future)
        try:
            return await waiter
        finally:
            deadline.cancel()

    def _put(self, waiter: "asyncio.Future[Result]", done: "Future[Result]") -> None:
        # First this, then the look at `_woken`; below the other way round: none is left behind.
        self._done.append((waiter, done))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._bring)

    def _bring(self) -> None:
        self._woken = False
        while self._done:
            waiter, done = self._done.popleft()
            if waiter.done():
                continue
            if error := done.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(done.result())


def _expire(waiter: "asyncio.Future[Result]", future: "Future[Result]") -> None:
    future.cancel()
    if not waiter.done():
        waiter.set_exception(StoreUnavailable("not committed in time"))
