"""What the rooms of the query API share: its door, its document, and Flask's side of answers."""

import copy
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flask import Blueprint, Response, request
from spectree import Response as Answers
from spectree import SpecTree
from spectree.model_adapter import get_msgspec_model_adapter
from spectree.models import SecureType, SecurityScheme, SecuritySchemeData

from receiver import __version__
from receiver.errors import BadParameter
from receiver.web import problems
from receiver.web.answers import answer_json, parameters
from receiver.web.auth import authenticate
from receiver.web.problems import Answer

P = ParamSpec("P")
T = TypeVar("T")

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
blueprint.before_request(authenticate)


# Like the API, but its views find out themselves who asks, if that matters.
open_blueprint = Blueprint("open", __name__, url_prefix="/api/v1")


spec = SpecTree(
    "flask",
    title="Receiver of Open Connectors bulk callbacks",
    version=__version__,
    openapi_version="3.1.0",
    mode="strict",
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


def documented(
    query: type, model: type | None, *refusals: int
) -> Callable[[Callable[P, Response]], Callable[P, Response]]:
    """Document a path: its parameters and what it may answer; checking them is left to the path.

    refusals -- statuses besides 400, 401, 429 and 503.
    """
    statuses = {f"HTTP_{status}": problems.Problem for status in (400, 401, 429, 503, *refusals)}
    return spec.validate(
        query=query, resp=Answers(HTTP_200=model, **statuses), skip_validation=True
    )


def asked(model: type[T]) -> T:
    """Read the parameters of this request. Raises BadParameter."""
    return parameters(request.query_string.decode("latin-1"), model)


def response(answer: Answer) -> Response:
    """Give an answer to Flask."""
    return Response(answer.body, answer.status, answer.headers)


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
    return response(answer_json(described))
