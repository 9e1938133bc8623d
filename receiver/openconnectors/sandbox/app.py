"""The vendor's bulk API as a Flask application. What cannot be read is a ValueError, and a 400."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import IO
from uuid import uuid4

import msgspec
from flask import Blueprint, Flask, Request, Response, g, request
from msgspec import Raw
from werkzeug.exceptions import Conflict, HTTPException, NotAcceptable, NotFound, Unauthorized
from werkzeug.routing import BaseConverter

from receiver.errors import CredentialError
from receiver.openconnectors import shapes
from receiver.openconnectors.sandbox import service
from receiver.openconnectors.sandbox.deliveries import read_callback_url
from receiver.openconnectors.sandbox.faults import Answer, Options, Redirect
from receiver.openconnectors.sandbox.jobs import WHERE, Job
from receiver.openconnectors.sandbox.service import OBJECTS
from receiver.openconnectors.sandbox.stage import (
    Stage,
    controls,
    current_stage,
    json_response,
    short_body,
)
from receiver.openconnectors.shapes import BASE, DELIVERIES, FORMATS, MEDIA_TYPES, Format

_PIECE = 64 << 10  # bytes
_HUB = re.compile(r"/elements/api-v2(/hubs/[^/]+)?")
_QUEUE_FIELDS = ("channel", "status")
_PAGE_OF_HTML = "<!doctype html><title>Sign in</title><h1>Sign in</h1>"

api = Blueprint("vendor", __name__)


class _ObjectName(BaseConverter):
    """Any name but those that mean something else in the same place, whatever the method."""

    regex = r"(?!(?:jobs|query|download|workflows|status|errors|cancel)\Z)[^/]+"


class _UploadRequest(Request):
    """A request that closes its files even if it breaks off before they are complete."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        about = (total_content_length, content_type, filename, content_length)
        stream = super()._get_file_stream(*about)
        self.__dict__.setdefault("streams", []).append(stream)
        return stream

    def close(self) -> None:
        """Close all files, complete or not."""
        super().close()
        for stream in self.__dict__.get("streams", ()):
            stream.close()


class _Download(msgspec.Struct, rename="camel"):
    """The body of `POST /bulk/download`. What narrows a download is checked, but not heeded."""

    object_name: str
    format: str = ""
    file_format: str = ""
    notification_url: str | None = None
    where: str = ""
    select_fields: str = ""
    since: str = msgspec.field(name="from", default="")
    until: str = msgspec.field(name="to", default="")


def create_sandbox(options: Options) -> Flask:
    """Return the sandbox as a WSGI application.

    Its Stage is `app.extensions["sandbox"]`; whoever creates the application closes that.
    """
    app = Flask(__name__, static_folder=None)
    app.request_class = _UploadRequest
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.url_map.converters["object"] = _ObjectName
    app.url_map.merge_slashes = False
    app.extensions["sandbox"] = Stage(options)
    app.register_error_handler(HTTPException, _refuse)
    for error in (ValueError, RecursionError, CredentialError):
        app.register_error_handler(error, lambda error: _failure(400, str(error)))
    app.register_error_handler(OSError, _break_off)
    app.register_blueprint(api, url_prefix=BASE)
    app.register_blueprint(api, url_prefix=f"{BASE}/hubs/<hub>", name="hub")
    app.register_blueprint(controls, url_prefix="/sandbox")
    return app


# --- answers


def _page(entries: Sequence[object], following: int | None) -> Response:
    response = json_response(entries)
    token = None if following is None else str(following)
    response.headers.update(shapes.page_headers(len(entries), token))
    return response


def _failure(status: int, message: str | None) -> Response:
    return json_response(shapes.write_error(uuid4().hex, message), status)


def _refuse(error: HTTPException) -> Response:
    response = _failure(error.code or HTTPStatus.INTERNAL_SERVER_ERROR, error.description)
    own = [pair for pair in error.get_headers() if pair[0].lower() != "content-type"]
    response.headers.update(own)
    return response


def _break_off(error: OSError) -> Response:
    """Answer where chunks are broken, which Werkzeug complains of without an error number."""
    if isinstance(error, ConnectionError) or error.errno is not None:
        raise error  # and the server drops the connection, as some faults want it
    return _failure(HTTPStatus.BAD_REQUEST, str(error))


def _fault(stage: Stage) -> Response | None:
    faults = stage.options.faults
    if isinstance(answer := faults.use("answer"), Answer):
        message = "The sandbox answers so because of a fault that was set."
        response = _failure(answer.status, message)
        if answer.retry_after or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            response.headers["Retry-After"] = str(answer.retry_after or 1)
        return response
    if faults.use("html"):
        return Response(_PAGE_OF_HTML, content_type="text/html; charset=utf-8")
    if isinstance(redirect := faults.use("redirect"), Redirect):
        response = _failure(HTTPStatus.FOUND, "Found")
        response.headers["Location"] = redirect.to
        return response
    return None


# --- requests


@api.url_value_preprocessor
def _drop_hub(_endpoint: str | None, values: dict[str, str] | None) -> None:
    if values:
        values.pop("hub", None)


@api.before_request
def _receive() -> Response | None:
    stage = current_stage()
    stage.requests[f"{request.method} {_HUB.sub('', request.path)}"] += 1
    stage.closing.wait(stage.options.faults.slow)
    if fault := _fault(stage):
        return fault
    g.token = owner(
        request.headers.get("Authorization", ""), any_user=request.path.endswith(DELIVERIES)
    )
    return None


def owner(authorization: str, *, any_user: bool = False) -> str:
    """Return the element token; any_user -- or "", where an organization's secret came instead."""
    named = shapes.read_authorization(authorization)
    if {"user", "element"} <= named.keys():
        return named["element"]
    if any_user and "organization" in named:
        return ""
    raise Unauthorized("Authorization must be: Element <token>, User <secret>")


def _job(job_id: str) -> Job:
    return current_stage().jobs.find(job_id, g.token)


def _create(
    object_name: str | None,
    callback_url: str | None,
    format_name: str | None = None,
    *,
    upload: bool = False,
) -> Response:
    """Create a job; upload -- with the file of this request."""
    stage = current_stage()
    ordered = _format(format_name)
    job = Job(
        token=g.token,
        object=_require_object(object_name),
        direction="UPLOAD" if upload else "DOWNLOAD",
        callback_url=read_callback_url(callback_url),
        payload=_payload(),
        ordered=ordered,
        file_format=ordered or "csv",
        source=_save_upload(stage.folder) if upload else None,
    )
    return json_response(stage.jobs.write_created(stage.jobs.create(job)))


def _require_object(name: str | None) -> str:
    if name not in OBJECTS:
        raise ValueError(f"the object must be one of {', '.join(OBJECTS)}")
    return name


def _callback_url() -> str | None:
    return request.headers.get(shapes.CALLBACK_URL_HEADER)


def _payload() -> Raw:
    """Return the callback payload in the form's `metaData`, a field or a file; empty: none."""
    file = request.files.get("metaData")
    text = file.read() if file else request.form.get("metaData")
    members = msgspec.json.decode(text or "{}", type=dict[str, Raw])
    named = (members[name] for name in shapes.CALLBACK_PAYLOAD if name in members)
    return next(named, Raw()).copy()


def _save_upload(folder: Path) -> Path:
    """Copy the form's file, or a body that is the file itself, into a folder."""
    path = folder / uuid4().hex
    file = request.files.get("file")
    if file is not None:
        file.save(path)
    elif request.mimetype in (*MEDIA_TYPES.values(), "application/octet-stream", "text/plain"):
        with path.open("wb") as copy:
            while piece := request.stream.read(_PIECE):
                copy.write(piece)
    else:
        raise ValueError("the multipart field file is missing")
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    return path


def _format(name: str | None) -> Format | None:
    """Return the format that has this name, or is of this media type; None: none was named."""
    if name and name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}")
    return FORMATS[name] if name else None


def _format_wanted(job: Job) -> Format:
    """Return the format that was asked for by name, else the one that `Accept` likes best."""
    accept, own = request.accept_mimetypes, job.ordered or "csv"
    wanted = _format(request.args.get("format"))
    if wanted is None and accept:
        best = accept.best_match([MEDIA_TYPES[own], *MEDIA_TYPES.values()])
        if best is None:
            raise NotAcceptable(f"the file can be had as {', '.join(MEDIA_TYPES.values())}")
        wanted = FORMATS[best]
    if job.ordered is not None and wanted not in (None, own):
        raise ValueError(f"the file was ordered as {MEDIA_TYPES[own]}")
    return wanted or own


# --- the vendor's paths


@api.get("/objects")
def objects() -> Response:
    """The objects of the service."""
    return json_response(OBJECTS)


@api.get("/objects/<object_name>/metadata")
def metadata(object_name: str) -> Response:
    """The fields of an object."""
    _require_object(object_name)
    field = {"vendorPath": "email", "type": "string", "vendorRequired": True}
    return json_response({"name": object_name, "fields": [field]})


@api.post("/bulk/<object:object_name>")
def upload(object_name: str) -> Response:
    """Take a file and create the job that loads it."""
    faults = current_stage().options.faults
    if faults.use("die_in_upload"):
        request.stream.read(_PIECE)
        raise ConnectionAbortedError
    response = _create(object_name, _callback_url(), upload=True)
    if faults.use("die_after_upload"):
        raise ConnectionAbortedError
    return response


@api.post("/bulk/query")
def query() -> Response:
    """Create a job whose result is all that was loaded into the object that `q` names."""
    text = request.args.get("q") or request.form.get("q") or ""
    if not text.lower().lstrip().startswith("select"):
        raise ValueError("q must be: select ... from <object>")
    object_name = shapes.queried_object(text)
    return _create(object_name, _callback_url(), request.values.get("fileFormat"))


@api.post("/bulk/download")
@api.post("/bulk/workflows")
def download() -> Response:
    """Create a job whose result is all that was loaded into an object."""
    wanted = msgspec.json.decode(short_body(), type=_Download)
    return _create(wanted.object_name, wanted.notification_url, wanted.format or wanted.file_format)


@api.get("/bulk/<int:job_id>")
@api.get("/bulk/<job_id>/status")
def status(job_id: str | int) -> Response:
    """Where a job stands."""
    return json_response(current_stage().jobs.write(_job(str(job_id))))


@api.get("/bulk/<job_id>/errors")
def errors(job_id: str) -> Response:
    """The records of a job that were refused, a page at a time."""
    start, size = shapes.read_page(request.args)
    job = _job(job_id)
    own = job.source if job.source in job.loads else None
    found = service.refused(own, start, size + 1) if own else []
    if start and not found and "nextPage" in request.args:
        raise ValueError("nextPage is no token of this list")
    entries = found[:size]
    if names := request.args.get("fields"):
        wanted = names.split(",")
        entries = [{name: entry[name] for name in wanted if name in entry} for entry in entries]
    return _page(entries, start + size if found[size:] else None)


@api.get("/bulk/<job_id>/<object:object_name>")
def file(job_id: str, object_name: str) -> Response:
    """The records that a job loaded, or that it was to fetch."""
    job = _job(job_id)
    wanted = _format_wanted(job)
    if object_name != job.object:
        raise NotFound(f"job {job_id} has no file of {object_name}")
    if not job.has_ended:
        raise Conflict(f"job {job_id} has not ended")
    return Response(service.render(job.loads, wanted), content_type=MEDIA_TYPES[wanted])


@api.get("/bulk/jobs")
def jobs() -> Response:
    """The jobs of the element token, newest first, a page at a time."""
    where = shapes.read_where(request.args.get("where"), WHERE)
    start, size = shapes.read_page(request.args)
    before = "nextPage" in request.args and start  # an id: others are created meanwhile
    all_jobs = current_stage().jobs
    matching = [
        job
        for job in all_jobs.of(g.token)
        if (not before or int(job.id) < before) and job.matches(where)
    ]
    entries = [all_jobs.write(job, "list") for job in matching[:size]]
    return _page(entries, int(matching[size - 1].id) if matching[size:] else None)


@api.put("/bulk/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """End a job that is in progress."""
    jobs = current_stage().jobs
    return json_response(jobs.write(jobs.cancel(_job(job_id))))


@api.get(DELIVERIES)
def deliveries() -> Response:
    """The callbacks that match `where`."""
    where = shapes.read_where(request.args.get("where"), _QUEUE_FIELDS)
    return json_response(current_stage().deliveries.listing(where))


@api.put(DELIVERIES)
def resend() -> Response:
    """Send what is queued."""
    where = shapes.read_where(request.args.get("where"), _QUEUE_FIELDS)
    if where != {"channel": "webhook", "status": "queued"}:
        raise ValueError(f"where must be {shapes.QUEUED}")
    return json_response(current_stage().deliveries.resend())
