"""The OpenAPI 3.1 document of the API, printed from its routes."""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from msgspec import Struct

from receiver import __version__
from receiver.jobs.shown import Job
from receiver.web.api.routes import BASE, Operation
from receiver.web.api.schemas import BYTES
from receiver.web.problems import MEDIA_TYPE, Problem

Document: TypeAlias = dict[str, object]

_COMPONENTS = "#/components/schemas/{name}"
_PROBLEMS = {
    400: "A parameter is wrong",
    401: "A valid token is needed",
    403: "The token does not allow this",
    404: "Not found",
    409: "Several instances have this job, or the name is taken",
    410: "It is kept no longer",
    429: "Too many requests",
    501: "This server sends no streams",
    502: "The vendor rejected the request, or cannot be reached",
    503: "Not now; try again",
}
_ALWAYS = (400, 401, 429, 503)


def describe(routes: Sequence[Operation]) -> Document:
    """Return the document."""
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


def _operation(route: Operation) -> Document:
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


def _success(route: Operation) -> Document:
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
    described = msgspec.json.schema_components([query])[1][query.__name__]
    properties, required = described.get("properties", {}), described.get("required", [])
    return [
        {"name": name, "in": "query", "schema": schema, "required": name in required}
        for name, schema in properties.items()
    ]
