"""Arrays as PostgreSQL reads them fastest: binary, and of one type whatever is in them.

psycopg would look at each element to choose a type, and for each choice of types a statement is
prepared anew.
"""

from struct import Struct
from typing import Any, ClassVar

from psycopg import adapters
from psycopg.adapt import Dumper
from psycopg.pq import Format

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
