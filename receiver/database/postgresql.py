"""What only PostgreSQL needs of its driver: settings, a deadline for each statement, and arrays.

A pooler may give each transaction to another server (PgBouncer's `pool_mode=transaction`). So
nothing is left behind for the next one: settings are those of a transaction then, and statements
are prepared only where the server that answers is the one that was connected to.

A server that hangs while its kernel goes on acknowledging (its processes stopped, a pooler or a
proxy stuck before it) looks alive to TCP, and libpq would wait for it for ever. Those who wait for
the writer have deadlines of their own, but the connection would stay stuck, and so would a reader.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Any, cast

import psycopg
from psycopg import adapters
from psycopg.abc import RV, PQGen
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import ConnectionPoolEntry

from receiver.errors import WrongEncoding

STATEMENT_SECONDS = 7.5  # for one statement; a little longer than the server's own timeout
PING_SECONDS = 2.0  # if there is no answer by then, a connection is made anew
FRESH_SECONDS = 0.05  # used so lately, a connection is not pinged: a batch would wait for that

# Of libpq, where the URL says nothing else.
_DEFAULTS = {
    "connect_timeout": 3,
    "tcp_user_timeout": 5000,  # ms until lost packets end a connection
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "target_session_attrs": "read-write",
    "client_encoding": "UTF8",
}
# A node that hangs in a transaction holds rows that others wait for: it is not waited for long. ms.
_WRITING = {
    "statement_timeout": 7000,
    "lock_timeout": 2000,
    "idle_in_transaction_session_timeout": 5000,
}
# Statements are written for the index that they shall follow. A planner that counts pages would
# rather read a list in its order, past all other rows, because neighbours share them: fast for the
# average value, and without an end for a rare one. So a plan is made once, not for each value.
_READING = {
    "plan_cache_mode": "force_generic_plan",
    "random_page_cost": 0,
    "seq_page_cost": 0,
    "max_parallel_workers_per_gather": 0,
    "jit": "off",
}


class _Connection(psycopg.Connection[Any]):
    """A connection that closes itself when the server does not answer a statement in time."""

    timeout: float | None = None
    is_pooled = False
    is_prepared = False  # for the statements of callbacks

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, timeout or self.timeout)
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - psycopg asks callers to convert it
            self.pgconn.finish()  # what it is in the midst of, nobody knows
            raise psycopg.OperationalError("the server does not answer") from None


def defaults(url: URL) -> dict[str, Any]:
    """Return the connection parameters that a database's URL leaves open."""
    return {name: value for name, value in _DEFAULTS.items() if name not in url.query}


def install(engine: Engine, hung: float | None, read_seconds: float | None) -> None:
    """Set up an engine's connections to PostgreSQL, and its transactions.

    hung -- seconds after which a statement's server is given up, if not STATEMENT_SECONDS.
    read_seconds -- how long a statement may take; the transactions then only read. None: they
    write.
    """
    reads = read_seconds is not None
    limits = {"statement_timeout": round((read_seconds or 0) * 1000), **_READING}
    chosen = _not_overridden(limits if reads else _WRITING, engine.url)
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    local = "; ".join(f"SET LOCAL {name} = {value}" for name, value in chosen.items())

    @event.listens_for(engine, "do_connect")
    def connect(
        _dialect: object, _record: object, args: Sequence[str], options: dict[str, Any]
    ) -> _Connection:
        connection = _Connection.connect(*args, **options)
        connection.timeout = hung or STATEMENT_SECONDS
        _check_encodings(connection)
        return connection

    @event.listens_for(engine, "connect")
    def prepare(driver: _Connection, _record: object) -> None:
        (pid,) = driver.execute("SELECT pg_backend_pid()").fetchone() or (None,)
        driver.is_pooled = pid != driver.info.backend_pid
        if driver.is_pooled:
            driver.prepare_threshold = None
        else:
            driver.execute("; ".join(f"SET {name} = {value}" for name, value in chosen.items()))
        driver.commit()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        driver = cast("_Connection", connection.connection.driver_connection)
        if driver.is_pooled:
            driver.execute(f"{begin}; {local}" if reads else local)
        # One statement by itself sees one state, and is one trip; to write, psycopg begins.
        elif reads and not connection.get_execution_options().get("single"):
            driver.execute(begin)

    @event.listens_for(engine, "checkin")
    def note_use(_driver: object, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(driver: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        ping(engine, driver, record.info)


def ping(engine: Engine, driver: Any, info: Mapping[str, Any]) -> None:  # noqa: ANN401 - SQLAlchemy's
    """See that a connection still works, unless it did a moment ago.

    Raises InvalidatePoolError.
    """
    used_at = info.get("used_at")
    if used_at is not None and time.monotonic() - used_at > FRESH_SECONDS:
        try:
            with deadline(driver, PING_SECONDS):
                engine.dialect.do_ping(driver)
        except psycopg.Error as error:
            raise InvalidatePoolError("the database was away") from error


def _not_overridden(settings: Mapping[str, object], url: URL) -> dict[str, object]:
    """Leave out the settings that the `options` of a URL have."""
    options = str(url.query.get("options", ""))
    return {name: value for name, value in settings.items() if name not in options}


def _check_encodings(connection: _Connection) -> None:
    """Raise WrongEncoding where texts would not come back as they were."""
    server, client = connection.info.parameter_status("server_encoding"), connection.info.encoding
    if server == "UTF8" and client == "utf-8":
        return
    connection.close()
    if server != "UTF8":
        remedy = "make another with `createdb --encoding UTF8 --template template0`"
        raise WrongEncoding(f"the database's encoding is {server}; UTF8 is needed: {remedy}")
    raise WrongEncoding("RECEIVER_DATABASE_URL has a client_encoding; only UTF8 can be used")


@contextmanager
def deadline(driver: object, seconds: float | None) -> Iterator[None]:
    """Let statements on a driver's connection take so long, meanwhile; None is for ever."""
    connection = cast("_Connection", driver)
    timeout, connection.timeout = connection.timeout, seconds
    try:
        yield
    finally:
        connection.timeout = timeout


# Arrays as PostgreSQL reads them fastest: binary, and of one type whatever is in them. psycopg
# would look at each element to choose a type, and prepare a statement anew for each choice.
_HEADER = Struct("!iiIii").pack  # dimensions, may hold nulls, type, length, first index
_EMPTY = Struct("!iiI").pack
_LENGTH = Struct("!i").pack
_INTEGER = Struct("!iq").pack
_NULL = _LENGTH(-1)
_BOOLEAN = {False: b"\0\0\0\1\0", True: b"\0\0\0\1\1"}


def _blob(value: bytes) -> bytes:
    return _LENGTH(len(value)) + value


def _text(value: str) -> bytes:
    return _blob(value.encode())


def _integer(value: int) -> bytes:
    return _INTEGER(8, value)


def _array(
    type_: int, element: int, write: Callable[[Any], bytes]
) -> Callable[[Iterable[Any]], list[Any]]:
    """Make a list that is sent in binary. type_, element -- PostgreSQL's numbers of their types.

    write -- writes an element, its length first.
    """

    class Array(list[Any]):
        pass

    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = type_

        def dump(self, obj: list[Any]) -> bytes:
            """Write an array."""
            if not obj:
                return _EMPTY(0, 0, element)
            elements = [_NULL if value is None else write(value) for value in obj]
            return _HEADER(1, 1, element, len(obj), 1) + b"".join(elements)

    adapters.register_dumper(Array, ArrayDumper)
    return Array


_ARRAYS = {
    "int8": _array(1016, 20, _integer),
    "text": _array(1009, 25, _text),
    "bytea": _array(1001, 17, _blob),
    "bool": _array(1000, 16, _BOOLEAN.__getitem__),
}


def arrays(types: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Turn rows into an array for each column, of PostgreSQL's types."""
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    return [_ARRAYS[type_](column) for type_, column in zip(types, columns, strict=True)]
