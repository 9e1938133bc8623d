"""The vendor's own paths, answered by us: a client of the vendor's bulk API need only change hosts.

Uploads pass through with our callback URL added, statuses come from the store, and what the store
does not know the vendor is asked.
"""

import json
import re
from dataclasses import replace
from typing import Any

import msgspec
import structlog
from flask import Blueprint, Response, g, request, stream_with_context
from flask.blueprints import BlueprintSetupState
from werkzeug.datastructures import FileStorage
from werkzeug.routing import BaseConverter

from receiver.errors import (
    BadParameter,
    CredentialError,
    Forbidden,
    NotFound,
    Unauthenticated,
    UpstreamNonsense,
)
from receiver.instances import audit, registry
from receiver.jobs.failed_records import list_failed_records
from receiver.jobs.projection import NewObservation
from receiver.jobs.queries import JobRecord, find_jobs, list_jobs, place_of
from receiver.openconnectors import client as upstream
from receiver.openconnectors.client import CALLBACK_URL_HEADER, Answer, Call
from receiver.openconnectors.notifications import UNSTORABLE, Notification
from receiver.web import services
from receiver.web.auth import authenticate
from receiver.web.http import write_cursor
from receiver.web.results import passed_through
from receiver.web.submitting import observe, send, submit
from receiver.web.uploads import count_records
from receiver.web.vendor_shapes import (
    as_listed,
    as_vendor,
    conditions,
    page_place,
    page_size,
    page_start,
    passed_on,
    vendors_json,
    vendors_page,
)

log = structlog.get_logger()

BASE = "/elements/api-v2"
LARGEST_JSON = 2**20

blueprint = Blueprint("relay", __name__)


class _ResultName(BaseConverter):
    """An object's name where other words mean something else, whatever the method."""

    regex = r"(?!(?:status|errors|cancel)\Z)[^/]+"


@blueprint.record_once
def _know_names(state: BlueprintSetupState) -> None:
    state.app.url_map.converters["result"] = _ResultName


_PART = re.compile(r"\s*(Element|User)\s+([!-+\--~]+)\s*", re.IGNORECASE)


@blueprint.url_value_preprocessor
def _take_hub(_endpoint: str | None, values: dict[str, str] | None) -> None:
    g.hub = values.pop("hub", None) if values else None


@blueprint.before_request
def _authenticate() -> None:
    parts = [_PART.fullmatch(part) for part in request.headers.get("Authorization", "").split(",")]
    given = {part[1].lower(): part[2] for part in parts if part}
    if None in parts or set(given) != {"element", "user"}:
        raise Unauthenticated("Authorization must be: Element <instance>, User <token>")
    found = authenticate(services(), request.remote_addr or "", given["user"])
    secrets_ = None
    if found and found.may_see(given["element"]):
        with services().database.read() as session:
            secrets_ = registry.vendor_secrets(session, services().vault, given["element"])
    if found is None or secrets_ is None:
        raise Unauthenticated("no such instance with vendor secrets, or no such token")
    if request.method not in ("GET", "HEAD") and found.scope != "operate":
        raise Forbidden("this needs a token of the scope operate")
    g.bearer, g.instance, g.vendor = found, given["element"], secrets_


@blueprint.get("/objects")
def objects() -> Response:
    """Ask the vendor which objects there are."""
    return passed_on(send(upstream.objects(_hub())))


@blueprint.post("/bulk/<string:object_name>")
def upload(object_name: str) -> Response:
    """Pass a file on to the vendor, with our callback URL, and record the job."""
    file = request.files.get("file")
    if file is None:
        raise BadParameter("the form field `file` is missing, or the upload did not arrive whole")
    submitted = count_records(file.stream, file.filename or "")
    call = Call(
        method="POST",
        path=f"{_prefix()}/bulk/{upstream.segment(object_name)}",
        name="upload",
        params=request.args.to_dict(),
        headers={CALLBACK_URL_HEADER: _our_url()},
        form=request.form.to_dict(),
        file=_part(file),
    )
    facts = Notification(
        "bulk_job",
        object=_storable(object_name),
        direction="UPLOAD",
        file=_storable(request.args.get("path")),
        submitted=submitted,
    )
    return submit(call, facts, _client_url(request.headers.get(CALLBACK_URL_HEADER)))


@blueprint.post("/bulk/query")
def query() -> Response:
    """Pass a query on to the vendor, with our callback URL, and record the job."""
    call = Call(
        method="POST",
        path=f"{_prefix()}/bulk/query",
        name="query",
        params=request.args.to_dict(),
        headers={CALLBACK_URL_HEADER: _our_url()},
        form=request.form.to_dict(),
    )
    facts = Notification("bulk_job", direction="DOWNLOAD")
    return submit(call, facts, _client_url(request.headers.get(CALLBACK_URL_HEADER)))


@blueprint.post("/bulk/download")
def download() -> Response:
    """Pass a download on to the vendor, with our callback URL, and record the job."""
    request.max_content_length = LARGEST_JSON
    try:
        wanted = json.loads(request.get_data())
    except (ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, dict):
        raise BadParameter("the body must be a JSON object")
    client_url = wanted.get("notificationUrl")
    if client_url is not None and not isinstance(client_url, str):
        raise BadParameter("notificationUrl must be a URL")
    object_name = wanted.get("objectName")
    call = Call(
        method="POST",
        path=f"{_prefix()}/bulk/download",
        name="download",
        params=request.args.to_dict(),
        headers={"Content-Type": "application/json"},
        content=json.dumps({**wanted, "notificationUrl": _our_url()}).encode(),
    )
    facts = Notification(
        "bulk_job",
        direction="DOWNLOAD",
        object=_storable(object_name) if isinstance(object_name, str) else None,
    )
    return submit(call, facts, _client_url(client_url))


@blueprint.get("/bulk/<string:job_id>/status")
def status(job_id: str) -> Response:
    """Tell where a job stands; the vendor is asked only for a job that the store does not know."""
    row = _stored(job_id)
    if row is None:
        now = services().clock()
        answer = send(upstream.status(job_id, _hub()))
        observe(NewObservation(g.instance, _polled(answer, job_id, now)))
        return passed_on(answer)
    return vendors_json(as_vendor(row))


@blueprint.get("/bulk/<string:job_id>/errors")
def errors(job_id: str) -> Response:
    """Give a page of a job's failed records, from the store where it has them."""
    size, start = page_size(), page_start()
    of_job = services().database, job_id, g.instance
    kept = list_failed_records(*of_job, size + 1, start or 0)
    known = bool(kept) or bool(list_failed_records(*of_job, 1))
    if not known or (start is None and "nextPage" in request.args):
        return passed_on(send(_asked_again(upstream.errors(job_id, None, _hub()))))
    page = kept[:size]
    entries = [msgspec.Raw(row.entry.encode()) for row in page]
    following = page[-1].position + 1 if len(kept) > size else None
    return vendors_page(entries, following)


@blueprint.get("/bulk/jobs")
def jobs() -> Response:
    """Give a page of the job list, from the store where it has any of those asked for."""
    wanted = conditions(request.args.get("where"), g.instance)
    size, place = page_size(), page_place()
    if wanted is None or (place is None and "nextPage" in request.args):
        return passed_on(send(_asked_again(upstream.jobs(None, None, _hub()))))
    rows = list_jobs(services().database, wanted, size + 1, place)
    if not rows:
        return passed_on(send(_asked_again(upstream.jobs(None, None, _hub()))))
    following = write_cursor(place_of(rows[size - 1])) if len(rows) > size else None
    return vendors_page([as_listed(row) for row in rows[:size]], following)


@blueprint.put("/bulk/<string:job_id>/cancel")
def cancel(job_id: str) -> Response:
    """Ask the vendor to end a job."""
    place, now = f"{g.instance}/{job_id}", services().clock()
    with services().database.write() as session:
        audit.note(session, at=now, actor=g.bearer.name, action="cancel", subject=place)
    answer = send(upstream.cancel(job_id, _hub()))
    try:
        observe(NewObservation(g.instance, _polled(answer, job_id, now), "answer to a cancel"))
    except UpstreamNonsense:
        log.info("the answer to a cancel tells no status", instance=g.instance, job=job_id)
    return passed_on(answer)


@blueprint.get("/bulk/<string:job_id>/<result:object_name>")
def result(job_id: str, object_name: str) -> Response:
    """Pass a job's file on from the vendor, of any length."""
    accept = request.headers.get("Accept", "*/*")
    if not accept.isascii():
        raise BadParameter("Accept holds characters that no header can carry")
    call = replace(
        upstream.result(job_id, object_name, accept, _hub()), params=request.args.to_dict()
    )
    content_type, pieces = passed_through(call, job_id)
    body: Any = stream_with_context(pieces)
    headers = {"X-Content-Type-Options": "nosniff"}
    return Response(body, headers=headers, content_type=content_type)


def _polled(answer: Answer, job_id: str, asked_at: int) -> Notification:
    told = upstream.read_status(answer, job_id)
    return told.replace(source="poll", asked_at=asked_at)


def _asked_again(call: Call) -> Call:
    return replace(call, params=request.args.to_dict())


def _part(file: FileStorage) -> tuple[str, Any, str]:
    return file.filename or "upload.csv", file.stream, file.mimetype or "text/csv"


def _storable(text: str | None) -> str | None:
    if text is not None and UNSTORABLE.search(text):
        raise BadParameter("a name holds characters that no file or object has")
    return text


def _our_url() -> str:
    base = services().settings.public_url
    if base is None:
        raise CredentialError("RECEIVER_PUBLIC_URL is not set, so the vendor could not call back")
    return f"{base}/callbacks/{g.instance}"


def _client_url(url: str | None) -> str | None:
    if url is None or url == _our_url():
        return None
    services().forwarder.check(url)
    return url


def _hub() -> str | None:
    hub: str | None = g.hub or g.vendor.hub
    return hub


def _prefix() -> str:
    hub = _hub()
    return f"/hubs/{upstream.segment(hub)}" if hub else ""


def _stored(job_id: str) -> JobRecord | None:
    if "\0" in job_id:
        raise NotFound("there is no such job")
    rows = find_jobs(services().database, job_id, g.instance)
    return rows[0] if rows else None
