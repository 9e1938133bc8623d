"""Answers of the query API, made without a web framework: any server may ask for them."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_origin, get_type_hints
from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec import UNSET, UnsetType

from receiver.errors import BadParameter, Forbidden, Unauthenticated
from receiver.instances import tokens
from receiver.instances.tokens import Bearer
from receiver.lib.clock import to_ms
from receiver.web import Services
from receiver.web.problems import Answer

T = TypeVar("T")

JSON = {"Content-Type": "application/json"}
MOST_PARAMETERS = 1000

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request to the API, whatever server it came through; headers as WSGI has them."""

    path: str
    query_string: str = ""
    authorization: str | None = None
    if_none_match: str | None = None
    peer: str = ""


def bearer_token(question: Question) -> str:
    """Read the token of a request. Raises Unauthenticated."""
    scheme, _, token = (question.authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("send a token: Authorization: Bearer <token>")
    return token.strip()


def authenticated(services: Services, question: Question) -> Bearer:
    """Tell whose token came with a request. Raises Unauthenticated, TooManyRequests."""
    token = bearer_token(question)
    return known(holder(services, question.peer, token))


def holder(services: Services, peer: str, token: str) -> Bearer | None:
    """Tell whose a token is, or None; counts it either way. Raises TooManyRequests."""
    services.limits.check_address(peer)
    found = tokens.who_asks(services.database.rows, token, services.clock())
    return counted(services, peer, found)


def counted(services: Services, peer: str, bearer: Bearer | None) -> Bearer | None:
    """Count a request with this token, or one with a wrong token. Raises TooManyRequests."""
    if bearer is None:
        services.limits.note_failure(peer)
    else:
        services.limits.check_token(bearer.name)
    return bearer


def known(bearer: Bearer | None) -> Bearer:
    """Give the bearer. Raises Unauthenticated if there is none."""
    if bearer is None:
        raise Unauthenticated("the token is unknown, expired or revoked")
    return bearer


def check_reach(bearer: Bearer, instances: Sequence[str]) -> None:
    """Refuse instances that were asked for by name and that the token does not reach."""
    for instance in instances:
        if not bearer.may_see(instance):
            raise Forbidden(f"the token does not reach the instance {instance}")


def parameters(query_string: str, model: type[T]) -> T:
    """Read the parameters of a request. Raises BadParameter, which names the unknown ones."""
    if not query_string:
        return model()
    given: dict[str, list[str]] = {}
    for name, value in _pairs(query_string):
        given.setdefault(name, []).append(value)
    fields: Any = model
    lists = _list_fields(fields)
    found = {
        name: values if len(values) > 1 or lists.get(name) else values[0]
        for name, values in given.items()
    }
    try:
        return msgspec.convert(found, model, strict=False)
    except msgspec.ValidationError as error:
        unknown = sorted(set(given) - set(lists))
        named = "unknown parameter " + ", ".join(unknown) if unknown else str(error)
        raise BadParameter(named) from None


def _pairs(query_string: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query_string, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise BadParameter(f"more than {MOST_PARAMETERS} parameters") from None


@cache
def _list_fields(model: Any) -> dict[str, bool]:  # noqa: ANN401 - a Struct
    """By name of each parameter, whether it may be repeated."""
    return {name: get_origin(hint) is list for name, hint in get_type_hints(model).items()}


def moment(text: str | UnsetType) -> int | None:
    """Read a time parameter as ms. Raises BadParameter."""
    if text is UNSET:
        return None
    try:
        return to_ms(str(text))
    except (ValueError, OverflowError):
        raise BadParameter(f"there is no such time: {text}") from None


def answer_json(content: Any) -> Answer:  # noqa: ANN401 - whatever can be written
    """Answer 200 with JSON."""
    return Answer(200, JSON, _encoder.encode(content))


def paged(  # noqa: PLR0917 - as a page is told
    rows: Sequence[T],
    limit: int,
    name: str,
    show: Callable[[T], Any],
    position: Callable[[T], tuple[Any, ...]],
    question: Question,
    **more: Any,  # noqa: ANN401 - whatever can be written
) -> Answer:
    """Answer a page. rows -- one more than `limit`, if there are more. more -- said beside it."""
    shown = rows[:limit]
    following = cursor_of(position(shown[-1])) if len(rows) > limit else None
    body = _encoder.encode({name: [show(row) for row in shown], **more, "next": following})
    if following is None:
        return Answer(200, JSON, body)
    pairs = [pair for pair in _pairs(question.query_string) if pair[0] != "cursor"]
    query = urlencode([*pairs, ("cursor", following)])
    return Answer(200, {**JSON, "Link": f'<{question.path}?{query}>; rel="next"'}, body)


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
    return all(x.isprintable() if isinstance(x, str) else abs(x) < 2**63 for x in position)


def cursor_of(position: Sequence[Any]) -> str:
    """Write a position in a list as a cursor."""
    return urlsafe_b64encode(json.dumps(list(position)).encode()).decode().rstrip("=")
