"""The few statements of the hot path, on one page: what a batch reads and writes.

They go to the driver as they stand, past SQLAlchemy's reading of parameters and results, which cost
more than the databases did. Each text is always the same, so that sqlite3's cache and psycopg's
prepared statements know it again.

SQLite is a function call away, and one writer at a time holds it: a statement is run for each row.
PostgreSQL is a round trip away, and other nodes write at once: a statement takes all rows as
arrays, a column each, and touches them in the order given, which all nodes keep.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, get_args, get_type_hints

from sqlalchemy import Connection

from receiver.database.models import NUMBER_BITS
from receiver.errors import LostRace
from receiver.jobs.projection import JobValues
from receiver.outbound.queue import Message

_RACES = ("23505", "40001", "40P01")  # a row was there already, serialization, deadlock

Row = Sequence[Any]


class Statement(NamedTuple):
    """One thing done to many rows. columns -- PostgreSQL's types of a row's values."""

    sqlite: str
    postgresql: str
    columns: tuple[str, ...]


class Start(NamedTuple):
    """What a transaction begins with: its time, ms, the version of the keys, and its first `n`."""

    now: int
    version: int
    n: int


class Statements(Protocol):
    """The statements in one transaction, on one of the databases."""

    def start(self, clock: Callable[[], int], jobs: Sequence[Row] = ()) -> tuple[Start, list[Row]]:
        """Begin; return what is there of `jobs`, too.

        The time is the one all nodes agree on: PostgreSQL's, or this machine's for SQLite.
        """
        ...

    def select(self, statement: Statement, rows: Sequence[Row]) -> list[Row]:
        """Return what is there of these rows."""
        ...

    def write(self, *writes: tuple[Statement, Sequence[Row]]) -> None:
        """Write rows, each kind in turn. Raises LostRace if another node was faster."""
        ...


def statements(connection: Connection) -> Statements:
    """Return the statements in a connection's transaction."""
    if connection.dialect.name == "sqlite":
        return _SQLiteStatements(connection.connection.cursor())
    from receiver.database.postgresql import arrays

    return _PostgreSQLStatements(connection.connection.driver_connection, arrays)


class _SQLiteStatements:
    def __init__(self, cursor: Any) -> None:  # noqa: ANN401 - sqlite3's
        self._cursor = cursor

    def start(self, clock: Callable[[], int], jobs: Sequence[Row] = ()) -> tuple[Start, list[Row]]:
        now = clock()
        end = (now + 1) << NUMBER_BITS
        version, event, entry = self._cursor.execute(_START_SQLITE, (end,)).fetchone()
        n = max(now << NUMBER_BITS, (event or 0) + 1, (entry or 0) + 1)
        return Start(now, version, n), self.select(JOBS, jobs)

    def select(self, statement: Statement, rows: Sequence[Row]) -> list[Row]:
        execute = self._cursor.execute
        return [row for each in rows for row in execute(statement.sqlite, each).fetchall()]

    def write(self, *writes: tuple[Statement, Sequence[Row]]) -> None:
        for statement, rows in writes:
            if rows:
                self._cursor.executemany(statement.sqlite, rows)


class _PostgreSQLStatements:
    """Independent statements share a round trip, which costs as much as two rows."""

    def __init__(self, driver: Any, arrays: Callable[..., list[Any]]) -> None:  # noqa: ANN401 - psycopg's
        self._driver, self._arrays = driver, arrays

    def start(self, clock: Callable[[], int], jobs: Sequence[Row] = ()) -> tuple[Start, list[Row]]:  # noqa: ARG002 - SQLite's way
        try:
            if not self._driver.is_prepared:
                self._prepare()
            with self._races(), self._driver.pipeline():
                began = self._driver.execute(_START_POSTGRESQL)
                found = self._run(JOBS, jobs) if jobs else None
                now, version, number, *_ = began.fetchone()
                rows = found.fetchall() if found else []
        except Exception as error:
            if self._driver.closed:  # nothing is written: another connection will do
                raise LostRace("the server had closed the connection") from error
            raise
        return Start(now, version, now << NUMBER_BITS | number % (1 << NUMBER_BITS)), rows

    def select(self, statement: Statement, rows: Sequence[Row]) -> list[Row]:
        with self._races():
            return list(self._run(statement, rows).fetchall()) if rows else []

    def write(self, *writes: tuple[Statement, Sequence[Row]]) -> None:
        with self._races(), self._driver.pipeline():
            sent = [(self._run(statement, rows), len(rows)) for statement, rows in writes if rows]
        if any(cursor.rowcount != count for cursor, count in sent):
            raise LostRace("another node changed a row of this batch meanwhile")

    def _prepare(self) -> None:
        # If what is sent together fails, psycopg takes what came after it for prepared, too.
        self._driver.execute(_START_POSTGRESQL, prepare=True)
        for statement in (JOBS, EVENTS, *_WRITTEN):
            self._run(statement, ())
        self._driver.is_prepared = True

    def _run(self, statement: Statement, rows: Sequence[Row]) -> Any:  # noqa: ANN401 - psycopg's
        columns = self._arrays(statement.columns, rows)
        return self._driver.execute(statement.postgresql, columns, prepare=True)

    @contextmanager
    def _races(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if getattr(error, "sqlstate", None) in _RACES:
                raise LostRace("another node was faster") from error
            raise


def _insert(table: str, columns: Mapping[str, str], conflict: str = "") -> Statement:
    names, types = ", ".join(columns), tuple(columns.values())
    into = f"INSERT INTO {table} ({names})"
    marks = ", ".join("?" * len(columns))
    return Statement(
        f"{into} VALUES ({marks}) {conflict}",
        f"{into} SELECT * FROM {_unnested(types)} {conflict}",
        types,
    )


def _select(what: str, table: str, columns: Mapping[str, str]) -> Statement:
    """Look rows up by a key.

    PostgreSQL locks them, in the order given. Each is looked for by itself, in a subquery that
    cannot be flattened: a join would be planned by what the table held when it was prepared.
    """
    query, types = f"SELECT {what} FROM {table} WHERE ", tuple(columns.values())
    names = ", ".join(columns)
    key = " AND ".join(f"{table}.{name} = input.{name}" for name in columns)
    return Statement(
        query + " AND ".join(f"{name} = ?" for name in columns),
        f"SELECT there.* FROM {_unnested(types)} AS input ({names})"
        f" CROSS JOIN LATERAL ({query}{key} FOR UPDATE) AS there",
        types,
    )


def _unnested(types: Iterable[str]) -> str:
    return f"unnest({', '.join(f'%s::{type_}[]' for type_ in types)})"


_START_SQLITE = """
SELECT version, (SELECT max(n) FROM events WHERE n < ?1), (SELECT max(n) FROM timeline WHERE n < ?1)
FROM key_version"""
# What is planned in this transaction goes by index, however small a table was at the time.
_START_POSTGRESQL = """
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8, version, nextval('event_numbers'),
       set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true)
FROM key_version"""

_JOB_KEY = {"instance": "text", "id": "text"}
_IDENTITY = {"instance": "text", "job": "text", "sha256": "bytea"}
_EVENT = {
    "n": "int8",
    **_IDENTITY,
    "kind": "text",
    "deliveries": "int8",
    "last_received_at": "int8",
    "key": "text",
    "size": "int8",
    "webhook_id": "text",
    "headers": "text",
    "peer": "text",
    "status": "text",
    "changed": "text",
    "note": "text",
    "body": "bytea",
}
_TYPES = {str: "text", int: "int8", bool: "bool", bytes: "bytea"}


def _columns(row: type[NamedTuple]) -> dict[str, str]:
    hints = get_type_hints(row)
    return {name: _TYPES[(get_args(kind) or (kind,))[0]] for name, kind in hints.items()}


_JOB = _columns(JobValues)
_CHANGED = ", ".join(
    f"{name} = excluded.{name}" for name in JobValues._fields if name not in _JOB_KEY
)

JOBS = _select(", ".join(JobValues._fields), "jobs", _JOB_KEY)
EVENTS = _select("instance, job, sha256, n, key = '' AS forgotten", "events", _IDENTITY)
FACETS = _select("facet", "facets", {"facet": "int8"})

NEW_EVENTS = _insert("events", _EVENT)
REPEATED_EVENTS = Statement(
    "UPDATE events SET deliveries = deliveries + ?, last_received_at = max(last_received_at, ?)"
    " WHERE n = ?",
    "UPDATE events SET deliveries = deliveries + more,"
    " last_received_at = greatest(last_received_at, at)"
    f" FROM {_unnested(('int8', 'int8', 'int8'))} AS input (more, at, number) WHERE n = number",
    ("int8", "int8", "int8"),
)
NEW_JOBS = _insert("jobs", _JOB)
# By upsert, though all are there, since PostgreSQL then goes by the key.
CHANGED_JOBS = _insert(
    "jobs",
    _JOB,
    f"ON CONFLICT (instance, id) DO UPDATE SET {_CHANGED}",
)
NEW_ENTRIES = _insert(
    "timeline",
    {
        "n": "int8",
        "instance": "text",
        "job": "text",
        "source": "text",
        "status": "text",
        "changed": "text",
        "note": "text",
    },
)
NEW_FACETS = _insert(
    "facets",
    {
        "facet": "int8",
        "instance": "text",
        "status": "text",
        "outcome": "text",
        "object": "text",
        "direction": "text",
        "callback_lost": "bool",
        "other": "bool",
    },
    "ON CONFLICT (facet) DO UPDATE SET facet = excluded.facet",
)
COUNTS = _insert(
    "counts",
    {"facet": "int8", "hour": "int8", "slot": "int8", "n": "int8"},
    "ON CONFLICT (facet, hour, slot) DO UPDATE SET n = counts.n + excluded.n",
)
NEW_DELIVERIES = _insert(
    "outbound_deliveries", _columns(Message) | {"host": "text", "at": "int8", "next_at": "int8"}
)
_WRITTEN = (
    *(NEW_JOBS, CHANGED_JOBS, NEW_EVENTS, REPEATED_EVENTS, NEW_ENTRIES, NEW_FACETS, COUNTS),
    NEW_DELIVERIES,
)
