"""Requests to the API and answers to them, without a web framework: any server may bring them."""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, get_args, get_origin
from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec import Struct, UnsetType
from msgspec.structs import fields

from receiver.callbacks.feed import Reader
from receiver.errors import BadParameter
from receiver.jobs.queries import Instances
from receiver.lib.clock import to_ms

T = TypeVar("T")
Q = TypeVar("Q", bound=Struct)
Position = tuple[int | str, ...]  # in a list: what it is sorted by

JSON = {"Content-Type": "application/json"}
MAX_PARAMETERS = 1000
_WORDS = (
    ("`int`", "a whole number"),
    ("`str`", "text"),
    ("`bool`", "true or false"),
    ("`array`", "a list"),
    ("`object`", "an object"),
    ("Object contains unknown", "unknown"),
    ("Object missing required", "missing"),
    ("Expected ", "must be "),
    (", got ", ", not "),
    (" matching regex ", " that matches "),
    ("`", ""),
)
_A_TIME = "2026-11-22T05:49:00Z"
_PAUSE_SECONDS = 0.05  # before the first answer of a Hold; growing, so that long waits are cheap
_MAX_PAUSE_SECONDS = 0.5


class Moment(int):
    """A time among the parameters, ms since the epoch; it comes as ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, whatever server it came through.

    path -- decoded; id -- what stands for `{id}` in its route. query -- the parameters, encoded.
    Headers are latin-1, as WSGI has them. peer -- the client's address; empty if it has none.
    body -- of one that changes something. last_event_id -- where a stream is to go on.
    """

    path: str
    id: str = ""
    query: str = ""
    authorization: str | None = None
    if_none_match: str | None = None
    peer: str = ""
    body: bytes = b""
    last_event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. hold -- if it need not be sent at once: how to have a later one.

    stream -- what to send instead, if the server can send for as long as the client stays.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    hold: "Hold | None" = None
    stream: "Stream | None" = None


@dataclass(frozen=True, slots=True)
class Hold:
    """What is asked for has not happened yet: `answer` again, for `seconds` at most."""

    answer: Callable[[], Response]
    seconds: float

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each answer, until the time is over."""
        deadline, pause = time.monotonic() + self.seconds, _PAUSE_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            yield min(pause, left)
            pause = min(pause * 1.5, _MAX_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Stream:
    """Events as they come. reader -- begins where the client is to go on, after `opening` is sent.

    instances -- whose; None is all. is_allowed -- looks whether the client's token still is valid.
    """

    reader: Reader
    opening: bytes
    instances: Instances
    is_allowed: Callable[[], bool]


def parameters(query: str, model: type[Q]) -> Q:
    """Read a query string. Raises BadParameter, which names the one that is unknown or wrong."""
    values: dict[str, list[str]] = {}
    for name, value in _pairs(query):
        values.setdefault(name, []).append(value)
    lists = _list_fields(model)
    arguments = {
        name: several if len(several) > 1 or lists.get(name) else several[0]
        for name, several in values.items()
    }
    try:
        return msgspec.convert(arguments, model, strict=False, dec_hook=_read_moment)
    except msgspec.ValidationError as error:
        unknown = sorted(set(values) - set(lists))
        message = "unknown parameter " + ", ".join(unknown) if unknown else _in_words(error, model)
        raise BadParameter(message) from None


def _read_moment(_type: type[Moment], text: str) -> Moment:
    """Read a time. Raises ValueError, to which msgspec adds the parameter's name."""
    try:
        return Moment(to_ms(text))
    except (ValueError, OverflowError):
        raise ValueError(f"there is no such time: {text}; one is {_A_TIME}") from None


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise BadParameter(f"more than {MAX_PARAMETERS} parameters") from None


def read_json(request: Request, model: type[Q]) -> Q:
    """Read the body of a request. Raises BadParameter, which says where it is wrong."""
    try:
        return msgspec.json.decode(request.body, type=model)
    except UnicodeDecodeError:
        raise BadParameter("the body is not UTF-8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadParameter(f"the body: {_in_words(error, model)}") from None


def _in_words(error: Exception, model: type[Struct]) -> str:
    """Return msgspec's message without its terms: which field is wrong, and what it may be."""
    text, _, path = str(error).partition(" - at `$.")
    name = path.rstrip("`").partition("[")[0]
    for term, words in _WORDS:
        text = text.replace(term, words)
    if text.startswith("Invalid enum value"):
        of_field = next(field.type for field in fields(model) if field.name == name)
        value = text.removeprefix("Invalid enum value ")
        text = f"{value} is none of {', '.join(_choices(of_field))}"
    return f"{name}: {text}" if name else text


def _choices(type_: object) -> Iterator[str]:
    for argument in get_args(type_):
        yield from [argument] if isinstance(argument, str) else _choices(argument)


@cache
def _list_fields(model: type[Struct]) -> dict[str, bool]:
    """By name of each parameter, whether it may be repeated."""
    return {field.name: get_origin(field.type) is list for field in fields(model)}


def optional(value: T | UnsetType) -> T | None:
    """Return a parameter's value; None if it was not sent."""
    return None if isinstance(value, UnsetType) else value


def read_cursor(cursor: str | UnsetType, shape: type[T]) -> T | None:
    """Read a cursor of `write_cursor`; shape -- a tuple type. Raises BadParameter."""
    if isinstance(cursor, UnsetType):
        return None
    try:
        text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        position = msgspec.json.decode(text, type=shape)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        position = None
    # Nor is what no database can even be asked for a cursor of ours.
    if not isinstance(position, tuple) or not all(map(_is_storable, position)):
        raise BadParameter("cursor is not one that this API gave")
    return position


def _is_storable(value: int | str) -> bool:
    # The number after it is asked for too, and is to fit into 64 bits as well.
    return value.isprintable() if isinstance(value, str) else abs(value) < 2**63 - 1


def write_cursor(position: Position) -> str:
    """Write a position in a list as a cursor."""
    return urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def json_response(content: object, headers: Mapping[str, str] | None = None) -> Response:
    """Answer 200 with JSON."""
    return Response(200, {**JSON, **(headers or {})}, msgspec.json.encode(content))


def cut(
    rows: Sequence[T], limit: int, position: Callable[[T], Position]
) -> tuple[Sequence[T], str | None]:
    """Return a page of at most `limit` rows, and the cursor of the next one if there are more."""
    page = rows[:limit]
    return page, write_cursor(position(page[-1])) if len(rows) > limit else None


def content_response(request: Request, content: Struct) -> Response:
    """Answer 200 with JSON; of a page of a list with a link to the next one, too."""
    following: str | None = getattr(content, "next", None)
    if following is None:
        return json_response(content)
    pairs = [pair for pair in _pairs(request.query) if pair[0] != "cursor"]
    query = urlencode([*pairs, ("cursor", following)])
    return json_response(content, {"Link": f'<{request.path}?{query}>; rel="next"'})
