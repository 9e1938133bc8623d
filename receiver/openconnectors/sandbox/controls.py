"""What tests ask of the sandbox itself, below `/sandbox`: no vendor has this."""

from collections.abc import Mapping

import msgspec
from flask import Blueprint, Response, current_app, request
from werkzeug.exceptions import BadRequest, NotFound

from receiver.errors import CredentialError
from receiver.openconnectors.sandbox.answers import answer
from receiver.openconnectors.sandbox.options import Faults, signature_key
from receiver.openconnectors.sandbox.stage import Stage

_EVERYTHING: Mapping[str, str] = {}
_LARGEST_JSON = 1 << 16

controls = Blueprint("controls", __name__)


def _stage() -> Stage:
    stage: Stage = current_app.extensions["sandbox"]
    return stage


@controls.get("/faults")
def faults() -> Response:
    """The faults in force; counts show what is left."""
    return answer(_stage().faults.current)


@controls.put("/faults")
def replace_faults() -> Response:
    """Put the faults of the JSON body in force, and no others: `{}` ends them all."""
    request.max_content_length = _LARGEST_JSON
    try:
        wanted = msgspec.json.decode(request.get_data(), type=Faults)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"these are no faults: {error}") from error
    _stage().faults.replace(wanted)
    return answer(wanted)


@controls.put("/signature-key")
def replace_signature_key() -> Response:
    """Sign with the key of the body, a key's file, from the next callback on."""
    request.max_content_length = _LARGEST_JSON
    try:
        _stage().deliveries.signature_key = signature_key(request.get_data())
    except CredentialError as error:
        raise BadRequest(str(error)) from error
    return answer({"signature_key": "replaced"})


@controls.get("/requests")
def requests() -> Response:
    """How often each path was asked for."""
    return answer(_stage().requests.totals())


@controls.get("/deliveries")
def deliveries() -> Response:
    """All callbacks: what was sent, where, how often, and what was answered last."""
    return answer(_stage().deliveries.listing(_EVERYTHING))


@controls.post("/jobs/<job_id>/reset")
def reset(job_id: str) -> Response:
    """Run a job once more, whoever it belongs to."""
    stage = _stage()
    job = stage.jobs.find(job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return answer(stage.lifecycle.status(stage.lifecycle.reset(job)))
