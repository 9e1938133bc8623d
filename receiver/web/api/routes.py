"""A route of the API: who may ask, with which parameters, and what is answered; its document."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Generic, TypeAlias, TypeVar, get_args, get_type_hints

import flask
import msgspec
from flask import Flask
from msgspec import Struct

from receiver import __version__
from receiver.errors import Unauthenticated
from receiver.instances.tokens import Bearer, Scope
from receiver.jobs.public import Job
from receiver.web import Services, services
from receiver.web.api.schemas import BYTES
from receiver.web.auth import authenticate, bearer_token, require_scope
from receiver.web.http import Request, Response, content_response, parameters
from receiver.web.problems import MEDIA_TYPE, Problem, flask_response

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


def _elsewhere(_services: Services, request: Request) -> Response:
    raise NotImplementedError(request.path)


@dataclass(frozen=True)
class Route:
    """A path under BASE, where `{id}` stands for one segment, and who answers it.

    query -- the parameters. refusals -- statuses besides 400, 401, 429 and 503. answer -- raises
    ReceiverError. content -- what 200 has as JSON; None is bytes. body -- what is sent as JSON, if
    anything is. media_type -- of bytes.
    """

    method: str
    path: str
    name: str
    summary: str
    query: type[Struct]
    refusals: tuple[int, ...] = ()
    answer: Callable[[Services, Request], Response] = _elsewhere
    content: type[Struct] | None = None
    body: type[Struct] | None = None
    media_type: str = BYTES

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What matches its paths; the first group is the id, empty if it has none."""
        return re.compile((BASE + self.path).replace("{id}", "([^/]+)") + "()")


def route(
    path: str,
    view: Callable[[Services, ApiRequest[Q]], Struct | Response],
    *refusals: int,
    method: str = "GET",
    scope: Scope = "read",
    content: type[Struct] | None = None,
    body: type[Struct] | None = None,
    media_type: str = BYTES,
) -> Route:
    """Make a route that checks token and parameters before its view is called.

    Which parameters there are and what is answered, the view's annotations say. scope -- what the
    token needs; other methods than GET change something, and need `operate`. content -- of a view
    that returns a response.
    """
    needed = scope if method == "GET" else "operate"
    hints = get_type_hints(view)
    query: type[Q] = get_args(hints["request"])[0]
    content = content if hints["return"] is Response else hints["return"]

    def answer(services_: Services, request: Request) -> Response:
        answered = view(services_, check(services_, request, query, needed))
        return answered if isinstance(answered, Response) else content_response(request, answered)

    summary = (view.__doc__ or "").partition("\n")[0]
    facts = method, path, view.__name__, summary, query, refusals, answer
    return Route(*facts, content, body, media_type)


def check(
    services_: Services, request: Request, query: type[Q], scope: Scope = "read"
) -> ApiRequest[Q]:
    """Check a request's token and parameters. Raises QueryError, TooManyRequests."""
    bearer = authenticate(services_, request.peer, bearer_token(request))
    if bearer is None:
        raise Unauthenticated("the token is unknown, expired or revoked")
    checked = ApiRequest(request, bearer, parameters(request.query, query))
    require_scope(bearer, scope)
    return checked


def find_route(routes: Sequence[Route], method: str, path: str) -> tuple[Route, str] | None:
    """Return the route of a request and the id in its path."""
    if path.startswith(BASE):
        for route_ in routes:
            if route_.method == method and (match := route_.pattern.fullmatch(path)):
                return route_, match[1]
    return None


# --- Flask's side


def register(app: Flask, routes: Sequence[Route]) -> None:
    """Have an application answer routes."""
    places = threading.BoundedSemaphore(MAX_HELD)
    for route_ in routes:
        add_view(app, route_, partial(_answer, route_, places))


def add_view(app: Flask, route_: Route, view: Callable[[str], flask.Response]) -> None:
    """Have a view answer a route; it takes the id of the path, empty if there is none."""
    app.add_url_rule(
        BASE + route_.path.replace("{id}", "<string:id_>"),
        route_.name,
        view,
        methods=[route_.method],
        provide_automatic_options=False,
    )


def _answer(route_: Route, places: threading.BoundedSemaphore, id_: str = "") -> flask.Response:
    answer = route_.answer(services(), current_request(id_))
    # A server of one thread could not even take the callback that is waited for.
    if flask.request.environ.get("wsgi.multithread"):
        answer = _held(answer, places)
    return flask_response(answer)


def current_request(id_: str) -> Request:
    """Return Flask's current request, with the id in its path."""
    request = flask.request
    request.max_content_length = MAX_BODY_BYTES
    return Request(
        path=request.path,
        id=id_,
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
            response = response.hold.answer()
            if response.hold is None:
                break
    finally:
        places.release()
    return response


# --- The document

Document: TypeAlias = dict[str, object]
_COMPONENTS = "#/components/schemas/{name}"
_PROBLEMS = {
    400: "A parameter is wrong",
    401: "A valid token is needed",
    403: "The token does not allow this",
    404: "Not found",
    409: "Several instances have this job, the name is taken, or a setting is missing",
    410: "It is kept no longer",
    429: "Too many requests",
    501: "This server sends no streams",
    502: "The vendor rejected the request, or cannot be reached",
    503: "Not now; try again",
}
_ALWAYS = (400, 401, 429, 503)


def describe(routes: Sequence[Route]) -> Document:
    """Return the OpenAPI 3.1 document of routes."""
    contents = [it for route in routes for it in (route.content, route.body) if it]
    _, schemas = msgspec.json.schema_components([*contents, Problem], ref_template=_COMPONENTS)
    paths: dict[str, dict[str, Document]] = {}
    for route in routes:
        paths.setdefault(BASE + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Receiver of Open Connectors bulk callbacks", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route) -> Document:
    in_path = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    responses: dict[str, Document] = {"200": _success(route)}
    if route.content is Job:
        responses["304"] = {"description": "As the ETag in If-None-Match"}
    for status in sorted({*_ALWAYS, *route.refusals}):
        content = {MEDIA_TYPE: {"schema": _reference(Problem)}}
        responses[str(status)] = {"description": _PROBLEMS[status], "content": content}
    body: Document = {}
    if route.body is not None:
        sent = {"application/json": {"schema": _reference(route.body)}}
        body = {"requestBody": {"required": True, "content": sent}}
    return {
        **body,
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [*([in_path] if "{id}" in route.path else []), *_parameters(route.query)],
        "responses": responses,
    }


def _success(route: Route) -> Document:
    content = route.content
    if content is None:
        binary = {"schema": {"type": "string", "format": "binary"}}
        is_exact = route.media_type == BYTES
        description = "The exact bytes" if is_exact else "Server-Sent Events, as they come"
        return {"description": description, "content": {route.media_type: binary}}
    answered = {"application/json": {"schema": _reference(content)}}
    return {"description": (content.__doc__ or "").partition("\n")[0], "content": answered}


def _reference(model: type[Struct]) -> Document:
    return {"$ref": _COMPONENTS.format(name=model.__name__)}


def _parameters(query: type[Struct]) -> list[Document]:
    # What msgspec knows no type of, its own `Meta` describes.
    _, components = msgspec.json.schema_components([query], schema_hook=lambda _: {})
    described = components[query.__name__]
    properties, required = described.get("properties", {}), described.get("required", [])
    return [
        {"name": name, "in": "query", "schema": schema, "required": name in required}
        for name, schema in properties.items()
    ]
