"""/jobs/{id}/failed-rows: the rows of a file that failed, cut out of it on its way through."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import get_args

from flask import Response, request

from receiver.jobs.queries import JobRecord
from receiver.lib.records import UnclearDialect, WrongFile, select_records
from receiver.openconnectors.shapes import MEDIA_TYPES, Format
from receiver.web import Services
from receiver.web.dashboard.job import pages_of_fields, the_job
from receiver.web.dashboard.pages import Caller, blueprint, download, page
from receiver.web.dashboard.sign_in import require_session
from receiver.web.relay.exchange import spooled, upload_place
from receiver.web.relay.uploads import file_pieces

_FORMATS: dict[str, Format] = {f".{name}": name for name in get_args(Format)}


@blueprint.route("/jobs/<string:id>/failed-rows", methods=["GET", "POST"])
@require_session
def failed_rows(services: Services, caller: Caller, id: str) -> Response:
    """Return the rows of an uploaded file that failed in a job; the file is not kept."""
    record = the_job(services, caller, id)
    numbers = {
        int(fields["Row"])
        for rows in pages_of_fields(services, record)
        for fields in rows
        if fields["Row"]
    }
    shown = {"record": record, "count": len(numbers)}
    if request.method == "GET" or not numbers:
        return page("failed_rows.html", 200 if request.method == "GET" else 409, **shown)
    request.max_content_length = None  # `spooled` has the bound of uploads
    with ExitStack() as stack:
        stack.enter_context(upload_place())
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
