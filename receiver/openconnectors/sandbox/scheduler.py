"""Things to be done later: one thread that waits, pools of threads that do them."""

import heapq
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Condition, RLock, Thread
from typing import Literal

Step = Callable[[], None]
Crew = Literal["loading", "sending"]


class Scheduler:
    """Runs steps when they are due. A slow callback URL holds up sending, but never loading."""

    def __init__(self, lock: RLock) -> None:
        self._changed = Condition(lock)
        self._heap: list[tuple[float, int, Crew, Step]] = []
        self._serial = count()
        self._closed = False
        self._crews = {
            "loading": ThreadPoolExecutor(4, "sandbox-loading"),
            "sending": ThreadPoolExecutor(16, "sandbox-sending"),
        }
        self._thread = Thread(target=self._run, name="sandbox-scheduler", daemon=True)
        self._thread.start()

    def after(self, seconds: float, crew: Crew, step: Step) -> None:
        """Have a thread of `crew` run `step` in `seconds`; never, if closed before."""
        with self._changed:
            due = time.monotonic() + seconds
            heapq.heappush(self._heap, (due, next(self._serial), crew, step))
            self._changed.notify()

    def close(self) -> None:
        """Forget what is not due yet and wait for what is running."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
        self._thread.join()
        for crew in self._crews.values():
            crew.shutdown(cancel_futures=True)

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                pause = self._heap[0][0] - time.monotonic() if self._heap else None
                if pause is None or pause > 0:
                    self._changed.wait(pause)
                else:
                    _, _, crew, step = heapq.heappop(self._heap)
                    self._crews[crew].submit(step)
