"""The small cloud service that files are loaded into.

A file of any size is read row by row and what becomes of each row is written to disk: accepted rows
and refused ones as JSON lines.
"""

import csv
import io
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, TextIO

import msgspec

OBJECTS = ("activities", "contact", "campaign", "list", "account")
Format = Literal["csv", "json", "jsonl"]

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_LONGEST_EMAIL = 254
_LINES_IN_PIECE = 500
_LONGEST_LINE = 1 << 20  # characters; a line is held in memory, a file never


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of one file.

    accepted, refused -- files of JSON lines, one for each row.
    problem -- why reading ended before the end of the file, or None.
    """

    accepted: Path
    refused: Path
    columns: tuple[str, ...] = ()
    loaded: int = 0
    failed: int = 0
    problem: str | None = None


class _Rules:
    """Which rows of one file the service takes."""

    def __init__(self, columns: Sequence[str], seen: sqlite3.Connection) -> None:
        self._width = len(columns)
        self._email = next((i for i, name in enumerate(columns) if "email" in name.lower()), None)
        # On disk, because the addresses of a 200 MB file do not fit into a small memory.
        self._seen = seen
        seen.execute("PRAGMA journal_mode = OFF")
        seen.execute("CREATE TABLE seen (email TEXT PRIMARY KEY) WITHOUT ROWID")

    def refusal(self, row: Sequence[str]) -> str | None:
        """Why the service does not take `row`, or None if it does."""
        if len(row) > self._width:
            return f"The row has {len(row)} fields, the header has {self._width}."
        if self._email is None:
            return None
        email = row[self._email].strip() if self._email < len(row) else ""
        if not email:
            return "The e-mail address is missing."
        if len(email) > _LONGEST_EMAIL or not _EMAIL.fullmatch(email):
            return "The e-mail address is malformed."
        added = self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (email.casefold(),))
        return None if added.rowcount else "The e-mail address stands twice in this file."


def load(source: Path, target: Path) -> Loaded:
    """Load the CSV file `source`; write accepted and refused rows beside each other at `target`."""
    accepted, refused = target.with_suffix(".accepted"), target.with_suffix(".refused")
    with (
        source.open(encoding="utf-8-sig", newline="") as text,
        accepted.open("wb") as good,
        refused.open("wb") as bad,
        closing(sqlite3.connect("")) as seen,
    ):
        columns: tuple[str, ...] = ()
        problem = None
        counts = {True: 0, False: 0}
        try:
            rows = csv.reader(_lines(text))
            columns = _header(rows)
            for fine in _sort(rows, columns, _Rules(columns, seen), good, bad):
                counts[fine] += 1
        except (csv.Error, UnicodeDecodeError) as error:
            problem = _reason(error)
    return Loaded(accepted, refused, columns, counts[True], counts[False], problem)


def _sort(
    rows: Iterable[list[str]], columns: Sequence[str], rules: _Rules, good: BinaryIO, bad: BinaryIO
) -> Iterator[bool]:
    for number, row in enumerate(filter(None, rows), start=1):
        refusal = rules.refusal(row)
        record = dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=False))
        if refusal is None:
            good.write(msgspec.json.encode(record) + b"\n")
        else:
            failure = {"row": number, "message": refusal, "record": record}
            bad.write(msgspec.json.encode(failure) + b"\n")
        yield refusal is None


def _lines(text: TextIO) -> Iterator[str]:
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error("a line is too long")
        yield line


def _header(rows: Iterator[list[str]]) -> tuple[str, ...]:
    names = next(rows, [])
    if not any(name.strip() for name in names):
        raise csv.Error("the file has no header")
    return tuple(names)


def _reason(error: csv.Error | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "The file cannot be read: it is not UTF-8 text."
    return f"The file cannot be read: {error}."


def refused_page(path: Path | None, start: int, size: int) -> tuple[list[bytes], int | None]:
    """Up to `size` refused rows from the byte `start` of a file that `load` wrote.

    path -- the file; None: there is none yet, so it has no rows.

    Returns the rows' JSON and the byte where the next page starts, None after the last.
    Raises ValueError if no page starts at `start`.
    """
    with path.open("rb") if path else io.BytesIO() as lines:
        lines.seek(max(start - 1, 0))
        if start and lines.read(1) != b"\n":
            raise ValueError(start)
        page = [line.rstrip() for line in islice(lines, size)]
        end = lines.tell()
        return page, end if lines.read(1) else None


def render(loads: Sequence[Loaded], as_format: Format) -> Iterator[bytes]:
    """All accepted rows of `loads` as one file, a piece at a time."""
    lines = (line for each in loads for line in _accepted(each))
    if as_format == "json":
        return _pieces(_json(lines))
    return _pieces(_csv(loads, lines) if as_format == "csv" else lines)


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    while piece := b"".join(islice(lines, _LINES_IN_PIECE)):
        yield piece


def _accepted(loaded: Loaded) -> Iterator[bytes]:
    with loaded.accepted.open("rb") as lines:
        yield from lines


def _json(lines: Iterator[bytes]) -> Iterator[bytes]:
    yield b"["
    for number, line in enumerate(lines):
        yield (b"," if number else b"") + line.rstrip()
    yield b"]"


def _csv(loads: Sequence[Loaded], lines: Iterator[bytes]) -> Iterator[bytes]:
    columns = list(dict.fromkeys(name for each in loads for name in each.columns))
    piece = io.StringIO(newline="")
    writer = csv.DictWriter(piece, columns)
    writer.writeheader()
    for line in lines:
        writer.writerow(msgspec.json.decode(line, type=dict[str, str]))
        yield piece.getvalue().encode()
        piece.seek(0)
        piece.truncate()
    yield piece.getvalue().encode()
