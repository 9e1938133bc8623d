"""Failed records: fetching them all, telling of them, and writing their rows to be mended."""

import csv
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from receiver.cli.exits import USAGE, Failure
from receiver.cli.output import plain
from receiver.cli.remote import Remote
from receiver.jobs.record_errors import row_of

PAGE = 1000
FETCH_SECONDS = 15  # for which a receiver may be fetching errors of a job that has just ended
PAUSE_SECONDS = 0.5


def known_errors(remote: Remote, job: dict[str, Any], wait: int) -> dict[str, Any]:
    """Give `errors` and `groups` of a job; of one with failed records, wait until they are known.

    wait -- for how many seconds at most; there may be none by then.
    """
    deadline = time.monotonic() + min(wait, FETCH_SECONDS)
    while True:
        found = all_errors(remote, job)
        if found["errors"] or not job["records"].get("failed") or time.monotonic() >= deadline:
            return found
        time.sleep(PAUSE_SECONDS)


def all_errors(remote: Remote, job: dict[str, Any]) -> dict[str, Any]:
    """Give `errors` and `groups` of a job, all pages."""
    path, cursor = f"/jobs/{quote(job['id'], safe='')}/errors", None
    errors: list[Any] = []
    while True:
        page = remote.page(path, "errors", instance=job["instance"], limit=PAGE, cursor=cursor)
        errors += page["errors"]
        cursor = page["next"]
        if cursor is None:
            return {"errors": errors, "groups": page["groups"]}


def describe_errors(failures: dict[str, Any]) -> str:
    """Tell why records failed, most frequent cause first."""
    if not failures["groups"]:
        return "no failed records are known: there are none, or not yet, or they were erased"
    lines = []
    for group in failures["groups"]:
        rows = [row_of(example) for example in group["examples"]]
        named = ", ".join(str(row) for row in rows if row is not None)
        example = f" (row {named}{', …' if group['count'] > len(rows) else ''})" if named else ""
        lines.append(f"{group['count']:>7}  {plain(group['message'])}{example}")
    return "failed records by cause\n" + "\n".join(lines)


def write_failed_rows(errors: list[Any], source: str, target: str) -> int:
    """Write the rows of `source` (CSV) that failed, under its header, to `target`.

    Gives how many. Raises Failure if the errors do not tell the rows, or if the file is not at hand
    or lacks one of them.
    """
    numbers = {row for row in map(row_of, errors) if row is not None}
    if not numbers:
        raise Failure(USAGE, "no_rows", "the errors do not tell which rows they were")
    if not source or not Path(source).is_file():
        raise Failure(USAGE, "no_upload", "the uploaded file is not at hand: name it with --upload")
    if Path(target).exists() and Path(target).samefile(source):
        raise Failure(USAGE, "same_file", "the failed rows would overwrite the uploaded file")
    try:
        with Path(source).open(encoding="utf-8-sig", newline="") as given:
            rows = (row for row in csv.reader(given) if row)
            header = next(rows, [])
            failed = [row for number, row in enumerate(rows, 1) if number in numbers]
        if len(failed) < len(numbers):
            told = f"only {len(failed)} of {len(numbers)} failed rows are in {source}"
            raise Failure(USAGE, "other_upload", f"{told}: is it the file that was uploaded?")
        with Path(target).open("w", encoding="utf-8", newline="") as mended:
            csv.writer(mended, lineterminator="\n").writerows([header, *failed])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Failure(USAGE, "unreadable_file", f"{source}: {type(error).__name__}") from None
    return len(failed)
