"""Holding an answer back until something happened, for a bounded number of requests."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.05  # seconds between two looks; growing, so that long waits cost little
_LONGEST_PAUSE = 0.5


class Waiters:
    """Those who wait in one process. most -- how many; each of them holds a thread."""

    def __init__(self, most: int) -> None:
        self._places = threading.BoundedSemaphore(most)

    def until(self, look: Callable[[], T], done: Callable[[T], bool], seconds: float) -> T:
        """Look until `done` or until the time is over; just once if too many wait already."""
        seen = look()
        if done(seen) or seconds <= 0 or not self._places.acquire(blocking=False):
            return seen
        try:
            return self._poll(seen, look, done, time.monotonic() + seconds)
        finally:
            self._places.release()

    @staticmethod
    def _poll(seen: T, look: Callable[[], T], done: Callable[[T], bool], deadline: float) -> T:
        pause = _FIRST_PAUSE
        while not done(seen) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            seen = look()
        return seen
