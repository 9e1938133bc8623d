"""The vendor's bulk API as a Flask application."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from uuid import uuid4

import msgspec
from flask import Blueprint, Flask, Response, g, request
from msgspec import Raw
from werkzeug.exceptions import BadRequest, Conflict, HTTPException, NotFound
from werkzeug.routing import BaseConverter

from receiver.openconnectors import shapes
from receiver.openconnectors.sandbox import parameters, service
from receiver.openconnectors.sandbox.faults import Answer, Options, Redirect
from receiver.openconnectors.sandbox.jobs import WHERE, Job, Order
from receiver.openconnectors.sandbox.service import OBJECTS
from receiver.openconnectors.sandbox.stage import Stage, controls, current_stage, json_response
from receiver.openconnectors.shapes import BASE, DELIVERIES, MEDIA_TYPES

_FIRST_PART = 64 << 10  # bytes of an upload that are read before it is cut off
_MAX_JSON = 1 << 20  # bytes
_HUB = re.compile(r"/elements/api-v2(/hubs/[^/]+)?")
_QUEUE_FIELDS = ("channel", "status")
_PAGE_OF_HTML = "<!doctype html><title>Sign in</title><h1>Sign in</h1>"

api = Blueprint("vendor", __name__)


class _ObjectName(BaseConverter):
    """Any name but those that mean something else in the same place, whatever the method."""

    regex = r"(?!(?:jobs|query|download|workflows|status|errors|cancel)\Z)[^/]+"


class _Number(BaseConverter):
    regex = "[0-9]+"


def create_sandbox(options: Options) -> Flask:
    """Return the sandbox as a WSGI application.

    Its Stage is `app.extensions["sandbox"]`; whoever creates the application closes that.
    """
    app = Flask(__name__, static_folder=None)
    app.request_class = parameters.UploadRequest
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.url_map.converters |= {"object": _ObjectName, "number": _Number}
    app.url_map.merge_slashes = False
    app.extensions["sandbox"] = Stage(options)
    app.register_error_handler(HTTPException, _refusal)
    app.register_error_handler(OSError, _breakage)
    app.register_blueprint(api, url_prefix=BASE)
    app.register_blueprint(api, url_prefix=f"{BASE}/hubs/<hub>", name="hub")
    app.register_blueprint(controls, url_prefix="/sandbox")
    return app


# --- answers


def _page(entries: Sequence[object], following: int | None) -> Response:
    response = json_response(entries)
    response.headers[shapes.COUNT_HEADER] = str(len(entries))
    if following is not None:
        response.headers[shapes.NEXT_PAGE_HEADER] = str(following)
    return response


def _failure(status: int, message: str | None) -> Response:
    return json_response(shapes.write_error(uuid4().hex, message), status)


def _refusal(error: HTTPException) -> Response:
    response = _failure(error.code or HTTPStatus.INTERNAL_SERVER_ERROR, error.description)
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


def _breakage(error: OSError) -> Response:
    """Answer where chunks are broken, which Werkzeug complains of without an error number."""
    if isinstance(error, ConnectionError) or error.errno is not None:
        raise error  # and the server drops the connection, as some faults want it
    return _failure(HTTPStatus.BAD_REQUEST, str(error))


def _fault(stage: Stage) -> Response | None:
    faults = stage.options.faults
    answer = faults.use("answer")
    if isinstance(answer, Answer):
        response = _failure(
            answer.status, "The sandbox answers so because of a fault that was set."
        )
        if answer.retry_after or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            response.headers["Retry-After"] = answer.retry_after or "1"
        return response
    if faults.use("html"):
        return Response(_PAGE_OF_HTML, content_type="text/html; charset=utf-8")
    redirect = faults.use("redirect")
    if isinstance(redirect, Redirect):
        response = _failure(HTTPStatus.FOUND, "Found")
        response.headers["Location"] = redirect.to
        return response
    return None


@api.url_value_preprocessor
def _drop_hub(_endpoint: str | None, values: dict[str, str] | None) -> None:
    if values:
        values.pop("hub", None)


@api.before_request
def _arrive() -> Response | None:
    stage = current_stage()
    stage.requests[f"{request.method} {_HUB.sub('', request.path)}"] += 1
    stage.closing.wait(stage.options.faults.slow)
    if fault := _fault(stage):
        return fault
    g.token = parameters.owner(
        request.headers.get("Authorization", ""), any_user=request.path.endswith(DELIVERIES)
    )
    return None


def _job(job_id: str) -> Job:
    job = current_stage().jobs.find(job_id, g.token)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


# --- the vendor's paths


@api.get("/objects")
def objects() -> Response:
    """The objects of the service."""
    return json_response(OBJECTS)


@api.get("/objects/<object_name>/metadata")
def metadata(object_name: str) -> Response:
    """The fields of an object."""
    parameters.known_object(object_name)
    field = {"vendorPath": "email", "type": "string", "vendorRequired": True}
    return json_response({"name": object_name, "fields": [field]})


@api.post("/bulk/<object:object_name>")
def upload(object_name: str) -> Response:
    """Take a file and create the job that loads it."""
    stage = current_stage()
    if stage.options.faults.use("die_in_upload"):
        request.stream.read(_FIRST_PART)
        raise ConnectionAbortedError
    order = Order(
        token=g.token,
        object_name=parameters.known_object(object_name),
        direction="UPLOAD",
        callback_url=parameters.header_url(),
        payload=parameters.payload(parameters.meta_data()),
    )
    job = stage.jobs.create(order, parameters.save_upload(stage.folder))
    if stage.options.faults.use("die_after_upload"):
        raise ConnectionAbortedError
    return json_response(stage.jobs.write_created(job, "instanceId"))


@api.post("/bulk/query")
def query() -> Response:
    """Create a job whose result is all that was loaded into the object that `q` names."""
    text = request.args.get("q") or request.form.get("q") or ""
    if not text.lower().lstrip().startswith("select"):
        raise BadRequest("q must be: select ... from <object>")
    return _fetch(
        Order(
            token=g.token,
            object_name=parameters.known_object(shapes.queried_object(text)),
            direction="DOWNLOAD",
            callback_url=parameters.header_url(),
            payload=parameters.payload(parameters.meta_data()),
            file_format=parameters.format_named(request.args.get("fileFormat")),
        )
    )


@api.post("/bulk/download")
@api.post("/bulk/workflows")
def download() -> Response:
    """Create a job whose result is all that was loaded into an object."""
    request.max_content_length = _MAX_JSON
    try:
        wanted = msgspec.json.decode(request.get_data(), type=parameters.Download)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body cannot be read: {error}") from error
    return _fetch(
        Order(
            token=g.token,
            object_name=parameters.known_object(wanted.object_name),
            direction="DOWNLOAD",
            callback_url=parameters.callback_url(wanted.notification_url),
            file_format=parameters.format_named(wanted.format or None),
        )
    )


def _fetch(order: Order) -> Response:
    jobs = current_stage().jobs
    return json_response(jobs.write_created(jobs.create(order), "instance_id"))


@api.get("/bulk/<number:job_id>")
@api.get("/bulk/<job_id>/status")
def status(job_id: str) -> Response:
    """Where a job stands."""
    return json_response(current_stage().jobs.write(_job(job_id)))


@api.get("/bulk/<job_id>/errors")
def errors(job_id: str) -> Response:
    """The records of a job that were refused, a page at a time."""
    size, token = parameters.page_size(), parameters.page_start()
    start = token or size * parameters.read(shapes.read_page, request.args.get("page", "1"))
    job = _job(job_id)
    refused = job.loads[0].refused if job.source and job.loads else None
    lines, following = service.refused_page(refused, start, size) if refused else ([], None)
    if token and not lines:
        raise BadRequest("nextPage is no token of this list")
    entries = [msgspec.json.decode(line, type=dict[str, Raw]) for line in lines]
    if names := request.args.get("fields"):
        wanted = names.split(",")
        entries = [{name: entry[name] for name in wanted if name in entry} for entry in entries]
    return _page(entries, following)


@api.get("/bulk/<job_id>/<object:object_name>")
def file(job_id: str, object_name: str) -> Response:
    """The records that a job loaded, or that it was to fetch."""
    job = _job(job_id)
    wanted = parameters.format_wanted(job.order)
    if object_name != job.order.object_name:
        raise NotFound(f"job {job_id} has no file of {object_name}")
    if not job.has_ended:
        raise Conflict(f"job {job_id} has not ended")
    return Response(service.render(job.loads, wanted), content_type=MEDIA_TYPES[wanted])


@api.get("/bulk/jobs")
def jobs() -> Response:
    """The jobs of the element token, newest first, a page at a time."""
    where, size = parameters.conditions(WHERE), parameters.page_size()
    start, all_jobs = parameters.page_start(), current_stage().jobs
    matching = [
        job
        for job in all_jobs.of(g.token)
        if (start is None or int(job.id) < start) and job.matches(where)
    ]
    entries = [all_jobs.write(job, "list") for job in matching[:size]]
    return _page(entries, int(matching[size - 1].id) if len(matching) > size else None)


@api.put("/bulk/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """End a job that is in progress."""
    cancelled = current_stage().jobs.cancel(_job(job_id))
    if cancelled is None:
        raise Conflict(f"job {job_id} has ended")
    return json_response(current_stage().jobs.write(cancelled))


@api.get(DELIVERIES)
def deliveries() -> Response:
    """The callbacks that match `where`."""
    return json_response(current_stage().deliveries.listing(parameters.conditions(_QUEUE_FIELDS)))


@api.put(DELIVERIES)
def resend() -> Response:
    """Send what is queued."""
    if parameters.conditions(_QUEUE_FIELDS) != {"channel": "webhook", "status": "queued"}:
        raise BadRequest(f"where must be {shapes.QUEUED}")
    return json_response(current_stage().deliveries.resend())
