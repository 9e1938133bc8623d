"""What a worker does beside answering: fetch errors, tell clients, and say that it is alive."""

import os
import threading
from collections.abc import Callable

import structlog

from receiver.errors import StoreError

log = structlog.get_logger()

PAUSE_SECONDS = 1.0
BEAT_EVERY = 30  # pauses


class Background:
    """A thread that does small work until it is closed; one for a process.

    work -- each does what is due and tells whether there was anything. beat -- now and then.
    """

    def __init__(self, work: list[Callable[[], bool]], beat: Callable[[], None]) -> None:
        self._work, self._beat = work, beat
        self._closed = threading.Event()
        self._pid = 0

    def start(self) -> None:
        """Start in this process, unless it was; a thread does not survive a fork."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            threading.Thread(target=self._run, name="background", daemon=True).start()

    def close(self) -> None:
        """Stop after what is under way."""
        self._closed.set()

    def _run(self) -> None:
        rounds = 0
        while not self._closed.wait(PAUSE_SECONDS):
            try:
                if rounds % BEAT_EVERY == 0:
                    self._beat()
                for each in self._work:
                    each()
            except StoreError as error:
                log.warning("background work waits for the database", error=str(error))
            except Exception as error:  # noqa: BLE001 - one odd row must not end all later work
                log.error("background work failed", error=type(error).__name__)  # noqa: TRY400
            rounds += 1
