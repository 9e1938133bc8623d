"""What the rooms of the query API share: its document, its door, its pages."""

import copy
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints
from urllib.parse import urlencode

import msgspec
from flask import Blueprint, Response, current_app, request
from msgspec import UNSET, UnsetType
from spectree import Response as Answers
from spectree import SpecTree
from spectree.model_adapter import get_msgspec_model_adapter
from spectree.models import SecureType, SecurityScheme, SecuritySchemeData

from receiver import __version__
from receiver.clock import to_ms
from receiver.errors import BadParameter
from receiver.web import problems
from receiver.web.auth import authenticate

T = TypeVar("T")

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
blueprint.before_request(authenticate)


# Like the API, but open to all: who may read it learns nothing but how to ask.
open_blueprint = Blueprint("openapi", __name__, url_prefix="/api/v1")


def _refuse_parameters(
    _request: object, _response: object, error: Exception | None, *_: object
) -> None:
    if error is not None:
        unknown = sorted(set(request.args) - _known_parameters())
        named = "unknown parameter " + ", ".join(unknown) if unknown else str(error)
        raise BadParameter(named)


def _known_parameters() -> set[str]:
    view = current_app.view_functions[str(request.endpoint)]
    return set(get_type_hints(view)["query"].__struct_fields__)


spec = SpecTree(
    "flask",
    title="Receiver of Open Connectors bulk callbacks",
    version=__version__,
    openapi_version="3.1.0",
    annotations=True,
    mode="strict",
    before=_refuse_parameters,
    model_adapter=get_msgspec_model_adapter(),
    validation_error_status=400,
    validation_error_model=problems.Problem,
    naming_strategy=lambda model: model.__name__,
    nested_naming_strategy=lambda _parent, child: child,
    security_schemes=[
        SecurityScheme(
            name="token", data=SecuritySchemeData(type=SecureType.HTTP, scheme="bearer")
        ),
    ],
    security={"token": []},
)


def answers(model: type | None, *refusals: int) -> Answers:
    """Document what a path may answer. refusals -- statuses besides 400, 401, 429, 503."""
    documented = {f"HTTP_{status}": problems.Problem for status in (400, 401, 429, 503, *refusals)}
    return Answers(HTTP_200=model, **documented)


@open_blueprint.get("/openapi.json")
def document() -> Response:
    """Describe this API (OpenAPI 3.1)."""
    if request.args:
        raise BadParameter("unknown parameter " + ", ".join(sorted(request.args)))
    described = copy.deepcopy(spec.spec)
    for operations in described["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if status >= "400":
                    answer["content"] = {problems.MEDIA_TYPE: answer["content"]["application/json"]}
    body = described["paths"]["/api/v1/events/{id}/body"]["get"]["responses"]["200"]
    body["content"] = {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
    }
    job = described["paths"]["/api/v1/jobs/{id}"]["get"]["responses"]
    job["304"] = {"description": "As the ETag in If-None-Match"}
    return json_response(described)


def moment(text: str | UnsetType) -> int | None:
    """Read a time parameter as ms. Raises BadParameter."""
    if text is UNSET:
        return None
    try:
        return to_ms(str(text))
    except (ValueError, OverflowError):
        raise BadParameter(f"there is no such time: {text}") from None


def paged(
    rows: Sequence[T],
    limit: int,
    name: str,
    show: Callable[[T], Any],
    position: Callable[[T], tuple[Any, ...]],
    **more: Any,  # noqa: ANN401 - whatever can be written
) -> Response:
    """Answer a page. rows -- one more than `limit`, if there are more. more -- said beside it."""
    shown = rows[:limit]
    following = cursor_of(position(shown[-1])) if len(rows) > limit else None
    response = json_response({name: [show(row) for row in shown], **more, "next": following})
    if following:
        pairs = [pair for pair in request.args.items(multi=True) if pair[0] != "cursor"]
        query = urlencode([*pairs, ("cursor", following)])
        response.headers["Link"] = f'<{request.path}?{query}>; rel="next"'
    return response


def json_response(content: Any) -> Response:  # noqa: ANN401 - whatever can be written
    """Answer 200 with JSON."""
    return Response(msgspec.json.encode(content), mimetype="application/json")


def position_of(cursor: str | UnsetType, types: tuple[type, ...]) -> Any:  # noqa: ANN401 - of those types
    """Read a cursor that `paged` gave. Raises BadParameter."""
    if cursor is UNSET:
        return None
    cursor = str(cursor)
    try:
        position = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        position = None
    if not isinstance(position, list) or not _is_position(position, types):
        raise BadParameter("cursor is not one that this API gave")
    return tuple(position)


def _is_position(position: list[Any], types: tuple[type, ...]) -> bool:
    if list(map(type, position)) != list(types):
        return False
    return all("\0" not in x if isinstance(x, str) else abs(x) < 2**63 for x in position)


def cursor_of(position: tuple[Any, ...]) -> str:
    """Write the place from behind which the next page is read; `position_of` reads it."""
    return urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")
