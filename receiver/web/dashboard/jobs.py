"""/jobs: the list, its pages, and the same as CSV."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flask import Response, request, stream_with_context
from markupsafe import Markup
from msgspec import UNSET

from receiver.jobs import queries
from receiver.jobs.job import OUTCOMES
from receiver.jobs.queries import JobRecord, Place, Show, list_jobs, place_of
from receiver.lib.clock import DAY_MS, iso
from receiver.web import services
from receiver.web.dashboard.filters import SHOWS, TIMES, Filters, asked
from receiver.web.dashboard.instances import reached
from receiver.web.dashboard.pages import blueprint, joined, page, part
from receiver.web.dashboard.views import JobView, job_view, line
from receiver.web.http import read_cursor, write_cursor


@dataclass(frozen=True, slots=True)
class Order:
    """How a list is sorted, and what its days and the ways to its other pages are called."""

    told: str
    days: str
    first: str
    back: str
    on: str
    changed: str = "minute"


NEWEST = Order("newest change first", "", "Newest", "Newer", "Older", "clock")
ORDERS: Mapping[Show | None, Order] = {
    "overdue": Order("longest under way first", "First heard of ", "First", "Back", "More"),
    "expiring": Order("soonest first", "Files expire ", "First", "Back", "More"),
}
CSV_PAGE = 1000
MOST_BARS = 64  # kept in a process
LONGEST_BAR = 20_000  # characters; each filter has a link that names all the others
CSV_COLUMNS = (
    "id",
    "instance",
    "outcome",
    "status",
    "object",
    "direction",
    "file",
    "submitted",
    "loaded",
    "failed",
    "message",
    "learnt_by",
    "conflict",
    "created_at",
    "submitted_at",
    "ended_at",
    "updated_at",
    "files_expire_at",
)
# What a spreadsheet would take for a formula, were it not text.
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")

_BARS: dict[tuple[Any, ...], Markup] = {}


@blueprint.get("/jobs")
def jobs() -> Response:
    """List jobs, newest change first, by day."""
    filters = asked()
    rows, has_newer, has_older = _page(filters, filters.query.limit)
    names = tuple(reached())
    now, order = services().clock(), ORDERS.get(filters.show, NEWEST)
    return page(
        "jobs.html",
        filters=filters,
        bar=_bar(filters, names),
        filtered=filters.is_set,
        instances=names,
        days=[
            (day * DAY_MS, joined(line(row, now, order.changed) for row in group))
            for day, group in groupby(rows, lambda row: place_of(row, filters.show)[0] // DAY_MS)
        ],
        count=len(rows),
        order=order,
        older=filters.url(cursor=write_cursor(place_of(rows[-1], filters.show)))
        if has_older
        else None,
        newer=filters.url(newer=write_cursor(place_of(rows[0], filters.show)))
        if has_newer
        else None,
        newest=filters.url() if has_newer or "cursor" in request.args else None,
    )


def _bar(filters: Filters, instances: tuple[str, ...]) -> Markup:
    """Render the filter bar, which is the same from page to page."""
    key = tuple(filters.pairs), instances
    bar = _BARS.get(key)
    if bar is None:
        bar = part("filter_bar", filters, OUTCOMES, SHOWS, TIMES, instances)
        if len(_BARS) >= MOST_BARS:
            _BARS.clear()
        if len(bar) <= LONGEST_BAR:
            _BARS[key] = bar
    return bar


def _page(filters: Filters, limit: int) -> tuple[Sequence[JobRecord], bool, bool]:
    """Give the jobs of a page, and whether there are newer and older ones."""
    database, wanted = services().database, filters.wanted()
    before = read_cursor(request.args.get("newer") or UNSET, tuple[int, str, str])
    after = read_cursor(filters.query.cursor, tuple[int, str, str])
    if before is None:
        rows = list_jobs(database, wanted, limit + 1, after)
        return rows[:limit], after is not None, len(rows) > limit
    rows = list_jobs(database, wanted, limit + 1, before=before)
    return rows[-limit:], len(rows) > limit, True


@blueprint.get("/jobs.csv")
def jobs_csv() -> Response:
    """Give the same jobs as CSV, all of them and in the same order.

    They are read page by page, however many they are. Where one cannot be read, the answer breaks
    off, and the browser says that it is not whole.
    """
    filters = asked()
    after = read_cursor(filters.query.cursor, tuple[int, str, str])
    rows: Any = stream_with_context(_csv(filters.wanted(), after))
    response = Response(rows, mimetype="text/csv")
    response.headers["Content-Disposition"] = 'attachment; filename="jobs.csv"'
    return response


def _csv(wanted: queries.Filters, after: Place | None) -> Iterator[str]:
    yield _csv_text([CSV_COLUMNS])
    while True:
        rows = list_jobs(services().database, wanted, CSV_PAGE, after)
        yield _csv_text(_csv_row(job_view(row)) for row in rows)
        if len(rows) < CSV_PAGE:
            return
        after = place_of(rows[-1], wanted.show)


def _csv_row(view: JobView) -> list[str]:
    job = view.job
    facts: tuple[Any, ...] = (
        view.row.id,
        view.row.instance,
        view.outcome,
        job.status,
        job.text("object"),
        job.text("direction"),
        job.text("file"),
        job.submitted,
        job.loaded,
        job.failed,
        job.text("message"),
        job.learnt_by,
        "yes" if job.conflict else "no",
        iso(job.created_at),
        iso(job.submitted_at),
        iso(job.ended_at),
        iso(view.row.updated_at),
        iso(job.files_expire_at),
    )
    return [cell(fact) for fact in facts]


def cell(fact: object) -> str:
    """Write a fact so that no spreadsheet computes it."""
    text = "" if fact is None else str(fact).replace("\0", "\N{REPLACEMENT CHARACTER}")
    return f"'{text}" if _FORMULA.match(text) else text


def _csv_text(rows: Any) -> str:  # noqa: ANN401 - rows of text
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows(rows)
    return written.getvalue().encode(errors="replace").decode()
