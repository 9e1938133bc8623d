"""Threads that read the database for the event loop."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from receiver.errors import StoreUnavailable

T = TypeVar("T")
Done: TypeAlias = Callable[[T | Exception], None]

# Each has a connection of its own. With 8 they answered a fifth to a third less: they contend for
# the interpreter.
THREADS = 4
READ_SECONDS = 5.0  # for a thread to be free: what came before may take the database's 3 s each


class Readers:
    """Runs functions in threads; what they return comes back to the event loop.

    An executor's futures, of which each wakes the loop, took as long as the look-up of a job.
    """

    def __init__(self) -> None:
        self._has_begun = False
        self._waiting: SimpleQueue[tuple[float, Callable[[], Any], Done[Any]]] = SimpleQueue()
        self._results: deque[tuple[Done[Any], Any]] = deque()
        self._is_scheduled = False  # whether the loop will call `_answer`

    def submit(self, read: Callable[[], T], done: Done[T]) -> None:
        """Call `done`, in the loop that this is called in, with what `read` returns or raises."""
        if not self._has_begun:
            self._has_begun = True
            loop = (asyncio.get_running_loop(),)
            for n in range(THREADS):
                threading.Thread(
                    target=self._run, args=loop, name=f"reader-{n}", daemon=True
                ).start()
        self._waiting.put((time.monotonic() + READ_SECONDS, read, done))

    async def read(self, read: Callable[[], T]) -> T:
        """Return what `read` returns. Raises its errors; StoreUnavailable if no thread is free."""
        answer: asyncio.Future[T | Exception] = asyncio.get_running_loop().create_future()

        def done(result: T | Exception) -> None:
            if not answer.done():
                answer.set_result(result)

        self.submit(read, done)
        result = await answer
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            latest, read, done = self._waiting.get()
            result: object = StoreUnavailable("too many ask at the moment")
            if time.monotonic() <= latest:
                try:
                    result = read()
                except Exception as error:  # noqa: BLE001 - whoever asked has it
                    result = error
            self._results.append((done, result))
            # Appended before the flag is read, and `_answer` clears it before it takes any: else a
            # result could come in between and wait for the next one.
            if not self._is_scheduled:
                self._is_scheduled = True
                with suppress(RuntimeError):  # it is closed: the process ends
                    loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._is_scheduled = False
        while self._results:
            done, result = self._results.popleft()
            done(result)
