"""Whether this process answers callbacks as it should, and since when it does not."""

import os
import socket
from collections.abc import Callable

from receiver.database.engine import Database, database_time
from receiver.database.nodes import note_node
from receiver.lib.clock import MINUTE_MS

RECOVERED_MS = 2 * MINUTE_MS

_SERVER_ERROR, _UNAVAILABLE, _TAKEN = 500, 503, 200


class Health:
    """How this process answers callbacks. clock -- ms since the epoch.

    What failed is over at the next callback that was taken. Where none comes, being able to write
    again is enough for a database that failed, but not for a fault of our own.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._since: int | None = None
        self._last, self._failures, self._fault = 0, 0, False

    def answered(self, status: int) -> None:
        """Note how a callback was answered."""
        if status >= _SERVER_ERROR:
            self._failed(fault=status != _UNAVAILABLE)
        elif self._since is not None and status == _TAKEN:
            self._recovered()

    def beat(self, database: Database, *, alive: bool) -> None:
        """Write down how it stands; alive -- whether callbacks can be written. Raises StoreError.

        That this itself can be written says that the database is back.
        """
        if not alive:
            self._failed(fault=True)
        name = f"{socket.gethostname()[:80]}:{os.getpid()}"
        with database.write() as session:
            now = self._clock()
            is_back = not self._fault and self._last <= now - RECOVERED_MS
            # By the time that all nodes agree on, whatever this machine's clock says.
            at = database_time(session, self._clock)
            since = None if is_back or self._since is None else at - (now - self._since)
            note_node(session, name, at, since, self._failures)
        if is_back:
            self._recovered()

    def _failed(self, *, fault: bool) -> None:
        self._last = self._clock()
        self._since = self._since or self._last
        self._failures += 1
        self._fault |= fault

    def _recovered(self) -> None:
        self._since, self._failures, self._fault = None, 0, False
