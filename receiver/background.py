"""What a worker does beside answering: fetch errors, tell clients, forget, say that it is alive."""

import os
import threading
from collections.abc import Callable

import structlog

from receiver.errors import StoreError

log = structlog.get_logger()

PAUSE_SECONDS = 1.0  # where nothing was due
BEAT_SECONDS = 30.0


class Background:
    """Threads that do small work until they are closed; one for each kind of work.

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
            for each in self._work:
                self._thread(each, PAUSE_SECONDS)
            self._thread(self._beats, BEAT_SECONDS)

    def close(self) -> None:
        """Stop after what is under way."""
        self._closed.set()

    def _thread(self, work: Callable[[], bool], pause: float) -> None:
        # Each has its own: a slow client or a long list of errors must not stop the heart.
        threading.Thread(
            target=self._run, args=(work, pause), name="background", daemon=True
        ).start()

    def _beats(self) -> bool:
        self._beat()
        return False

    def _run(self, work: Callable[[], bool], pause: float) -> None:
        more, why = True, ""
        while not self._closed.wait(0 if more else pause):
            more, before, why = False, why, ""
            try:
                more = work()
            except StoreError as error:
                why = str(error)
                if why != before:  # an outage is a line, not one a second
                    log.warning("background work waits for the database", error=why)
            except Exception as error:  # noqa: BLE001 - one odd row must not end all later work
                log.error("background work failed", error=type(error).__name__)  # noqa: TRY400
