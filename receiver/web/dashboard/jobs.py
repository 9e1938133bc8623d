"""/jobs: the list, its filters and pages, and the same as CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from flask import Response, request, stream_with_context
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from receiver.errors import TooSlow
from receiver.jobs import queries
from receiver.jobs.job import OUTCOMES
from receiver.jobs.public import Job, public_job
from receiver.jobs.queries import JobRecord, Position, Show, list_jobs, position_of
from receiver.lib.clock import DAY_MS, iso
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.callbacks import SEARCHED_MS
from receiver.web.api.jobs import job_filters
from receiver.web.auth import require_instance
from receiver.web.dashboard.formatting import cell
from receiver.web.dashboard.pages import (
    Caller,
    download,
    filters,
    list_url,
    page,
    page_at,
    read_query,
    redirect_to,
)
from receiver.web.http import optional, read_cursor, write_cursor

CSV_PAGE = 1000


class JobsQuery(schemas.JobsQuery):
    """The API's filters, and what only the dashboard has.

    show -- what needs a look. newer -- a cursor: the page before the job there.
    """

    limit: schemas.Limit = 25
    show: Show | UnsetType = UNSET
    newer: schemas.Cursor | UnsetType = UNSET


def _read_filters(services: Services, caller: Caller) -> tuple[JobsQuery, queries.Filters]:
    """Read which jobs this request asks for, and return that as the store takes it, too.

    Raises BadParameter, and Forbidden where the token does not reach an instance.
    """
    query = read_query(JobsQuery)
    require_instance(caller.bearer, query.instance)
    wanted = replace(
        job_filters(query, caller.bearer),
        show=optional(query.show),
        now=services.clock(),
        overdue_after=services.settings.overdue_after,
    )
    return query, wanted


@page_at("/jobs")
def jobs(services: Services, caller: Caller) -> Response:
    """List jobs, newest change first, by day."""
    query, wanted = _read_filters(services, caller)
    rows, has_newer, has_older = _page(services, query, wanted)
    if not rows and (instead := _alternative_url(services, query, wanted)):
        return redirect_to(instead)
    show = wanted.show
    return page(
        "jobs.html",
        query=query,
        chips=[(*pair, list_url(drop=pair)) for pair in filters() if pair[0] != "limit"],
        csv=list_url("/jobs.csv"),
        outcomes=OUTCOMES,
        days=[
            (day * DAY_MS, list(group))
            for day, group in groupby(rows, lambda row: position_of(row, show)[0] // DAY_MS)
        ],
        count=len(rows),
        show=show,
        older=list_url(cursor=write_cursor(position_of(rows[-1], show))) if has_older else None,
        newer=list_url(newer=write_cursor(position_of(rows[0], show))) if has_newer else None,
        newest=list_url() if has_newer or "cursor" in request.args else None,
    )


def _page(
    services: Services, query: JobsQuery, wanted: queries.Filters
) -> tuple[Sequence[JobRecord], bool, bool]:
    """Return the jobs of a page, and whether there are newer and older ones."""
    limit = query.limit
    before = read_cursor(query.newer, tuple[int, str, str])
    after = read_cursor(query.cursor, tuple[int, str, str])
    if before is None:
        rows = list_jobs(services.database, wanted, limit + 1, after)
        return rows[:limit], after is not None, len(rows) > limit
    rows = list_jobs(services.database, wanted, limit + 1, before=before)
    return rows[-limit:], len(rows) > limit, True


def _alternative_url(services: Services, query: JobsQuery, wanted: queries.Filters) -> str | None:
    """Return the URL of the jobs whose object or file is what was searched for, if there are any.

    Files are looked for in what changed lately, since no index has them.
    """
    text = wanted.text
    if text is None or query.object or query.file or "cursor" in request.args:
        return None
    since = wanted.updated_after or services.clock() - SEARCHED_MS
    bound = {} if wanted.updated_after else {"updated_after": str(iso(since))}
    instead: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
        ({"objects": [text]}, {"object": text}),
        ({"file": text, "updated_after": since}, {"file": text, **bound}),
    )
    for changed, named in instead:
        other = replace(wanted, text=None, **changed)
        with suppress(TooSlow):
            if list_jobs(services.database, other, 1):
                return list_url(drop=("q", text), **named)
    return None


@page_at("/jobs.csv")
def jobs_csv(services: Services, caller: Caller) -> Response:
    """Return the same jobs as CSV, all of them and in the same order.

    They are read page by page, however many they are. Where one cannot be read, the answer breaks
    off, and the browser says that it is not whole.
    """
    query, wanted = _read_filters(services, caller)
    after = read_cursor(query.cursor, tuple[int, str, str])
    rows = stream_with_context(_csv(services, wanted, after))
    return download(rows, "jobs.csv", "text/csv")


def _csv(services: Services, wanted: queries.Filters, after: Position | None) -> Iterator[str]:
    yield csv_text([_COLUMNS])
    while True:
        rows = list_jobs(services.database, wanted, CSV_PAGE, after)
        shown = (public_job(row, wanted.now, wanted.overdue_after) for row in rows)
        yield csv_text(map(_cells, shown))
        if len(rows) < CSV_PAGE:
            return
        after = position_of(rows[-1], wanted.show)


_COLUMNS = (
    *("id", "instance", "outcome", "status", "object", "direction", "file"),
    *("submitted", "loaded", "failed", "message", "learnt_by", "conflict", "overdue"),
    *("created_at", "submitted_at", "ended_at", "updated_at", "files_expire_at"),
)


def _cells(job: Job) -> list[str]:
    facts = {**asdict(job), **asdict(job.records)}
    facts |= {name: "yes" if facts[name] else "no" for name in ("conflict", "overdue")}
    return [cell(facts[name]) for name in _COLUMNS]


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """Write rows as CSV, every cell quoted."""
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows(rows)
    return written.getvalue().encode(errors="replace").decode()
