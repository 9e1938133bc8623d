"""The few statements of the hot path, as each database takes them fastest.

They go to the driver as they stand, past SQLAlchemy's reading of parameters and results, which cost
more than the databases did. Each text is always the same, so that sqlite3's cache and psycopg's
prepared statements know it again.

SQLite is a function call away, and one writer at a time holds it: who holds it may look first, and
then writes many rows with one statement of each kind.
PostgreSQL is a round trip away, and other nodes write at once: arrays, three statements for a
batch, each touching its rows in the order given, which all nodes keep.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from sqlalchemy import Connection

from receiver.callbacks.on_sqlite import OnSQLite
from receiver.jobs.rows import Changes, EventRow, JobValues, KeptEvents, Place, StoredJob


class Statements(Protocol):
    """The hot path's statements in one transaction. Rows come sorted, or nodes would deadlock."""

    def now(self, clock: Callable[[], int]) -> int:
        """The time all nodes agree on, ms: PostgreSQL's, or this machine's for SQLite."""
        ...

    def keep_events(self, rows: Sequence[EventRow], clock: Callable[[], int]) -> KeptEvents:
        """Insert events, or count the repetition of those that are there."""
        ...

    def note_keys(self, keys: Iterable[str], now: int) -> None:
        """Remember when keys last matched, to the minute: more would be a write a callback."""
        ...

    def known_jobs(self, places: Sequence[Place]) -> list[StoredJob]:
        """Give those of the jobs that are known already, where that can be told without a trip."""
        ...

    def add_jobs(self, rows: Sequence[JobValues]) -> list[StoredJob]:
        """Insert new jobs, and lock and give those that were there after all."""
        ...

    def write(self, changes: Changes) -> None:
        """Write all the rest; each of the jobs must be locked, and each locked one be there."""
        ...


def statements(connection: Connection) -> Statements:
    """The statements in a connection's transaction."""
    cursor = connection.connection.cursor()
    if connection.dialect.name == "sqlite":
        return OnSQLite(cursor)
    from receiver.callbacks.on_postgresql import OnPostgreSQL

    return OnPostgreSQL(cursor)
