"""The small cloud service that files are loaded into.

CSV in any dialect, JSON lines or a JSON array. What becomes of each row is written to disk:
accepted rows and refused ones as JSON lines.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
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


def load(source: Path, target: Path) -> Loaded:
    """Load the file `source`; write accepted and refused rows beside each other at `target`."""
    accepted, refused = target.with_suffix(".accepted"), target.with_suffix(".refused")
    columns: dict[str, None] = {}
    seen: set[int] = set()  # hashes: the addresses of a large file would not fit
    loaded = failed = 0
    problem = None
    with (
        source.open(encoding="utf-8-sig", newline="") as text,
        accepted.open("wb") as good,
        refused.open("wb") as bad,
    ):
        try:
            for number, (record, odd) in enumerate(_records(text, columns), start=1):
                refusal = odd or _refusal(record, seen)
                if refusal is None:
                    good.write(msgspec.json.encode(record) + b"\n")
                    loaded += 1
                else:
                    entry = {"row": number, "message": refusal, "record": record}
                    bad.write(msgspec.json.encode(entry) + b"\n")
                    failed += 1
        except UnicodeDecodeError:
            problem = "The file cannot be read: it is not UTF-8 text."
        except (csv.Error, msgspec.MsgspecError, RecursionError) as error:
            problem = f"The file cannot be read: {error}."
    return Loaded(accepted, refused, tuple(columns), loaded, failed, problem)


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


def _records(text: TextIO, columns: dict[str, None]) -> Iterator[tuple[dict[str, str], str | None]]:
    """Yield each record and what is odd about it; note the names of columns on the way."""
    start = text.read(_HEAD).lstrip()
    text.seek(0)
    if start.startswith(("[", "{")):
        lines = [text.read()] if start.startswith("[") else filter(str.strip, _lines(text))
        for line in lines:
            entries = msgspec.json.decode(line, type=list[dict[str, Any]] | dict[str, Any])
            for entry in entries if isinstance(entries, list) else [entries]:
                columns.update(dict.fromkeys(entry))
                yield {name: _as_text(value) for name, value in entry.items()}, None
        return
    rows = filter(None, csv.reader(_lines(text), delimiter=_delimiter(start)))
    names = next(rows, [])
    if len(names) == 2 and names[0].lower() == "sep=":
        names = next(rows, [])
    if not any(name.strip() for name in names):
        raise csv.Error("the file has no header")
    columns.update(dict.fromkeys(names))
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


def refused(loaded: Loaded, start: int, count: int) -> list[bytes]:
    """Return the JSON of up to `count` refused rows from the row `start` on; 0 is the first."""
    with loaded.refused.open("rb") as lines:
        return list(islice(lines, start, start + count))


def render(loads: Sequence[Loaded], as_format: Format) -> Iterator[bytes]:
    """Yield all accepted rows of `loads` as one file, a piece at a time."""
    lines: Iterator[bytes] = chain.from_iterable(map(_accepted, loads))
    if as_format != "jsonl":
        lines = _json(lines) if as_format == "json" else _csv(loads, lines)
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
    columns = list(dict.fromkeys(name for loaded in loads for name in loaded.columns))
    writer = csv.DictWriter(_Encoder(), columns)
    yield writer.writeheader()
    for line in lines:
        yield writer.writerow(msgspec.json.decode(line, type=dict[str, str]))


class _Encoder:
    """A file for a writer of CSV, which returns what this does."""

    @staticmethod
    def write(text: str) -> bytes:
        return text.encode()
