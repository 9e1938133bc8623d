"""Opening the database, and the ways to use it: `snapshot()` and `read()`, `write()`.

SQLite up to 3.51.2 (but not 3.44.6 and 3.50.7) is reported to lose committed transactions when
checkpoints race. Checkpoints happen at commit and when the last connection closes, so each write
transaction and each closing holds one lock, across threads and processes.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    Delete,
    Engine,
    Executable,
    Update,
    create_engine,
    event,
    make_url,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from receiver.database import driver_errors
from receiver.database.lookup import LookUp
from receiver.database.models import Base, KeyVersion
from receiver.database.sqlite_file import LOCK_SECONDS, FileLock, SQLiteFile, is_other_than_file
from receiver.errors import SettingsError, StatementRefused, StoreRefused, StoreUnavailable, TooSlow
from receiver.settings import database_name

__all__ = ["Database", "Session", "upsert"]

# The time all nodes agree on, where the database has one, ms.
TIME = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8"

READ_SECONDS = 3.0  # for one statement that only reads
# For a server that hangs and so does not end a statement itself. A statement is sent at most twice,
# with a connection made in between, and whoever asks shall have an answer within 10 s.
_HUNG_READ_SECONDS = READ_SECONDS + 0.4
_READ_ONLY = "25006"
_TOO_SLOW = ("57014", "SQLITE_INTERRUPT")
_PROGRESS_STEPS = 10_000  # of SQLite's machine between two looks at the clock; some 0.2 ms
_BUSY_MS = 5000  # for others' locks on an SQLite file, which are short


class Database:
    """One database. Threads share it; processes that fork from this one must each make their own.

    url -- as in RECEIVER_DATABASE_URL. Raises SettingsError if it cannot be understood.
    connections -- how many at most; each thread that reads holds one, and so does the writer.
    file -- SQLite's; None for PostgreSQL.
    """

    def __init__(self, url: str, *, connections: int = 16) -> None:
        try:
            parsed = make_url(url)
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            if not self.is_sqlite:
                # Engines copy what psycopg can write when they are made.
                import receiver.database.postgresql  # noqa: F401
            self.file = Path(str(parsed.database)).absolute() if self.is_sqlite else None
            if self.file and is_other_than_file(self.file):
                raise SettingsError(f"RECEIVER_DATABASE_URL: {self.file} is not a file")
            self._file = SQLiteFile(self.file) if self.file else None
            self.engine = self._make_engine(parsed, connections)
            # Readers have a pool of their own: however many of them wait, who writes does not.
            self._read_engine = self._make_engine(parsed, connections, READ_SECONDS)
        except (ArgumentError, ValueError):
            raise SettingsError("RECEIVER_DATABASE_URL is not a database's URL") from None
        self._name = database_name(url)
        self._driver = self.engine.dialect.loaded_dbapi
        self._errors = (DBAPIError, self._driver.Error)  # the hot path's come straight from it
        self._write_engine = self.engine.execution_options(writes=True)
        self._single_engine = self._read_engine.execution_options(single=True)
        self._lock = FileLock(self.file) if self.file else None
        self._batch: Connection | None = None  # its connection, kept for the next one

    def _make_engine(self, url: URL, connections: int, deadline: float | None = None) -> Engine:
        """Make a pool of connections; with a deadline (seconds for a statement) they only read."""
        reads = deadline is not None
        connecting: dict[str, Any] = {"connect_args": {"timeout": _BUSY_MS // 1000}}
        if not self.is_sqlite:
            from receiver.database.postgresql import defaults, install

            connecting = {"connect_args": defaults(url)}
            if reads:  # transactions begin where we say, in one trip with what is set for them
                connecting["isolation_level"] = "AUTOCOMMIT"
        engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,  # on SQLite, closing a surplus connection would checkpoint unlocked
            pool_timeout=3,
            pool_use_lifo=True,  # SQLite forgets what it read once another connection wrote
            hide_parameters=True,
            **connecting,
        )
        if self._file:
            event.listen(engine, "do_connect", self._file.before_connect)
            event.listen(engine, "connect", _prepare_sqlite_reader if reads else _prepare_sqlite)
            event.listen(engine, "connect", self._file.after_connect)
            event.listen(engine, "begin", _begin_sqlite)
            if reads:
                event.listen(engine, "before_cursor_execute", _set_deadline)
        else:
            install(engine, _HUNG_READ_SECONDS if reads else None, deadline)
        return engine

    def rows(
        self, statement: Executable | LookUp, values: Mapping[str, Any] | None = None
    ) -> Sequence[Any]:
        """Rows of one statement, by itself. Raises TooSlow or StoreUnavailable."""
        try:
            return self._rows(statement, values)
        except StoreUnavailable as error:
            if not getattr(error.__cause__, "connection_invalidated", False):
                raise
        return self._rows(statement, values)  # the server had closed the connection meanwhile

    def _rows(
        self, statement: Executable | LookUp, values: Mapping[str, Any] | None
    ) -> Sequence[Any]:
        with self._store_errors(), _raise_too_slow():
            if isinstance(statement, LookUp):
                return statement.fetch_alone(self._single_engine, values or {})
            with self._single_engine.connect() as connection:
                return connection.execute(statement, values).all()

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that only reads, and sees one state of the database.

        Each statement may take READ_SECONDS. Raises TooSlow or StoreUnavailable.
        """
        with self._store_errors(), _raise_too_slow(), self._begin_read() as connection:
            yield connection
            connection.commit()  # at a rollback, psycopg forgets all that it has prepared

    def _begin_read(self) -> Connection:
        connection = self._read_engine.connect()
        try:
            connection.begin()
        except self._driver.Error:  # the server closed it meanwhile, and most likely the others too
            connection.invalidate()
            connection.close()
            self._read_engine.dispose()
            connection = self._read_engine.connect()
            connection.begin()
        return connection

    @contextmanager
    def read(self) -> Iterator[Session]:
        """As `snapshot`, a session."""
        with self.snapshot() as connection, Session(connection) as session:
            yield session

    @contextmanager
    def write(self, timeout: float | None = LOCK_SECONDS) -> Iterator[Session]:
        """A session in one transaction, committed at the end unless an error gets out.

        timeout -- seconds to wait for SQLite's lock; None is for ever.
        Raises StoreUnavailable (nothing is kept, the same may work later), or StoreRefused for
        what a row holds.
        """
        with self.transaction(timeout) as connection, Session(connection) as session:
            yield session
            session.flush()

    @contextmanager
    def transaction(self, timeout: float | None = LOCK_SECONDS) -> Iterator[Connection]:
        """As `write`, without a session: to make one takes longer than to merge a callback."""
        with (
            self._store_errors(),
            self._exclusive(timeout),
            self._write_engine.connect() as connection,
            self._committed(connection),
        ):
            yield connection

    @contextmanager
    def batch(self) -> Iterator[Connection]:
        """As `transaction`, waiting for ever, for the one thread that writes callbacks.

        Batches that come at once share a connection: taking it from the pool and back costs as much
        as writing four callbacks.
        """
        with self._store_errors(), self._exclusive(None):
            connection = self._connect_for_batch()
            try:
                with self._committed(connection):
                    yield connection
            except BaseException:
                self._close_batch()
                raise
            connection.info["used_at"] = time.monotonic()

    @contextmanager
    def _committed(self, connection: Connection) -> Iterator[None]:
        """Begin, and commit at the end, unless an error gets out."""
        try:
            with connection.begin():
                if self._file:
                    self._file.begin_check()
                yield
        except self._errors as error:
            # After a failover the old primary refuses writes on connections that look well.
            if driver_errors.code(_original(error)) == _READ_ONLY:
                connection.invalidate()
            raise
        if self._file:
            self._file.check()  # or what was committed to a file that is gone is acknowledged

    def _connect_for_batch(self) -> Connection:
        if self._batch and not self.is_sqlite:
            from receiver.database.postgresql import ping

            try:
                ping(self.engine, self._batch.connection.driver_connection, self._batch.info)
            except InvalidatePoolError:
                self._batch.invalidate()
                self._close_batch()
        if self._batch is None:
            self._batch = self._write_engine.connect()
        return self._batch

    def _close_batch(self) -> None:
        if self._batch:
            self._batch.close()
        self._batch = None

    def prepare(self) -> None:
        """Put an SQLite file into WAL mode, once and for good; nothing else may use it then."""
        if self.is_sqlite:
            with self._sqlite_cursor() as cursor:
                cursor.execute("PRAGMA journal_mode=WAL").close()

    def truncate_wal(self) -> bool:
        """Leave nothing in SQLite's log that was overwritten; False while others read it."""
        if not self.is_sqlite:
            return True
        with self._sqlite_cursor() as cursor:
            try:
                # All who write wait meanwhile; a backup may be reading for minutes.
                cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS // 20}")
                busy, *_ = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
            finally:
                cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")

    @contextmanager
    def _sqlite_cursor(self) -> Iterator[DBAPICursor]:
        with (
            self._store_errors(),
            self._exclusive(LOCK_SECONDS),
            closing(self.engine.raw_connection()) as connection,
        ):
            yield connection.cursor()

    def check_writable(self) -> None:
        """Commit a write that changes nothing. Raises StoreError if that cannot be done."""
        with self.write() as session:
            session.execute(update(KeyVersion).values(version=KeyVersion.version))

    def watch_file(self) -> None:
        """Log, once, that an SQLite file was deleted or replaced while it is open."""
        if self._file:
            self._file.watch()

    def close(self) -> None:
        """Close all connections; idempotent."""
        if self._file is None or self._file.is_open:  # no lock is made where there is no file
            with self._exclusive(LOCK_SECONDS):
                self._close_batch()
                self.engine.dispose()
                self._read_engine.dispose()
        if self._file:
            self._file.close()

    @contextmanager
    def _exclusive(self, timeout: float | None) -> Iterator[None]:
        if self._lock is None:
            yield
            return
        self._lock.acquire(timeout)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            if self._file:
                self._file.check_if_lost()
            yield
        except PoolTimeoutError as error:
            raise StoreUnavailable("no connection to the database is free") from error
        except UnicodeEncodeError as error:  # a lone surrogate never gets as far as the database
            raise StoreRefused("the database cannot hold this text") from error
        except self._errors as error:
            original = _original(error)
            if not self.is_sqlite and (reason := driver_errors.connection_failure(original)):
                raise StoreUnavailable(f"cannot connect to {self._name}: {reason}") from error
            code = driver_errors.code(original)
            if driver_errors.is_content(original, self._driver.DataError):
                raise StoreRefused(f"the database rejects what this holds: {code}") from error
            if driver_errors.is_statement(original):
                hint = ", its role lacks a permission" if code == "42501" else ""
                raise StatementRefused(f"the database rejects a statement: {code}{hint}") from error
            cause = driver_errors.cause(original)
            raise StoreUnavailable(f"the database cannot do this now: {cause}") from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where sqlite3 thinks
    for pragma in ("synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("single"):
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")


def _prepare_sqlite_reader(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
    _prepare_sqlite(connection, record)
    connection.execute("PRAGMA query_only=ON").close()
    info = record.info

    def is_past_deadline() -> bool:
        return bool(time.monotonic() > info["deadline"])

    def set_deadline() -> None:
        info["deadline"] = time.monotonic() + READ_SECONDS

    info.update(deadline=float("inf"), set_deadline=set_deadline)
    connection.set_progress_handler(is_past_deadline, _PROGRESS_STEPS)


def _set_deadline(connection: Connection, *_statement: object) -> None:
    connection.info["set_deadline"]()


@contextmanager
def _raise_too_slow() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if driver_errors.code(_original(error)) in _TOO_SLOW:
            raise TooSlow(
                "narrow it by another filter, or by a time: updated_after, or of events"
                " received_after"
            ) from error
        raise


def _original(error: BaseException) -> BaseException:
    """The driver's own error."""
    return error.orig or error if isinstance(error, DBAPIError) else error


def affected(session: Session, statement: Delete | Update) -> int:
    """Run a statement; return how many rows it changed."""
    # No row of these is in the session, so nothing there need be kept in step.
    aside = statement.execution_options(synchronize_session=False)
    return int(cast("CursorResult[Any]", session.execute(aside)).rowcount)


def database_time(session: Session, clock: Callable[[], int]) -> int:
    """Return the time all nodes agree on, ms: PostgreSQL's, or this machine's for SQLite."""
    if session.get_bind().dialect.name == "sqlite":
        return clock()
    return int(session.scalar(text(TIME)) or 0)


def upsert(session: Session, table: type[Base]) -> sqlite_dialect.Insert:
    """Return the dialect's INSERT, which has ON CONFLICT."""
    if session.get_bind().dialect.name == "sqlite":
        return sqlite_dialect.insert(table)
    return cast("sqlite_dialect.Insert", postgresql.insert(table))  # which has the same methods
