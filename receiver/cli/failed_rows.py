"""Failed records: describing them, and writing their rows to be fixed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from receiver.cli.output import USAGE, Failure, explain, plain
from receiver.client import ErrorPage
from receiver.jobs.record_errors import row_of
from receiver.lib.records import UnclearDialect, WrongFile, select_records

PIECE = 2**16


def describe_errors(failures: ErrorPage) -> str:
    """Describe why records failed, most frequent cause first."""
    if not failures.groups:
        return "no failed records are known: there are none, or not yet, or they were erased"
    lines = []
    for group in failures.groups:
        rows = [row_of(example) for example in group.examples]
        named = ", ".join(str(row) for row in rows if row is not None)
        example = f" (row {named}{', …' if group.count > len(rows) else ''})" if named else ""
        lines.append(f"{group.count:>7}  {plain(group.message)}{example}")
    return "failed records by cause\n" + "\n".join(lines)


def write_failed_rows(
    errors: list[Any], source: str, target: str, submitted: int | None = None
) -> int:
    """Write the records of the file `source` that failed to `target`; return how many."""
    if source and Path(source).exists() and Path(target).exists() and Path(target).samefile(source):
        raise Failure(USAGE, "same_file", "the failed rows would overwrite the uploaded file")
    with select_failed_rows(errors, source, submitted) as (count, pieces):
        try:
            with Path(target).open("wb") as file:
                file.writelines(pieces)
        except OSError as error:
            error.filename = error.filename or target  # a full disk names none
            raise explain(error) from None
    return count


@contextmanager
def select_failed_rows(
    errors: list[Any], source: str, submitted: int | None
) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield how many records of a job failed, and the file `source` with those alone.

    submitted -- how many records the job had. CSV keeps its header. Raises Failure if the errors
    do not name the rows, if the file is missing or another than was uploaded, or if its records
    cannot be separated for certain.
    """
    numbers = {row for row in map(row_of, errors) if row is not None}
    if not numbers:
        raise Failure(USAGE, "no_rows", "the errors do not tell which rows they were")
    if not source or not Path(source).is_file():
        raise Failure(USAGE, "no_upload", "the uploaded file is not at hand: name it with --upload")
    try:
        yield (
            len(numbers),
            select_records(lambda: _pieces(Path(source)), numbers, submitted),
        )
    except WrongFile as error:
        message = (
            f"{source}: {error}; is it the file that was uploaded? Of a retry, that is what"
            " `receiver job FIRST --failed-rows FILE` writes"
        )
        raise Failure(USAGE, "other_upload", message) from None
    except UnclearDialect as error:
        message = f"{source}: which rows failed cannot be said for certain: {error}"
        raise Failure(USAGE, "unclear_dialect", message) from None


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
