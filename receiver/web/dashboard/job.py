"""/jobs/{id}: all that is known of a job, and the bodies that told it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flask import Response, request

from receiver.database.models import TimelineEntry
from receiver.errors import BodyGone, NotFound
from receiver.instances import registry
from receiver.jobs import failed_records as failures
from receiver.jobs import queries, watching
from receiver.web import services
from receiver.web.auth import current_bearer, require_instance
from receiver.web.dashboard import asking
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


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a timeline, and the event it tells of."""

    row: TimelineEntry
    event: Any  # its row, or None

    @property
    def changed(self) -> list[str]:
        """The names of what it changed."""
        return [FACTS.get(name, name) for name in json.loads(self.row.changed)]


@blueprint.get("/jobs/<string:id>")
def job(id: str) -> Response:  # noqa: A002 - as in the API
    """Show a job, or which instances have one of that id."""
    rows = called(id)
    if not rows:
        raise NotFound(f"No job {id} is known, or the token does not reach its instance.")
    if len(rows) > 1:
        return page("choose.html", 409, id=id, views=[job_view(row) for row in rows])
    with services().database.read() as session:
        row = watching.job_row(session, id, rows[0].instance)
        if row is None:
            raise NotFound(f"Job {id} is gone.")
        timeline = queries.timeline(session, row.id, row.instance)
        groups = failures.error_groups(session, row.id, row.instance)
        may_ask = row.instance in registry.with_vendor_secrets(session)
    mine = queries.EventFilter(jobs=[row.id], instances=[row.instance])
    events = asking.events(mine, MOST_SHOWN_ENTRIES, None)
    named = {event.id: event for event in events}
    entries = [Entry(entry, named.get(entry.event or "")) for entry in timeline]
    return page(
        "job.html",
        view=job_view(row),
        entries=entries[-MOST_SHOWN_ENTRIES:],
        left_out=max(0, len(entries) - MOST_SHOWN_ENTRIES),
        may_ask=may_operate() and may_ask,
        groups=[{**group, "examples": list(map(record, group["examples"]))} for group in groups],
    )


@blueprint.get("/jobs/<string:id>/errors")
def job_errors(id: str) -> Response:  # noqa: A002
    """List the failed records of a job, as the vendor gave them."""
    rows = called(id)
    if len(rows) != 1:
        raise NotFound(f"No job {id} is known there.")
    text = request.args.get("from", "0")
    start = int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0  # noqa: PLR2004
    with services().database.read() as session:
        found = failures.errors(session, rows[0].id, rows[0].instance, ERRORS_A_PAGE + 1, start)
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


def called(id_: str) -> Sequence[Any]:
    """Give the jobs of that id that the token reaches, in the instance of this request, if any."""
    instance = request.args.get("instance") or None
    if instance is not None:
        require_instance(current_bearer(), [instance])
    return asking.called(id_, instance)


def _event(event_id: str) -> tuple[Any, bytes | None]:
    row, body = asking.event(event_id)
    if row is None:
        raise NotFound(f"No event {event_id} is known.")
    return row, body
