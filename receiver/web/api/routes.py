"""A route of the API: who may ask, with which parameters, and what is answered."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar, get_args, get_type_hints

import flask
from flask import Blueprint
from msgspec import Struct

from receiver.instances.tokens import Bearer
from receiver.web import Services, services
from receiver.web.api.schemas import BYTES
from receiver.web.auth import authenticate, bearer_token, require
from receiver.web.http import Request, Response, parameters
from receiver.web.problems import flask_response

BASE = "/api/v1"
MAX_BODY_BYTES = 2**20
MAX_HELD = 8  # requests that hold a thread each until something has happened, in one process

Q = TypeVar("Q", bound=Struct)


@dataclass(frozen=True, slots=True)
class ApiRequest(Generic[Q]):
    """A request whose token and parameters are right."""

    http: Request
    bearer: Bearer
    query: Q


@dataclass(frozen=True)
class Operation:
    """What the document says of a path under BASE; `{id}` stands for one segment of it.

    query -- the parameters. content -- what 200 has as JSON; None is bytes. refusals -- statuses
    besides 400, 401, 429 and 503. body -- what is sent as JSON, if anything is. media_type -- of
    bytes.
    """

    method: str
    path: str
    name: str
    summary: str
    query: type[Struct]
    content: type[Struct] | None
    refusals: tuple[int, ...]
    body: type[Struct] | None = field(default=None, kw_only=True)
    media_type: str = field(default=BYTES, kw_only=True)


@dataclass(frozen=True)
class Route(Operation):
    """An operation and who answers it. answer -- raises ReceiverError."""

    answer: Callable[[Services, Request], Response]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What matches its paths; the first group is the id, empty if it has none."""
        return re.compile((BASE + self.path).replace("{id}", "([^/]+)") + "()")


def route(
    path: str,
    view: Callable[[Services, ApiRequest[Q]], Response],
    content: type[Struct] | None,
    *refusals: int,
    method: str = "GET",
    body: type[Struct] | None = None,
    media_type: str = BYTES,
) -> Route:
    """Make a route that checks token and parameters before its view is called.

    Which parameters there are, the view's annotation says.
    """
    query: type[Q] = get_args(get_type_hints(view)["request"])[0]

    def answer(services_: Services, request: Request) -> Response:
        bearer = require(authenticate(services_, request.peer, bearer_token(request)))
        return view(services_, ApiRequest(request, bearer, parameters(request.query, query)))

    summary = (view.__doc__ or "").partition("\n")[0]
    facts = method, path, view.__name__, summary, query, content, refusals, answer
    return Route(*facts, body=body, media_type=media_type)


def find_route(routes: Sequence[Route], method: str, path: str) -> tuple[Route, str] | None:
    """Return the route of a request and the id in its path."""
    if path.startswith(BASE):
        for route_ in routes:
            if route_.method == method and (match := route_.pattern.fullmatch(path)):
                return route_, match[1]
    return None


# --- Flask's side


def blueprint(routes: Sequence[Route]) -> Blueprint:
    """Return Flask's rules for routes."""
    made = Blueprint("api", __name__, url_prefix=BASE)
    places = threading.BoundedSemaphore(MAX_HELD)
    for route_ in routes:
        made.add_url_rule(
            route_.path.replace("{id}", "<string:id_>"),
            route_.name,
            _flask_view(route_, places),
            methods=[route_.method],
            provide_automatic_options=False,
        )
    return made


def _flask_view(route_: Route, places: threading.BoundedSemaphore) -> Callable[..., flask.Response]:
    def view(id_: str = "") -> flask.Response:
        answer = route_.answer(services(), replace(current_request(), id=id_))
        # A server of one thread could not even take the callback that is waited for.
        if flask.request.environ.get("wsgi.multithread"):
            answer = _held(answer, places)
        return flask_response(answer)

    return view


def current_request() -> Request:
    """Return Flask's current request."""
    request = flask.request
    request.max_content_length = MAX_BODY_BYTES
    return Request(
        path=request.path,
        query=request.query_string.decode("latin-1"),
        authorization=request.headers.get("Authorization"),
        if_none_match=request.headers.get("If-None-Match"),
        peer=request.remote_addr or "",
        body=request.get_data() if request.method in ("POST", "PATCH") else b"",
    )


def _held(response: Response, places: threading.BoundedSemaphore) -> Response:
    if response.hold is None or not places.acquire(blocking=False):
        return response
    try:
        for pause in response.hold.pauses():
            time.sleep(pause)
            response = response.hold.look()
            if response.hold is None:
                break
    finally:
        places.release()
    return response
