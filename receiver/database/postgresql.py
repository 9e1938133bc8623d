"""psycopg's connection, with a deadline for each statement.

A server that hangs while its kernel goes on acknowledging (its processes stopped, a pooler or a
proxy stuck before it) looks alive to TCP, and libpq would wait for it for ever. Those who wait for
the writer have deadlines of their own, but the connection would stay stuck, and so would a reader.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, event

STATEMENT_SECONDS = 7.5  # for one statement; a little longer than the server's own timeout


class _Deadlined(psycopg.Connection[Any]):
    """A connection that closes itself when the server does not answer a statement in time."""

    timeout: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:  # noqa: ANN401 - psycopg's
        try:
            return super().wait(gen, interval, timeout or self.timeout)
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - psycopg asks callers to convert it
            self.pgconn.finish()  # what it is in the midst of, nobody knows
            raise psycopg.OperationalError("the server does not answer") from None


def install_deadline(engine: Engine, seconds: float | None = None) -> None:
    """Have an engine's connections to PostgreSQL give up on a server that hangs.

    seconds -- for one statement, if not STATEMENT_SECONDS.
    """

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: Any, options: Any) -> _Deadlined:  # noqa: ANN401 - SQLAlchemy's
        connection = _Deadlined.connect(*args, **options)
        connection.timeout = seconds or STATEMENT_SECONDS
        return connection


@contextmanager
def without_deadline(connection: Connection) -> Iterator[None]:
    """Let statements on this connection take as long as they need."""
    with deadline(connection.connection.driver_connection, None):
        yield


@contextmanager
def deadline(driver: Any, seconds: float | None) -> Iterator[None]:  # noqa: ANN401 - a _Deadlined
    """Let statements on a driver's connection take so long, meanwhile; None is for ever."""
    timeout, driver.timeout = driver.timeout, seconds
    try:
        yield
    finally:
        driver.timeout = timeout
