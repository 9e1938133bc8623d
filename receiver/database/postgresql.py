"""What only PostgreSQL needs of its driver: a deadline for each statement, and arrays.

A server that hangs while its kernel goes on acknowledging (its processes stopped, a pooler or a
proxy stuck before it) looks alive to TCP, and libpq would wait for it for ever. Those who wait for
the writer have deadlines of their own, but the connection would stay stuck, and so would a reader.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Any, ClassVar

import psycopg
from psycopg import adapters
from psycopg.adapt import Dumper
from psycopg.pq import Format
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


# Arrays as PostgreSQL reads them fastest: binary, and of one type whatever is in them. psycopg
# would look at each element to choose a type, and prepare a statement anew for each choice.
_HEADER = Struct("!iiIii").pack  # dimensions, may hold nulls, type, length, first index
_EMPTY = Struct("!iiI").pack
_LENGTH = Struct("!i").pack
_INTEGER = Struct("!iq").pack
_NULL = _LENGTH(-1)
_TRUTH = {False: b"\0\0\0\1\0", True: b"\0\0\0\1\1"}


class Integers(list[int | None]):
    """To be sent as int8[]."""


class Texts(list[str | None]):
    """To be sent as text[]."""


class Blobs(list[bytes | None]):
    """To be sent as bytea[]."""


class Truths(list[bool | None]):
    """To be sent as boolean[]."""


class _ArrayDumper(Dumper):
    format = Format.BINARY
    element: ClassVar[int]

    def dump(self, obj: list[Any]) -> bytes:
        """Write an array."""
        if not obj:
            return _EMPTY(0, 0, self.element)
        write = self.write
        elements = [_NULL if value is None else write(value) for value in obj]
        return _HEADER(1, 1, self.element, len(obj), 1) + b"".join(elements)

    @staticmethod
    def write(value: Any) -> bytes:  # noqa: ANN401 - one of four types
        """Write an element, its length first."""
        return _LENGTH(len(value)) + bytes(value)


class _Integers(_ArrayDumper):
    oid, element = 1016, 20

    @staticmethod
    def write(value: int) -> bytes:
        return _INTEGER(8, value)


class _Texts(_ArrayDumper):
    oid, element = 1009, 25

    @staticmethod
    def write(value: str) -> bytes:
        encoded = value.encode()
        return _LENGTH(len(encoded)) + encoded


class _Blobs(_ArrayDumper):
    oid, element = 1001, 17


class _Truths(_ArrayDumper):
    oid, element = 1000, 16

    @staticmethod
    def write(value: bool) -> bytes:
        return _TRUTH[value]


for _array, _dumper in (
    (Integers, _Integers),
    (Texts, _Texts),
    (Blobs, _Blobs),
    (Truths, _Truths),
):
    adapters.register_dumper(_array, _dumper)

_ARRAYS = {"int8": Integers, "text": Texts, "bytea": Blobs, "bool": Truths}


def arrays(types: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Turn rows into an array for each column, of PostgreSQL's types."""
    columns = zip(*rows, strict=True)
    return [_ARRAYS[type_](column) for type_, column in zip(types, columns, strict=True)]
