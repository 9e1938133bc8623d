"""The records of a file, where its dialect leaves no doubt: CSV by RFC 4180, JSON lines, JSON.

CSV may be separated by comma, semicolon, tab or pipe, or by what Excel's first line `sep=` names,
and every row must have as many fields as the header. Records are the very bytes of the file.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import chain
from typing import Any, Literal, TypeAlias

import msgspec

DELIMITERS = (b",", b";", b"\t", b"|")
HEAD = 1024  # bytes that tell what kind of file it is
MAX_RECORD = 2**20  # bytes; a record is held in memory, a file never

Kind: TypeAlias = Literal["csv", "json", "jsonl"]
# Gives the file from its beginning, each time it is called.
Pieces: TypeAlias = Callable[[], Iterator[bytes]]

_SEP = re.compile(rb"(?:\xef\xbb\xbf)?\"?sep=([,;\t|])\"?\s*", re.IGNORECASE)
_QUOTED = re.compile(rb'"[^"]*+"')
_SPACE = re.compile(r"[ \t\r\n]*+")
_BLANK = b" \r\n"
_END_OF_FILE = b"\x1a"  # DOS's, that some programs still write at the end


class UnclearDialect(Exception):
    """Which bytes are a record cannot be said for certain; the text says why."""


class WrongFile(Exception):
    """A file is not the one that was meant; the text says why."""


def count_records(pieces: Pieces) -> int | None:
    """Count the records of a file; None where its dialect leaves a doubt."""
    try:
        return _read(pieces)[1]
    except UnclearDialect:
        return None


def select_records(
    pieces: Pieces, numbers: Collection[int], total: int | None = None
) -> Iterator[bytes]:
    """Return a file with no other records than those of the numbers, 1 being the first.

    total -- how many it should have. Raises UnclearDialect or WrongFile, before the first piece.
    """
    kind, count = _read(pieces)
    if total not in (None, count):
        raise WrongFile(f"it has {count} records, {total} were uploaded")
    if missing := sum(number > count for number in numbers):
        raise WrongFile(f"{missing} of {len(numbers)} failed rows are not in it")
    return _selected(pieces(), kind, numbers)


def _read(pieces: Pieces) -> tuple[Kind, int]:
    """Read how a file is written and how many records it has. Raises UnclearDialect."""
    head = _head(pieces())
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnclearDialect("it is written in UTF-16")
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return "json", sum(1 for _ in _array(pieces()))
    if start.startswith(b"{"):
        return "jsonl", sum(1 for _ in json_lines(pieces()))
    counts = set(_counts(pieces))
    if len(counts) != 1:
        raise UnclearDialect(
            "its rows fit more than one delimiter"
            if counts
            else "its rows do not all have as many fields as the header"
        )
    return "csv", counts.pop()


def _selected(pieces: Iterator[bytes], kind: Kind, numbers: Collection[int]) -> Iterator[bytes]:
    if kind == "csv":
        header, records = rows(pieces)
        yield header
    else:
        records = json_lines(pieces) if kind == "jsonl" else _array(pieces)
    selected = (record for number, record in enumerate(records, 1) if number in numbers)
    if kind != "json":
        yield from selected
        return
    for number, record in enumerate(selected):
        yield (b",\n" if number else b"[") + record
    yield b"]\n"


def rows(pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the header of CSV, with all that stands before it, and the rows; blank lines are none.

    Raises UnclearDialect, while the rows are read too.
    """
    joined = _joined(_lines(pieces))
    before, _ = _header(joined)
    return before, (row for row in joined if row.strip(_BLANK))


def json_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of JSON, blank ones left out. Raises UnclearDialect."""
    for line in _lines(pieces):
        if plain := _plain(line).strip():
            try:
                msgspec.json.decode(plain, type=dict[str, msgspec.Raw])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise UnclearDialect("not every line is a JSON object") from None
            yield line


def _head(pieces: Iterator[bytes]) -> bytes:
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= HEAD:
            break
    return head


def _counts(pieces: Pieces) -> Iterator[int]:
    """Count the rows under each delimiter that fits all of them."""
    before, header = _header(_joined(_lines(pieces())))
    named = _SEP.match(before)
    if not header.strip(b' \t\r\n",;|'):
        raise UnclearDialect("it has no header")
    fitting = [named[1]] if named else [d for d in DELIMITERS if (_fields(header, d) or 0) > 1]
    for delimiter in fitting or [None]:
        columns = _fields(header, delimiter)
        numbers = Counter(_fields(row, delimiter) for row in rows(pieces())[1])
        if columns and numbers.keys() <= {columns}:
            yield numbers[columns]


def _header(joined: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Read on to the end of the header; return all up to there, and the header alone."""
    before = b""
    for row in joined:
        before += row
        if _plain(row).strip(_BLANK) and not _SEP.fullmatch(row):
            return before, _plain(row)
        if len(before) > MAX_RECORD:
            break
    raise UnclearDialect("it is empty")


def _fields(row: bytes, delimiter: bytes | None) -> int | None:
    """Count the fields of a row; None if it is not one of RFC 4180."""
    # A line without quotes is a row whatever it holds.
    if (delimiter is None or b'"' in row) and not _row(delimiter).fullmatch(row):
        return None
    return 1 if delimiter is None else _QUOTED.sub(b"", row).count(delimiter) + 1


@cache
def _row(delimiter: bytes | None) -> re.Pattern[bytes]:
    """What is a row, with its end. Without a delimiter it is one field."""
    ends = b"".join(map(re.escape, [delimiter] if delimiter else DELIMITERS))
    field = rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^"\r\n%b]*+)' % ends
    more = rb"(?:%b%b)*+" % (re.escape(delimiter), field) if delimiter else b""
    return re.compile(field + more + rb"[\r\n]*+")


def _joined(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Join the lines of rows that go on, since a quote is open at their end."""
    for line in lines:
        if line.count(b'"') % 2 == 0:
            yield line
            continue
        row, size = [line], len(line)
        for following in lines:
            row.append(following)
            size += len(following)
            if size > MAX_RECORD:
                raise UnclearDialect("a row is too long, or a quote is never closed")
            if following.count(b'"') % 2:
                break
        else:
            raise UnclearDialect("a quote is never closed")
        yield b"".join(row)


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines with their ends; without DOS's mark at the end of the file."""
    rest = b""
    for piece in pieces:
        if b"\0" in piece:
            raise UnclearDialect("it holds NUL bytes")
        lines = (rest + piece).splitlines(keepends=True)
        # What may go on stays: a line without its end, or one that ends in half of \r\n.
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        if len(rest) > MAX_RECORD:
            raise UnclearDialect("a line is too long")
        yield from lines
    yield from rest.removesuffix(_END_OF_FILE).splitlines(keepends=True)


def _plain(row: bytes) -> bytes:
    return row.removeprefix(codecs.BOM_UTF8)


# What may come in an array, by what was expected and what came; an object is read by itself.
_AFTER = {("[", "["): "{]", ("{]", "]"): "", (",]", ","): "{", (",]", "]"): ""}


def _array(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the objects of a JSON array as they stand there. Raises UnclearDialect at its end."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    text, at, expected = "", 0, "["
    try:
        for piece, final in chain(((piece, False) for piece in pieces), ((b"", True),)):
            text, at = text[at:] + decoder.decode(piece, final), 0
            while (at := _end_of_space(text, at)) < len(text):
                mark = text[at]
                if mark == "{" and "{" in expected:
                    try:
                        _, end = _DECODER.raw_decode(text, at)
                    except ValueError:
                        if final or len(text) - at > MAX_RECORD:
                            raise
                        break  # it goes on in the next piece
                    yield text[at:end].encode()
                    at, expected = end, ",]"
                else:
                    at, expected = at + 1, _AFTER[expected, mark]
    except (ValueError, KeyError, RecursionError):
        expected = "?"
    if expected:
        raise UnclearDialect("it is no array of JSON objects, or not whole")


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _no_constant(name: str) -> Any:  # noqa: ANN401 - raises
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
