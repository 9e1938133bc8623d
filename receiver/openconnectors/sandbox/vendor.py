"""The vendor's bulk API as a Flask application."""

import msgspec
from flask import Blueprint, Flask, Response, current_app, g, request
from werkzeug.exceptions import BadRequest, Conflict, HTTPException, NotFound
from werkzeug.routing import BaseConverter

from receiver.openconnectors.sandbox import answers, questions, service, uploads
from receiver.openconnectors.sandbox.controls import controls
from receiver.openconnectors.sandbox.jobs import Job, Order
from receiver.openconnectors.sandbox.lifecycle import Lifecycle
from receiver.openconnectors.sandbox.options import Options
from receiver.openconnectors.sandbox.stage import Stage

BASE = "/elements/api-v2"

_FIRST_PART = 64 << 10  # bytes of an upload that are read before it is cut off
_JOB_FIELDS = ("job_status", "object_name", "job_direction", "record_count")
_LARGEST_JSON = 1 << 20
_DELIVERIES = "/notifications/subscriptions/deliveries"

api = Blueprint("vendor", __name__)


class _ObjectName(BaseConverter):
    """Any name but those that mean something else in the same place, whatever the method."""

    regex = r"(?!(?:jobs|query|download|status|errors|cancel)\Z)[^/]+"


def create_vendor(options: Options) -> Flask:
    """The sandbox as a WSGI application.

    Its Stage is `app.extensions["sandbox"]`; whoever creates the application closes that.
    """
    app = Flask(__name__, static_folder=None)
    app.request_class = uploads.UploadRequest
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["PROPAGATE_EXCEPTIONS"] = True  # the server drops the connection on ConnectionError
    app.url_map.converters["object"] = _ObjectName
    app.url_map.merge_slashes = False
    app.extensions["sandbox"] = Stage(options)
    app.register_error_handler(HTTPException, answers.refusal)
    app.register_error_handler(OSError, answers.breakage)
    app.register_blueprint(api, url_prefix=BASE)
    app.register_blueprint(api, url_prefix=f"{BASE}/hubs/<hub>", name="hub")
    app.register_blueprint(controls, url_prefix="/sandbox")
    return app


def _stage() -> Stage:
    stage: Stage = current_app.extensions["sandbox"]
    return stage


@api.url_value_preprocessor
def _drop_hub(_endpoint: str | None, values: dict[str, str] | None) -> None:
    if values:
        values.pop("hub", None)


@api.before_request
def _arrive() -> Response | None:
    stage = _stage()
    stage.requests.count(f"{request.method} {_template()}", (request.view_args or {}).get("job_id"))
    stage.closing.wait(stage.faults.current.slow)
    if fault := _fault(stage):
        return fault
    organization = request.path.endswith(_DELIVERIES)
    g.token = questions.owner(request.headers.get("Authorization", ""), organization=organization)
    return None


def _template() -> str:
    rule = str(request.url_rule).removeprefix(BASE).removeprefix("/hubs/<hub>")
    return rule.replace("<job_id>", "{id}").replace("<object:object_name>", "{objectName}")


def _fault(stage: Stage) -> Response | None:
    if status := stage.faults.take_answer():
        return answers.wrong(status)
    if stage.faults.take("html"):
        return answers.html()
    if url := stage.faults.take_redirect():
        return answers.elsewhere(url)
    return None


def _lifecycle() -> Lifecycle:
    return _stage().lifecycle


def _job(job_id: str) -> Job:
    job = _stage().jobs.find(job_id, g.token)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


@api.get("/objects")
def objects() -> Response:
    """The objects of the service."""
    return answers.answer(service.OBJECTS)


@api.post("/bulk/<object:object_name>")
def upload(object_name: str) -> Response:
    """Take a CSV file and create the job that loads it."""
    stage = _stage()
    if stage.faults.take("die_in_upload"):
        request.stream.read(_FIRST_PART)
        raise ConnectionAbortedError
    order = Order(
        token=g.token,
        object_name=questions.known_object(object_name),
        direction="UPLOAD",
        callback_url=_callback_url(),
        payload=questions.payload(request.form.get("metaData")),
    )
    if not request.args.get("path"):
        raise BadRequest("the parameter path is missing")
    job = stage.lifecycle.create(order, uploads.keep(request.files.get("file"), stage.folder))
    if stage.faults.take("die_after_upload"):
        raise ConnectionAbortedError
    return _created(job, "instanceId")


def _callback_url() -> str | None:
    return questions.callback_url(request.headers.get("Elements-Async-Callback-Url"))


def _created(job: Job, instance: str) -> Response:
    instance_id = _stage().options.instance_id
    return answers.answer({"id": job.id, "status": "CREATED", instance: instance_id})


@api.post("/bulk/query")
def query() -> Response:
    """Create a job whose result is all that was loaded into the object that `q` names."""
    order = Order(
        token=g.token,
        object_name=questions.queried_object(request.form.get("q")),
        direction="DOWNLOAD",
        callback_url=_callback_url(),
        payload=questions.payload(request.form.get("metaData")),
    )
    return _created(_lifecycle().create(order), "instance_id")


@api.post("/bulk/download")
def download() -> Response:
    """Create a job whose result is all that was loaded into an object."""
    request.max_content_length = _LARGEST_JSON
    wanted = questions.download(request.get_data())
    order = Order(
        token=g.token,
        object_name=questions.known_object(wanted.object_name),
        direction="DOWNLOAD",
        callback_url=questions.callback_url(wanted.notification_url),
        file_format=wanted.format,
    )
    return _created(_lifecycle().create(order), "instance_id")


@api.get("/bulk/<job_id>/status")
def status(job_id: str) -> Response:
    """Where a job stands."""
    return answers.answer(_lifecycle().status(_job(job_id)))


@api.get("/bulk/<job_id>/errors")
def errors(job_id: str) -> Response:
    """The records of a job that were refused, a page at a time."""
    size = questions.page_size(request.args.get("pageSize"))
    start = questions.page_token(request.args.get("nextPage")) or 0
    job = _job(job_id)
    refused = job.loads[0].refused if job.source and job.loads else None
    try:
        entries, following = service.refused_page(refused, start, size)
    except ValueError as error:
        raise BadRequest("nextPage is no token of this list") from error
    return answers.page(b"[" + b",".join(entries) + b"]", len(entries), following)


@api.get("/bulk/<job_id>/<object:object_name>")
def file(job_id: str, object_name: str) -> Response:
    """The records that a job loaded, or that it was to fetch."""
    job = _job(job_id)
    wanted = questions.file_format(
        request.args.get("format"), request.accept_mimetypes, job.order.file_format
    )
    if object_name != job.order.object_name:
        raise NotFound(f"job {job_id} has no file of {object_name}")
    if not job.has_ended:
        raise Conflict(f"job {job_id} has not ended")
    return Response(service.render(job.loads, wanted), content_type=questions.FORMATS[wanted])


@api.get("/bulk/jobs")
def jobs() -> Response:
    """The jobs of the element token, newest first, a page at a time."""
    where = questions.conditions(request.args.get("where"), _JOB_FIELDS)
    size = questions.page_size(request.args.get("pageSize"))
    start = questions.page_token(request.args.get("nextPage"))
    older = (job for job in _stage().jobs.of(g.token) if start is None or int(job.id) < start)
    found = [job for job in older if job.matches(where)]
    entries = [_lifecycle().status(job, "list") for job in found[:size]]
    following = int(found[size - 1].id) if len(found) > size else None
    return answers.page(msgspec.json.encode(entries), len(entries), following)


@api.put("/bulk/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """End a job that is under way."""
    cancelled = _lifecycle().cancel(_job(job_id))
    if cancelled is None:
        raise Conflict(f"job {job_id} has ended")
    return answers.answer(_lifecycle().status(cancelled))


@api.get(_DELIVERIES)
def deliveries() -> Response:
    """The callbacks that match `where`."""
    where = questions.conditions(request.args.get("where"), ("channel", "status"))
    return answers.answer(_stage().deliveries.listing(where))


@api.put(_DELIVERIES)
def resend() -> Response:
    """Send what is queued."""
    where = questions.conditions(request.args.get("where"), ("channel", "status"))
    if where != {"channel": "webhook", "status": "queued"}:
        raise BadRequest("where must be channel='webhook' and status='queued'")
    return answers.answer(_stage().deliveries.resend())
