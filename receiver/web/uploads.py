"""Counting the records of a file on its way to the vendor."""

import codecs
import csv
import io
from collections.abc import Iterator
from typing import IO

from receiver.errors import BadParameter

_HEAD_BYTES = 4096
_LONGEST_LINE = 1 << 20  # characters; a line is held in memory, a file never


def count_records(file: IO[bytes], name: str) -> int | None:
    """Count the rows after the header of a CSV file, or the lines of a file of JSON lines.

    file -- read to its end and wound back. name -- tells JSON lines by `.jsonl` or `.ndjson`.
    Gives None where the count cannot be known. Raises BadParameter for a file without any bytes or
    that is neither.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if not head.strip():
        raise BadParameter("the file is empty")
    if b"\0" in head:
        raise BadParameter("the file is neither CSV nor JSON lines in UTF-8: it holds NUL bytes")
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return None  # JSON in one piece, or an odd header
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    lines = _lines(text)
    try:
        if name.lower().endswith((".jsonl", ".ndjson")) or start.startswith(b"{"):
            return sum(1 for line in lines if line.strip())
        rows = csv.reader(lines)
        header = next(filter(None, rows), None)
        if header is None or not any(column.strip() for column in header):
            raise BadParameter("the file has no header row")
        return sum(1 for row in rows if row)
    except csv.Error:
        return None
    finally:
        text.detach()
        file.seek(0)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error("a line is too long")
        yield line
