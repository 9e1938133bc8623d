"""/jobs/{id}: all that is known of a job, and the bodies that told it."""

from collections.abc import Sequence

from flask import Response, request

from receiver.callbacks.events import EventRecord, get_body, get_event
from receiver.errors import BodyGone, NotFound
from receiver.instances import registry
from receiver.jobs.failed_records import group_failed_records, list_failed_records
from receiver.jobs.queries import JobRecord, find_jobs
from receiver.jobs.timeline import timeline
from receiver.web import services
from receiver.web.auth import current_bearer, require_instance
from receiver.web.dashboard.pages import blueprint, may_operate, page
from receiver.web.dashboard.views import job_view, pretty, record

LONGEST_SHOWN_BODY = 64 * 1024
MOST_SHOWN_ENTRIES = 500
ERRORS_A_PAGE = 50

FACTS = {
    "created_at": "creation time",
    "submitted_at": "submission time",
    "ended_at": "end",
    "callback_payload": "callback payload",
    "learnt_by": "who told first",
}


@blueprint.get("/jobs/<string:id>")
def job(id: str) -> Response:  # noqa: A002 - as in the API
    """Show a job, or which instances have one of that id."""
    rows = called(id)
    if not rows:
        raise NotFound(f"No job {id} is known, or the token does not reach its instance.")
    if len(rows) > 1:
        return page("choose.html", 409, id=id, views=[job_view(row) for row in rows])
    row = rows[0]
    of_job = services().database, row.id, row.instance
    with services().database.read() as session:
        may_ask = row.instance in registry.with_vendor_secrets(session)
    entries = [
        (entry, [FACTS.get(name, name) for name in entry.changed]) for entry in timeline(*of_job)
    ]
    return page(
        "job.html",
        view=job_view(row),
        entries=entries[-MOST_SHOWN_ENTRIES:],
        left_out=max(0, len(entries) - MOST_SHOWN_ENTRIES),
        may_ask=may_operate() and may_ask,
        groups=group_failed_records(*of_job),
    )


@blueprint.get("/jobs/<string:id>/errors")
def job_errors(id: str) -> Response:  # noqa: A002
    """List the failed records of a job, as the vendor gave them."""
    rows = called(id)
    if len(rows) != 1:
        raise NotFound(f"No job {id} is known there.")
    text = request.args.get("from", "0")
    start = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0  # noqa: PLR2004
    of_job = services().database, rows[0].id, rows[0].instance
    found = list_failed_records(*of_job, ERRORS_A_PAGE + 1, start)
    return page(
        "job_errors.html",
        view=job_view(rows[0]),
        errors=[(error.position, error.message, record(error.entry)) for error in found][
            :ERRORS_A_PAGE
        ],
        following=found[ERRORS_A_PAGE].position if len(found) > ERRORS_A_PAGE else None,
        start=start,
    )


@blueprint.get("/events/<string:id>")
def event(id: str) -> Response:  # noqa: A002
    """Show a verified callback and its body."""
    row, body = _event(id)
    return page("event.html", event=row, body=None if body is None else readable(body))


@blueprint.get("/events/<string:id>/body")
def event_body(id: str) -> Response:  # noqa: A002
    """Give the exact bytes of a callback, as a file and never as a page."""
    row, body = _event(id)
    if body is None:
        raise BodyGone(f"The body of {row.id} was deleted when its time was over.")
    return download(body, row.id)


def download(body: bytes, name: str) -> Response:
    """Give bytes as a file."""
    response = Response(body, mimetype="application/octet-stream")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.bin"'
    return response


def readable(body: bytes) -> tuple[str, str | None, bool]:
    """Give the text of bytes, the same as indented JSON if it is any, and whether it was cut."""
    cut = len(body) > LONGEST_SHOWN_BODY
    text = body[:LONGEST_SHOWN_BODY].decode("utf-8", "backslashreplace")
    indented = None if cut else pretty(text)
    return text, None if indented == text else indented, cut


def called(id_: str) -> Sequence[JobRecord]:
    """Give the jobs of that id that the token reaches, in the instance of this request, if any."""
    instance = request.args.get("instance") or None
    if instance is not None:
        require_instance(current_bearer(), [instance])
    return find_jobs(services().database, id_, instance, current_bearer().instances)


def _event(event_id: str) -> tuple[EventRecord, bytes | None]:
    database = services().database
    found = get_event(database, event_id, current_bearer().instances)
    if found is None:
        raise NotFound(f"No event {event_id} is known.")
    return found, get_body(database, found.id)
