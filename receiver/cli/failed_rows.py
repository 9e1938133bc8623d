"""Failed records: describing them, and writing their rows to be fixed."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from receiver.cli.output import USAGE, Failure, explain, plain
from receiver.client import ErrorPage
from receiver.jobs.record_errors import row_of
from receiver.lib.records import UnclearDialect, json_lines, read_dialect, rows

PIECE = 2**16


def describe_errors(failures: ErrorPage) -> str:
    """Tell why records failed, most frequent cause first."""
    if not failures.groups:
        return "no failed records are known: there are none, or not yet, or they were erased"
    lines = []
    for group in failures.groups:
        rows = [row_of(example) for example in group.examples]
        named = ", ".join(str(row) for row in rows if row is not None)
        example = f" (row {named}{', …' if group.count > len(rows) else ''})" if named else ""
        lines.append(f"{group.count:>7}  {plain(group.message)}{example}")
    return "failed records by cause\n" + "\n".join(lines)


def write_failed_rows(errors: list[Any], source: str, target: str) -> int:
    """Write the records of the file `source` that failed to `target`, as they stand there.

    CSV keeps its header. Returns how many. Raises Failure if the errors do not name the rows, if
    the file is missing or lacks one of them, or if its records cannot be separated for certain.
    """
    numbers = {row for row in map(row_of, errors) if row is not None}
    if not numbers:
        raise Failure(USAGE, "no_rows", "the errors do not tell which rows they were")
    if not source or not Path(source).is_file():
        raise Failure(USAGE, "no_upload", "the uploaded file is not at hand: name it with --upload")
    if Path(target).exists() and Path(target).samefile(source):
        raise Failure(USAGE, "same_file", "the failed rows would overwrite the uploaded file")
    try:
        count, pieces = _failed(Path(source), numbers)
        if count < len(numbers):
            text = f"only {count} of {len(numbers)} failed rows are in {source}"
            raise Failure(USAGE, "other_upload", f"{text}: is it the file that was uploaded?")
        Path(target).write_bytes(b"".join(pieces))
    except UnclearDialect as error:
        message = f"{source}: which rows failed cannot be said for certain: {error}"
        raise Failure(USAGE, "unclear_dialect", message) from None
    except OSError as error:
        error.filename = error.filename or target  # a full disk names none
        raise explain(error) from None
    return count


def _failed(source: Path, numbers: set[int]) -> tuple[int, list[bytes]]:
    """Return how many of the records with these numbers there are, and what to write of them."""
    dialect = read_dialect(lambda: _pieces(source))
    if dialect.kind == "json":
        content = source.read_bytes().removeprefix(codecs.BOM_UTF8)
        entries = msgspec.json.decode(content, type=list[msgspec.Raw])
        selected = _numbered(map(bytes, entries), numbers)
        return len(selected), [b"[", b",\n".join(selected), b"]\n"]
    if dialect.kind == "jsonl":
        selected = _numbered(json_lines(_pieces(source)), numbers)
        return len(selected), selected
    header, lines = rows(_pieces(source))
    selected = _numbered(lines, numbers)
    return len(selected), [header, *selected]


def _numbered(records: Iterable[bytes], numbers: set[int]) -> list[bytes]:
    return [record for number, record in enumerate(records, 1) if number in numbers]


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
