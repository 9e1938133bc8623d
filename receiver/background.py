"""What a worker does beside answering, in threads, and its heartbeat: how it answers callbacks."""

import os
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from receiver.database.engine import Database, database_time, upsert
from receiver.database.leases import ClockGuard
from receiver.database.models.alarms import Node
from receiver.errors import StoreError
from receiver.lib.clock import MINUTE_MS

RECOVERED_MS = 2 * MINUTE_MS
BEAT_SECONDS = 30.0

_SERVER_ERROR, _UNAVAILABLE, _TAKEN = 500, 503, 200

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Task:
    """Work that a thread does again and again. run -- returns whether there is more at once.

    pause -- seconds before it runs, unless there is more. close -- gives back what it holds.
    at_once -- whether it first runs without that pause.
    """

    run: Callable[[], bool | None]
    pause: float = 1.0
    close: Callable[[], None] = lambda: None
    at_once: bool = False


class Background:
    """Threads that work until they are closed, one a task, so that none holds up another.

    beat -- runs at once and then every BEAT_SECONDS.
    """

    def __init__(self, tasks: Iterable[Task], beat: Callable[[], None]) -> None:
        self.tasks, self.beat = tuple(tasks), beat
        self._closed, self._pid = threading.Event(), 0
        self._waiting: dict[object, str] = {}  # work that waits for the database, and why
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start in this process, unless it was; a thread does not survive a fork."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            for task in self.tasks:
                self._thread(self._work, task)
            self._thread(self._beats)

    def close(self) -> None:
        """Stop after what is being done, and give back what is held. Raises StoreError."""
        self._closed.set()
        if self._pid == os.getpid():
            for task in self.tasks:
                task.close()

    @staticmethod
    def _thread(work: Callable[..., None], *args: Task) -> None:
        threading.Thread(target=work, args=args, name="background", daemon=True).start()

    def _work(self, task: Task) -> None:
        more = task.at_once
        while not self._closed.wait(0 if more else task.pause):
            more = self._run(task.run)

    def _beats(self) -> None:
        while not self._closed.is_set():
            self._run(self.beat)
            self._closed.wait(BEAT_SECONDS)

    def _run(self, work: Callable[[], bool | None]) -> bool:
        """Work; log errors, which end nothing; return whether there is more at once."""
        cause, more = None, False
        try:
            more = bool(work())
        except StoreError as error:
            cause = str(error)
        except Exception as error:  # noqa: BLE001 - one odd row must not end all later work
            log.error("background work failed", error=type(error).__name__)  # noqa: TRY400
        self._note(work, cause)
        return more

    def _note(self, work: object, cause: str | None) -> None:
        """Note why work waits for the database; log the start and the end of an outage once."""
        with self._lock:
            before = set(self._waiting.values())
            if cause is not None:
                self._waiting[work] = cause
            else:
                self._waiting.pop(work, None)
            is_over = before and not self._waiting
        if cause is not None and cause not in before:
            log.warning("background work waits for the database", error=cause)
        elif is_over:
            log.info("background work goes on: the database is back")


class Health:
    """How this process answers callbacks. clock -- ms since the epoch. why -- returns why it fails.

    It has recovered at the next callback that is stored. Where none comes, a heartbeat that can be
    written is enough after an outage of the database, but not after a fault of our own.
    """

    def __init__(self, clock: Callable[[], int], why: Callable[[], str] = lambda: "") -> None:
        self._clock, self._why = clock, why
        self._since: int | None = None
        self._last, self._failures, self._fault = 0, 0, False
        self._away: tuple[int, str] | None = None
        self._guard = ClockGuard()

    @property
    def trouble(self) -> tuple[int, str] | None:
        """Since when (ms) this process cannot store callbacks, and why; None if it can."""
        return self._away or (None if self._since is None else (self._since, self._why()))

    def answered(self, status: int) -> None:
        """Note how a callback was answered."""
        if status >= _SERVER_ERROR:
            self._failed(fault=status != _UNAVAILABLE)
        elif self._since is not None and status == _TAKEN:
            self._recovered()

    def beat(self, database: Database, *, alive: bool) -> None:
        """Record that this process lives, and how it answers callbacks.

        alive -- whether they can be written. That this can be written says that the database is
        back. Raises StoreError.
        """
        try:
            self._beat(database, alive=alive)
            self._away = None
        except StoreError as error:
            self._away = self._away[0] if self._away else self._clock(), str(error)
            raise

    def _beat(self, database: Database, *, alive: bool) -> None:
        if not alive:
            self._failed(fault=True)
        name = f"{socket.gethostname()[:80]}:{os.getpid()}"
        with database.write() as session:
            now = self._clock()
            is_back = not self._fault and self._last <= now - RECOVERED_MS
            # By the time that all nodes agree on, whatever this machine's clock says.
            at = database_time(session, self._clock)
            since = None if is_back or self._since is None else at - (now - self._since)
            reason = self._why() if since else ""
            record_node(session, name, at, since, self._failures, reason=reason)
            steady = self._guard.check(session, at)
        if not steady:
            log.error("the clock jumped by over a day: nothing old is deleted")
        if is_back:
            self._recovered()

    def _failed(self, *, fault: bool) -> None:
        self._last = self._clock()
        self._since = self._since or self._last
        self._failures += 1
        self._fault |= fault

    def _recovered(self) -> None:
        self._since, self._failures, self._fault = None, 0, False


def record_node(
    session: Session,
    name: str,
    now: int,
    failing_since: int | None,
    failures: int,
    *,
    reason: str = "",
) -> None:
    """Record how a process answers callbacks. failures -- since `failing_since`, ms."""
    facts = {"at": now, "failing_since": failing_since, "failures": failures, "reason": reason}
    new = upsert(session, Node).values(name=name, **facts)
    session.execute(new.on_conflict_do_update(index_elements=[Node.name], set_=facts))
