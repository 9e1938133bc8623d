"""An SQLite file while it is open: it stays the same file, its owner's alone, and is in use.

Who deletes or replaces a file that is open leaves its connections with one that nobody will ever
open again: what they commit is lost at the next start, though it looks well until then.
"""

import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import structlog

from receiver.errors import StoreUnavailable

log = structlog.get_logger()

LOCK_SECONDS = 5.0
# Between looks whether a lock is free. The first are short: who writes callbacks waits for whoever
# holds the gate, and a transaction is over within a millisecond or two.
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.0002, 0.005
_LOCK_FLAGS = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
_LOG_PARTS = "-wal", "-shm"  # none may be another than the connections have open, as the file
_LOCKS = (".lock", ".gate.lock", ".open.lock")

Identity: TypeAlias = tuple[int, int]  # device and inode, which no other file has while it is open


class SQLiteFile:
    """A file for all connections of one `Database`.

    `.open.lock` beside it is shared by all who have it open; deploy/restore.sh takes it alone.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._real = path, _follow_links(path)
        self._parts = [path, *map(self._beside, _LOG_PARTS)]
        self._guard = threading.Lock()
        self._open: dict[Path, Identity] = {}
        self._lock = -1
        self._is_lost = False

    @property
    def is_open(self) -> bool:
        """Whether anything was connected to since it was closed."""
        return bool(self._open)

    def before_connect(
        self, _dialect: object, _record: object, words: list[str], named: dict[str, Any]
    ) -> None:
        """Have SQLAlchemy connect to the file that is open, or make it if none is yet.

        SQLite itself would make a file that is gone anew, and empty, even in order to read.
        Raises StoreUnavailable.
        """
        with self._guard:
            if not self._open:
                self._begin()
        self.check()
        words[0], named["uri"] = f"{self._path.as_uri()}?mode=rw", True

    def check_if_lost(self) -> None:
        """Check while `watch` or who writes has found it lost: connections that are open read it.

        Raises StoreUnavailable.
        """
        if self._is_lost:
            self.check()

    def check(self) -> None:
        """Raise StoreUnavailable if any part at its path is another than the one that is open."""
        is_lost = any(_identity(path) != opened for path, opened in self._open.items())
        if is_lost != self._is_lost:
            self._log_change(is_lost=is_lost)
        if is_lost:
            raise StoreUnavailable("the database's file was deleted or replaced")

    def after_connect(self, connection: sqlite3.Connection, _record: object) -> None:
        """Have SQLite open its log now: a connection that did before it was put back is not used.

        Raises StoreUnavailable.
        """
        connection.execute("SELECT count(*) FROM sqlite_master").close()
        self.begin_check()

    def begin_check(self) -> None:
        """Check once the log is open: from now on that counts too. Raises StoreUnavailable."""
        if len(self._open) < len(self._parts):
            present = {path: _identity(path) for path in self._parts}
            parts = {path: identity for path, identity in present.items() if identity}
            self._open = {**parts, **self._open}  # another thread may be looking through it
        self.check()

    def watch(self) -> None:
        """Notice a change though nobody writes, and a lock that was deleted."""
        if self._lock < 0:
            return
        with suppress(StoreUnavailable, OSError):
            lock = os.fstat(self._lock)
            if _identity(self._beside(".open.lock")) != (lock.st_dev, lock.st_ino):
                self._share_lock(0)
        with suppress(StoreUnavailable):
            self.check()

    def close(self) -> None:
        """Let go of it, after all connections: SQLite deletes the log with the last one."""
        self._open, self._is_lost = {}, False
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _begin(self) -> None:
        try:
            self._share_lock(LOCK_SECONDS)
            # Never one that is there: closing it takes away the locks that SQLite holds on it.
            with suppress(FileExistsError):
                os.close(os.open(self._real, _LOCK_FLAGS | os.O_EXCL, 0o600))
        except OSError as error:
            raise StoreUnavailable(f"cannot open the database: {error.strerror}") from error
        for path in (*self._parts, *map(self._beside, _LOCKS)):
            _keep_private(path)
        if identity := _identity(self._path):
            self._open = {self._path: identity}

    def _share_lock(self, timeout: float) -> None:
        descriptor = os.open(self._beside(".open.lock"), _LOCK_FLAGS, 0o600)
        try:
            take_lock(descriptor, time.monotonic() + timeout, fcntl.LOCK_SH)
        except BaseException:
            os.close(descriptor)
            raise
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = descriptor

    def _log_change(self, *, is_lost: bool) -> None:
        with self._guard:
            if is_lost == self._is_lost:
                return  # another thread has logged it
            self._is_lost = is_lost
        if is_lost:
            log.error(
                "the database's file was deleted or replaced while it is open:"
                " nothing is taken until it is put back, or the receiver started again",
                file=str(self._path),
            )
        else:
            log.warning("the database's file is back", file=str(self._path))

    def _beside(self, suffix: str) -> Path:
        return self._real.with_name(self._real.name + suffix)


def _follow_links(path: Path) -> Path:
    """Return where SQLite has the file's log, and all who use the file under any name its locks."""
    return Path(os.path.realpath(path))


class FileLock:
    """A lock for a database's file, held across processes, that nobody takes twice while one waits.

    The kernel gives a lock to whoever asks first after its release: mostly to the one that has just
    released it, while others wait for seconds. So each takes a second lock, the gate, and holds it
    until it has the first: who has released the first finds the gate taken.

    The inner lock comes first: under gevent, a greenlet that waited in flock would stop the very
    greenlet that holds it.
    """

    def __init__(self, path: Path) -> None:
        real = _follow_links(path)
        self._path, self._gate = Path(f"{real}.lock"), Path(f"{real}.gate.lock")
        self._inner = threading.Lock()
        self._descriptor = -1

    def acquire(self, timeout: float | None) -> None:
        """Take the lock, within `timeout` seconds unless None. Raises StoreUnavailable."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._inner.acquire(timeout=-1 if timeout is None else timeout):
            raise StoreUnavailable("another thread holds the database")
        try:
            with _open_file(self._gate) as gate:
                take_lock(gate, deadline)
                self._descriptor = os.open(self._path, _LOCK_FLAGS, 0o600)
                take_lock(self._descriptor, deadline)
        except OSError as error:
            self.release()
            raise StoreUnavailable(f"cannot lock the database: {error.strerror}") from error
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let the lock go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self._inner.release()


@contextmanager
def _open_file(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _LOCK_FLAGS, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, deadline: float | None, kind: int = fcntl.LOCK_EX) -> None:
    """Lock an open file by `deadline`, of the monotonic clock. Raises StoreUnavailable."""
    if deadline is None:
        fcntl.flock(descriptor, kind)
        return
    pause = _MIN_PAUSE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreUnavailable("another process holds the database") from None
            time.sleep(pause)
            pause = min(1.5 * pause, _MAX_PAUSE_SECONDS)
        else:
            return


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_other_than_file(path: Path) -> bool:
    """Whether a folder or a device stands at a path, whose mode and neighbours are not ours."""
    with suppress(OSError):
        return not stat.S_ISREG(path.stat().st_mode)
    return False


def _keep_private(path: Path) -> None:
    """Take from everybody else what they may do with a file that is about people."""
    with suppress(OSError):  # there is none, or its owner is somebody else
        mode = path.stat().st_mode & 0o7777
        if mode & 0o077:
            path.chmod(mode & 0o700)
