"""Deliveries taken on an event loop, and what becomes of them brought back to it."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TypeAlias

import structlog

from receiver.callbacks.deliveries import Delivery, Receipt
from receiver.errors import StoreUnavailable

log = structlog.get_logger()

Done: TypeAlias = Callable[[Receipt | Exception], None]


class Receipts:
    """Has deliveries stored for those who wait on one event loop.

    The writer's thread wakes the loop up once a batch, not once a delivery: that is a system call,
    and the interpreter's lock handed over in the midst of the batch. One timer looks after all.
    submit -- has a delivery stored and calls `done` once, in any thread. seconds -- until an
    answer must be there.
    """

    def __init__(
        self,
        submit: Callable[[Delivery, Done], None],
        seconds: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._submit, self._seconds, self._loop = submit, seconds, loop
        self._numbers = count()
        self._waiting: dict[int, tuple[Done, float]] = {}  # with its deadline; in this order
        self._answers: deque[tuple[int, Receipt | Exception]] = deque()
        self._is_woken = False
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, delivery: Delivery, done: Done) -> None:
        """Have a delivery stored; `done` is called once, in the loop."""
        number = next(self._numbers)
        self._waiting[number] = done, self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._expire)
        self._submit(delivery, partial(self._put, number))

    def _put(self, number: int, answer: Receipt | Exception) -> None:
        # First this, then the look at `_is_woken`; in `_bring` the other way round: none is missed.
        self._answers.append((number, answer))
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._bring)

    def _bring(self) -> None:
        self._is_woken = False
        while self._answers:
            number, answer = self._answers.popleft()
            if waiting := self._waiting.pop(number, None):
                try:
                    waiting[0](answer)
                except Exception as error:  # noqa: BLE001 - the others of the batch are answered
                    log.error("an answer was not sent", error=type(error).__name__)  # noqa: TRY400

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for number, (done, deadline) in list(self._waiting.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            del self._waiting[number]
            done(StoreUnavailable("not committed in time"))
