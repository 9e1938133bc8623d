"""/api/v1: one table of routes, from which Flask, the ASGI application and the document are made.

A view takes the services and a request whose token and parameters are right, and returns what its
annotation says: what is answered as JSON, or a response. It knows no web framework.
"""

from functools import cache

from receiver.jobs.public import Job
from receiver.web import Services
from receiver.web.api import callbacks, instances, jobs, schemas, stream
from receiver.web.api.alarms import ALARM_ROUTES, SCHEDULE_ROUTES
from receiver.web.api.routes import Document, Route, describe, route
from receiver.web.api.subscriptions import SUBSCRIPTION_ROUTES
from receiver.web.http import Request, Response, json_response, parameters


def show_document(_services: Services, request: Request) -> Response:
    """Describe this API (OpenAPI 3.1)."""
    parameters(request.query, schemas.NoQuery)
    return json_response(_document())


@cache
def _document() -> Document:
    return describe((*_DOCUMENTED, RESULT))


_OF_A_JOB = (403, 404, 409)
_DOCUMENTED = (
    route("/jobs", jobs.list_jobs, 403),
    route("/jobs/{id}", jobs.show_job, *_OF_A_JOB, content=Job),
    route("/jobs/{id}/events", jobs.show_timeline, *_OF_A_JOB),
    route("/jobs/{id}/errors", jobs.list_errors, *_OF_A_JOB),
    route("/jobs/{id}/close", jobs.close_one, *_OF_A_JOB, method="POST"),
    route("/submissions", instances.list_submissions, 403),
    route("/submissions/{id}/dismiss", instances.dismiss, 403, 404, method="POST"),
    route("/instances", instances.list_instances),
    route("/events", callbacks.list_events, 403),
    route("/events/{id}", callbacks.show_event, 404, 410),
    route("/events/{id}/body", callbacks.show_body, 404, 410),
    route("/stream", stream.stream_events, 403, 501, media_type=stream.MEDIA_TYPE),
    route("/rejections", callbacks.list_rejections, 403),
    route("/rejections/verify-again", callbacks.verify_again, 403, method="POST"),
    *ALARM_ROUTES,
    *SUBSCRIPTION_ROUTES,
    *SCHEDULE_ROUTES,
    route("/summary", instances.show_summary),
)
RESULT = Route(  # which web/relay/relay.py answers, piece by piece
    "GET",
    "/jobs/{id}/result",
    "show_result",
    "Give the file of a finished download in its own format, or in the one `Accept` names.",
    schemas.InstanceQuery,
    (*_OF_A_JOB, 502),
)
_OPEN = Route("GET", "/openapi.json", "show_document", "", schemas.NoQuery, answer=show_document)
ROUTES = (*_DOCUMENTED, _OPEN)
