"""What one sandbox consists of, and below `/sandbox` what tests ask of it: no vendor has this."""

from collections import Counter
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, RLock

import msgspec
from flask import Blueprint, Response, current_app, request

from receiver.openconnectors.sandbox.deliveries import Deliveries
from receiver.openconnectors.sandbox.faults import Faults, Options
from receiver.openconnectors.sandbox.jobs import Jobs, Later
from receiver.openconnectors.signatures import SignatureKey, without_line_end

_MAX_SHORT = 1 << 20  # bytes

controls = Blueprint("controls", __name__)


class Stage:
    """The parts of one sandbox. They share one lock, so that no two can wait for each other.

    requests -- how often each was made, by method and path below the base URL.
    """

    def __init__(self, options: Options) -> None:
        lock = RLock()
        self._folder = TemporaryDirectory(prefix="sandbox-")
        self._later = Later()
        self.folder = Path(self._folder.name)
        self.options = options
        self.closing = Event()
        self.deliveries = Deliveries(options, self._later, lock)
        self.jobs = Jobs(options, self._later, lock, self.deliveries.post)
        self.requests: Counter[str] = Counter()

    def close(self) -> None:
        """Stop everything and forget all files; a second time does nothing."""
        self.closing.set()
        self._later.close()
        self.deliveries.close()
        self._folder.cleanup()


def current_stage() -> Stage:
    """Return the stage of the application that answers this request."""
    stage: Stage = current_app.extensions["sandbox"]
    return stage


def json_response(content: object, status: int = HTTPStatus.OK) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(content), status, content_type="application/json")


def short_body() -> bytes:
    """Return the body of this request, which is no file."""
    request.max_content_length = _MAX_SHORT
    return request.get_data()


@controls.get("/faults")
def faults() -> Response:
    """The faults in force; counts show what is left."""
    return json_response(current_stage().options.faults)


@controls.put("/faults")
def replace_faults() -> Response:
    """Put the faults of the JSON body in force, and no others: `{}` ends them all."""
    current_stage().options.faults = msgspec.json.decode(short_body(), type=Faults)
    return faults()


@controls.put("/signature-key")
def replace_signature_key() -> Response:
    """Sign with the key of the body, a key's file, from the next callback on."""
    current_stage().options.signature_key = SignatureKey("sandbox", without_line_end(short_body()))
    return json_response({"signature_key": "replaced"})


@controls.get("/requests")
def requests() -> Response:
    """How often each path was requested."""
    return json_response(dict(current_stage().requests))


@controls.get("/deliveries")
def all_deliveries() -> Response:
    """All callbacks: what was sent, where, how often, and what was answered last."""
    return json_response(current_stage().deliveries.listing({}))


@controls.post("/jobs/<job_id>/reset")
def reset(job_id: str) -> Response:
    """Run a job once more, whoever it belongs to."""
    jobs = current_stage().jobs
    return json_response(jobs.write(jobs.reset(jobs.find(job_id))))
