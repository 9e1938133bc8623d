"""GET /api/v1/jobs/{id}/result: the file of a finished download, streamed from the vendor."""

from dataclasses import replace
from functools import partial

from flask import Blueprint, Response, request

from receiver.errors import NotFound, UpstreamRefused
from receiver.instances import registry
from receiver.openconnectors import client
from receiver.openconnectors.shapes import Route
from receiver.web import services
from receiver.web.api import RESULT, schemas
from receiver.web.api.jobs import jobs_called, the_one
from receiver.web.api.routes import BASE, ApiRequest, current_request
from receiver.web.auth import authenticate, bearer_token, require
from receiver.web.http import optional, parameters
from receiver.web.relay import exchange
from receiver.web.relay.exchange import Caller, Question
from receiver.web.relay.submissions import note_fetched

# Not with the API's other routes: the answer has any length.
blueprint = Blueprint("result", __name__)


@blueprint.get(BASE + RESULT.path.replace("{id}", "<string:job>"), provide_automatic_options=False)
def show_result(job: str) -> Response:
    """Give a job's file in its own format, or in the one that `Accept` names."""
    api_request = replace(current_request(), id=job)
    bearer = require(authenticate(services(), api_request.peer, bearer_token(api_request)))
    query = parameters(api_request.query, schemas.InstanceQuery)
    named = optional(query.instance)
    record = the_one(jobs_called(services(), ApiRequest(api_request, bearer, query), named), job)
    object_name, ended = record.job.text("object"), record.job.ended
    if not ended or not object_name:
        missing = "does not tell its object" if ended else "has not ended"
        raise NotFound(f"job {job} {missing}, so there is no file to fetch")
    with services().database.read() as session:
        secrets = registry.vendor_secrets(session, services().secret_box, record.instance)
    if secrets is None:
        raise NotFound(f"{record.instance} has no vendor secrets to fetch a file with")
    accept = request.headers.get("Accept", "*/*")
    for accepted in client.ACCEPTED if accept == "*/*" else (accept,):
        question = Question(
            Caller(record.instance, bearer, secrets),
            Route("result", job, object_name),
            "GET",
            client.result(job, object_name, accepted, secrets.hub).path,
            [(b"Accept", accepted.encode("latin-1", "replace"))],
        )
        reply = exchange.send(services().vendor, question)
        if reply.status not in client.WRONG_FORMAT:
            break
    if not reply.ok:
        message = client.error_message(reply.body) or f"the vendor answered {reply.status}"
        raise UpstreamRefused(message, reply.status)
    note = partial(note_fetched, services(), record.instance, job)
    return exchange.respond(reply, question, note)
