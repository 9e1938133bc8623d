"""/jobs/{id}: all that is known of a job, its failed records, and their rows of the file."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import Annotated, get_args

from flask import Response, request, stream_with_context
from msgspec import UNSET, Meta, Struct, UnsetType

from receiver.errors import NotFound
from receiver.instances import registry
from receiver.jobs.failed_records import (
    FailedRecord,
    group_failed_records,
    list_failed_records,
)
from receiver.jobs.job import UNDER_WAY
from receiver.jobs.queries import JobRecord
from receiver.jobs.record_errors import row_of
from receiver.jobs.timeline import timeline
from receiver.lib.records import UnclearDialect, WrongFile, select_records
from receiver.openconnectors.shapes import MEDIA_TYPES, Format
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.jobs import close_job, jobs_called, the_one
from receiver.web.auth import record_alone
from receiver.web.bodies import file_pieces, spooled, upload_slot
from receiver.web.dashboard.formatting import cell, job_url
from receiver.web.dashboard.jobs import CSV_PAGE, csv_text
from receiver.web.dashboard.pages import (
    MAX_WAIT_MS,
    Action,
    Caller,
    Steps,
    action_page,
    download,
    page,
    page_at,
)
from receiver.web.http import optional, parameters

MAX_ENTRIES = 100  # of the timeline: a page weighs less than 100 KB
ERRORS_A_PAGE = 50
MAX_COLUMNS = 12  # on a page; the CSV has as many as there are, up to MAX_CSV_COLUMNS
MAX_CSV_COLUMNS = 200

_decode = json.JSONDecoder(parse_float=str).decode  # `loads` would make a decoder for each record
_FORMATS: dict[str, Format] = {f".{name}": name for name in get_args(Format)}


class ErrorsQuery(Struct, forbid_unknown_fields=True):
    """Which failed records: of one cause, from a position on."""

    instance: schemas.Word | UnsetType = UNSET
    cause: schemas.Word | UnsetType = UNSET
    start: Annotated[int, Meta(ge=0, le=10**9)] = 0


@page_at("/jobs/<string:id>")
def job(services: Services, caller: Caller, id: str) -> Response:
    """Show a job, or which instances have one of that id."""
    records = _jobs_called(services, caller, id)
    if len(records) > 1:
        return page("choose.html", 409, id=id, jobs=records)
    record = the_one(records, id)
    of_job = services.database, record.id, record.instance
    with services.database.read() as session:
        has_secrets = record.instance in registry.list_instances_with_secrets(session)
    entries = timeline(*of_job)
    return page(
        "job.html",
        record=record,
        job=record.job,
        entries=entries[-MAX_ENTRIES:],
        left_out=max(0, len(entries) - MAX_ENTRIES),
        may_ask=caller.may_operate and has_secrets,
        groups=group_failed_records(*of_job),
    )


@page_at("/jobs/<string:id>/errors")
def job_errors(services: Services, caller: Caller, id: str) -> Response:
    """List the failed records of a job as a table, a page at a time."""
    query = parameters(request.query_string.decode("latin-1"), ErrorsQuery)
    record = the_job(services, caller, id)
    of_job, cause = (services.database, record.id, record.instance), optional(query.cause)
    records = list_failed_records(*of_job, ERRORS_A_PAGE + 1, query.start, message=cause)
    fields = [_fields(error) for error in records[:ERRORS_A_PAGE]]
    columns = _columns(fields)
    return page(
        "job_errors.html",
        record=record,
        cause=cause,
        columns=columns[:MAX_COLUMNS],
        left_out=len(columns[MAX_COLUMNS:]),
        rows=fields,
        following=records[ERRORS_A_PAGE].position if len(records) > ERRORS_A_PAGE else None,
        start=query.start,
    )


@page_at("/jobs/<string:id>/errors.csv")
def job_errors_csv(services: Services, caller: Caller, id: str) -> Response:
    """Return the failed records of a job as CSV, all of them."""
    record = the_job(services, caller, id)
    rows = stream_with_context(_csv(services, record))
    return download(rows, f"errors-{record.id}.csv", "text/csv")


def the_job(services: Services, caller: Caller, id_: str) -> JobRecord:
    """Return the one job of that id. Raises NotFound, Ambiguous, Forbidden."""
    return the_one(_jobs_called(services, caller, id_), id_)


def _jobs_called(services: Services, caller: Caller, id_: str) -> Sequence[JobRecord]:
    return jobs_called(services, caller.bearer, id_, request.args.get("instance") or None)


def _fields(error: FailedRecord) -> dict[str, str]:
    """Return a failed record's fields as text, those of objects in it too: `record.email`.

    "Row" stands first: the number of the row in the file, if the vendor tells it.
    """
    entry = _entry(error)
    fields = {"Row": str(row_of(entry) or "")}
    if not isinstance(entry, dict):
        return {**fields, "record": _text(entry)}
    for name, value in entry.items():
        if isinstance(value, dict):
            fields |= {f"{name}.{inner}": _text(part) for inner, part in value.items()}
        elif _text(value) != fields["Row"]:
            fields[name] = _text(value)
    return fields


def _entry(error: FailedRecord) -> object:
    try:
        return _decode(error.entry)
    except (ValueError, RecursionError):
        return error.entry


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _columns(rows: Sequence[dict[str, str]]) -> list[str]:
    """Name the fields of some records, each once, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(services: Services, record: JobRecord) -> Iterator[str]:
    columns: dict[str, None] = {}
    for rows in _pages_of_fields(services, record):  # once for the header, once for the rows
        columns |= dict.fromkeys(_columns(rows))
    names = list(columns)[:MAX_CSV_COLUMNS]
    yield csv_text([[cell(name) for name in names]])
    for rows in _pages_of_fields(services, record):
        yield csv_text([cell(row.get(name)) for name in names] for row in rows)


def _pages_of_fields(services: Services, record: JobRecord) -> Iterator[list[dict[str, str]]]:
    """Yield the fields of all failed records of a job, as text, some at a time."""
    return ([_fields(error) for error in errors] for errors in _pages_of_errors(services, record))


def _pages_of_errors(services: Services, record: JobRecord) -> Iterator[list[FailedRecord]]:
    start, of_job = 0, (services.database, record.id, record.instance)
    while records := list_failed_records(*of_job, CSV_PAGE, start):
        yield records
        start = records[-1].position + 1


@page_at("/jobs/<string:id>/failed-rows", "GET", "POST")
def failed_rows(services: Services, caller: Caller, id: str) -> Response:
    """Return the rows of an uploaded file that failed in a job; the file is not kept."""
    record = the_job(services, caller, id)
    pages = _pages_of_errors(services, record)
    numbers = {row for errors in pages for error in errors if (row := row_of(_entry(error)))}
    shown = {"record": record, "count": len(numbers)}
    if request.method == "GET" or not numbers:
        return page("failed_rows.html", 200 if request.method == "GET" else 409, **shown)
    request.max_content_length = None  # `spooled` has the bound of uploads
    with ExitStack() as stack:
        stack.enter_context(upload_slot())
        body = stack.enter_context(spooled(services.settings.max_upload_bytes))

        def pieces() -> Iterator[bytes]:
            return file_pieces(body, request.headers)

        try:
            rows = select_records(pieces, numbers, record.job.submitted)
        except (UnclearDialect, WrongFile) as error:
            return page("failed_rows.html", 409, error=str(error), **shown)
        response = _file(record, rows)
        response.call_on_close(stack.pop_all().close)
        return response


def _file(record: JobRecord, rows: Iterator[bytes]) -> Response:
    suffix = PurePosixPath(record.job.text("file") or "").suffix.lower()
    suffix = suffix if suffix in _FORMATS else ".csv"
    return download(rows, f"failed-{record.id}{suffix}", MEDIA_TYPES[_FORMATS[suffix]])


@action_page("/jobs/<string:id>/ask")
def ask(services: Services, caller: Caller, id: str) -> Steps:
    """Ask the vendor where a job stands."""
    job = the_job(services, caller, id)
    yield Action(
        f"Ask the vendor about job {job.id}",
        "Ask now",
        job_url(job),
        f"One request is sent to the vendor with the secrets of {job.instance}.",
        "The answer is added to the timeline as a poll, and may change the outcome.",
    )
    answer = services.reconciler.ask(job.instance, job.id, caller.bearer.name, MAX_WAIT_MS)
    result, subject = f"The vendor answered {answer.status}.", f"{job.instance}/{job.id}"
    record_alone(services, caller.bearer, "job.ask", subject, detail=result)
    return result


@action_page("/jobs/<string:id>/close")
def close(services: Services, caller: Caller, id: str) -> Steps:
    """Give up a job of which the vendor says nothing more."""
    job = the_job(services, caller, id)
    if job.outcome not in UNDER_WAY and not job.job.conflict:
        raise NotFound(f"Job {id} is not in progress.")
    yield Action(
        f"Close job {job.id}",
        "Close this job",
        job_url(job),
        "Its outcome becomes lost, and the vendor is no longer asked about it.",
        "Any later callback or poll of this job opens it again.",
        is_danger=True,
    )
    close_job(services, caller.bearer, job)
    return f"Job {job.id} is closed as lost."
