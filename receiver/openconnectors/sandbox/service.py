"""The small cloud service that files are loaded into.

CSV in any dialect, JSON lines or a JSON array. What becomes of a record is worked out from its
file whenever that is asked for.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import msgspec

from receiver.openconnectors.shapes import Format

OBJECTS = ("activities", "contact", "campaign", "list", "account")

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_MAX_EMAIL = 254
_LINES_IN_PIECE = 500
_HEAD = 4096  # characters that tell what a file is
_MAX_LINE = 1 << 20  # characters; a line is held in memory, a file never


def read(source: Path) -> Iterator[tuple[dict[str, str], str | None]]:
    """Yield each record of a file, and why the service does not take it; None: it does.

    Raises ValueError where the file cannot be read any further.
    """
    seen: set[int] = set()  # hashes: the addresses of a large file would not fit
    try:
        with source.open(encoding="utf-8-sig", newline="") as text:
            for record, odd in _records(text):
                yield record, odd or _refusal(record, seen)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except (csv.Error, msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def count(source: Path) -> tuple[int, int, str | None]:
    """Return how many records are loaded and refused, and why the file cannot be read, if so."""
    counts = Counter[bool]()
    problem = None
    try:
        counts.update(refusal is None for _, refusal in read(source))
    except ValueError as error:
        problem = f"The file cannot be read: {error}."
    return counts[True], counts[False], problem


def refused(source: Path, start: int, size: int) -> list[dict[str, object]]:
    """Return up to `size` refused records, with the reasons, from the one at `start` on."""
    entries = (
        {"row": number, "message": refusal, "record": record}
        for number, (record, refusal) in enumerate(_readable([source]), start=1)
        if refusal is not None
    )
    return list(islice(entries, start, start + size))


def render(sources: Sequence[Path], as_format: Format) -> Iterator[bytes]:
    """Yield all accepted records of files as one file, a piece at a time."""
    accepted = (record for record, refusal in _readable(sources) if refusal is None)
    if as_format == "csv":
        lines = _csv(sources, accepted)
    else:
        lines = map(msgspec.json.encode, accepted)
        lines = _json(lines) if as_format == "json" else (line + b"\n" for line in lines)
    while piece := b"".join(islice(lines, _LINES_IN_PIECE)):
        yield piece


def _readable(sources: Sequence[Path]) -> Iterator[tuple[dict[str, str], str | None]]:
    for source in sources:
        with suppress(ValueError):
            yield from read(source)


def _refusal(record: Mapping[str, str], seen: set[int]) -> str | None:
    """Return why the service does not take a record, or None if it does."""
    email = next((value.strip() for name, value in record.items() if "email" in name.lower()), None)
    if email is None:
        return None
    if not email:
        return "The e-mail address is missing."
    if len(email) > _MAX_EMAIL or not _EMAIL.fullmatch(email):
        return "The e-mail address is malformed."
    address = hash(email.casefold())
    if address in seen:
        return "The e-mail address stands twice in this file."
    seen.add(address)
    return None


def _records(text: TextIO) -> Iterator[tuple[dict[str, str], str | None]]:
    """Yield each record and what is odd about it."""
    start = text.read(_HEAD).lstrip()
    text.seek(0)
    if start.startswith(("[", "{")):
        lines = [text.read()] if start.startswith("[") else filter(str.strip, _lines(text))
        for line in lines:
            entries = msgspec.json.decode(line, type=list[dict[str, Any]] | dict[str, Any])
            for entry in entries if isinstance(entries, list) else [entries]:
                yield {name: _as_text(value) for name, value in entry.items()}, None
        return
    rows = filter(None, csv.reader(_lines(text), delimiter=_delimiter(start)))
    names = next(rows, [])
    if len(names) == 2 and names[0].lower() == "sep=":
        names = next(rows, [])
    if not any(name.strip() for name in names):
        raise csv.Error("the file has no header")
    for row in rows:
        odd = f"The row has {len(row)} fields, the header has {len(names)}."
        record = dict(zip(names, row + [""] * (len(names) - len(row)), strict=False))
        yield record, odd if len(row) > len(names) else None


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _delimiter(start: str) -> str:
    """Return the delimiter that stands most often in the first line."""
    line = start.lstrip("\ufeff").partition("\n")[0]
    if line.lower().startswith("sep="):
        return line[4:5].strip("\r") or ","
    return max(",;\t|", key=line.count)


def _lines(text: TextIO) -> Iterator[str]:
    while line := text.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise csv.Error("a line is too long")
        yield line.removesuffix("\x1a")


def _json(lines: Iterator[bytes]) -> Iterator[bytes]:
    yield b"["
    for number, line in enumerate(lines):
        yield b"," + line if number else line
    yield b"]"


def _csv(sources: Sequence[Path], accepted: Iterable[dict[str, str]]) -> Iterator[bytes]:
    columns = dict.fromkeys(name for record, _ in _readable(sources) for name in record)
    writer = csv.DictWriter(_Encoder(), list(columns))
    yield writer.writeheader()
    yield from map(writer.writerow, accepted)


class _Encoder:
    """A file for a writer of CSV, which returns what this does."""

    @staticmethod
    def write(text: str) -> bytes:
        return text.encode()
