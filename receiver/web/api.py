"""What the rooms of the query API share: its document, its door, its pages."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
from flask import Blueprint, Response, request
from spectree import Response as Answers
from spectree import SpecTree
from spectree.model_adapter import get_msgspec_model_adapter
from spectree.models import SecureType, SecurityScheme, SecuritySchemeData

from receiver import __version__
from receiver.errors import BadParameter
from receiver.web import problems
from receiver.web.auth import authenticate

T = TypeVar("T")

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
blueprint.before_request(authenticate)


def _refuse_parameters(
    _request: object, _response: object, error: Exception | None, *_: object
) -> None:
    if error is not None:
        raise BadParameter(str(error).replace("Object contains unknown field", "unknown parameter"))


spec = SpecTree(
    "flask",
    title="Receiver of Open Connectors bulk callbacks",
    version=__version__,
    openapi_version="3.1.0",
    annotations=True,
    mode="strict",
    path="api/v1",
    filename="openapi.json",
    page_templates={},
    before=_refuse_parameters,
    model_adapter=get_msgspec_model_adapter(),
    validation_error_status=400,
    validation_error_model=problems.Problem,
    security_schemes=[
        SecurityScheme(
            name="token", data=SecuritySchemeData(type=SecureType.HTTP, scheme="bearer")
        ),
    ],
    security={"token": []},
)


def answers(model: type | None, *refusals: int) -> Answers:
    """Document what a path may answer. refusals -- statuses besides 400, 401 and 503."""
    documented = {f"HTTP_{status}": problems.Problem for status in (400, 401, 503, *refusals)}
    return Answers(HTTP_200=model, **documented)


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
    following = _cursor(position(shown[-1])) if len(rows) > limit else None
    response = json_response({name: [show(row) for row in shown], **more, "next": following})
    if following:
        pairs = [pair for pair in request.args.items(multi=True) if pair[0] != "cursor"]
        query = urlencode([*pairs, ("cursor", following)])
        response.headers["Link"] = f'<{request.path}?{query}>; rel="next"'
    return response


def json_response(content: Any) -> Response:  # noqa: ANN401 - whatever can be written
    """Answer 200 with JSON."""
    return Response(msgspec.json.encode(content), mimetype="application/json")


def position_of(cursor: str | None, types: tuple[type, ...]) -> Any:  # noqa: ANN401 - of those types
    """Read a cursor that `paged` gave. Raises BadParameter."""
    if cursor is None:
        return None
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


def _cursor(position: tuple[Any, ...]) -> str:
    return urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")
