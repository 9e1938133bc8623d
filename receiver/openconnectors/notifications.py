"""What a verified body says.

The vendor publishes no schema for its bulk notifications, and several of its surfaces spell the
same fact differently. All of it is read here, totally: any bytes give a Notification, and what
cannot be read is of kind `unreadable`, never an error.
"""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from json.encoder import encode_basestring_ascii
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct, structs

from receiver.openconnectors.shapes import (
    ATTEMPT,
    CALLBACK_PAYLOAD,
    COMPLETED_AT,
    CREATED_AT,
    DIRECTION,
    FAILED,
    MESSAGE,
    OBJECT,
    REPORTED,
    STATUS,
)

Kind: TypeAlias = Literal["bulk_job", "async_request", "element_event", "other", "unreadable"]
Source: TypeAlias = Literal["callback", "poll", "submission", "operator"]

MAX_DEPTH = 64
MAX_ID = 200
MAX_COUNT = 2**63 - 1
MAX_TIME_MS = 253_402_300_799_999  # the last millisecond of the year 9999

# What tells the one shape without an id from any other JSON that has a status.
_WITHOUT_ID = frozenset(
    ("batchId", "numOfLeadsProcessed", "numOfRowsFailed", "numOfRowsWithWarning")
)
_ID = re.compile(r"[A-Za-z0-9._:~-]{1,200}")
# A string, ended or not, or a bracket; possessive, or hostile text would be read again and again.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
# What no database stores: PostgreSQL takes no NUL, UTF-8 no lone surrogate.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Notification(Struct, frozen=True, array_like=True):
    """What one callback, poll or submission says of a job; of other kinds, only that it came.

    job -- the job's id as text. status -- the vendor's word as it came.
    attempt -- how often the job was reset before. completed_at, created_at -- ms since the epoch.
    reported, failed, submitted -- numbers of records. callback_payload -- JSON text.
    source -- how we learnt it. asked_at -- when a poll was sent, ms since the epoch.
    A fact that the body does not tell is None.
    """

    kind: Kind
    job: str | None = None
    status: str | None = None
    attempt: int = 0
    completed_at: int | None = None
    reported: int | None = None
    failed: int | None = None
    message: str | None = None
    object: str | None = None
    direction: str | None = None
    created_at: int | None = None
    callback_payload: str | None = None
    file: str | None = None
    submitted: int | None = None
    submitted_at: int | None = None
    source: Source = "callback"
    asked_at: int | None = None

    def replace(self, **facts: Any) -> "Notification":  # noqa: ANN401 - one of its own types
        """Return it with these facts in the place of its own."""
        return structs.replace(self, **facts)


class Number(str):
    """A JSON number as its own text, so that no digit is lost and no size can hurt."""

    __slots__ = ()


def parse(body: bytes, asked_for: str | None = None) -> Notification:
    """Read a verified body; total over arbitrary bytes.

    asked_for -- of an answer, the id that was asked for: one shape of the vendor's has none.
    """
    try:
        value = _parse_fast(body)
    except (ValueError, RecursionError):
        return Notification("unreadable")
    return read(value, asked_for)


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Read UTF-8 JSON, its numbers as `Number`s. Raises ValueError (or RecursionError)."""
    text = body.decode("utf-8")
    if _deeper_than(text, MAX_DEPTH):
        raise ValueError("nested too deeply")
    return _DECODER.decode(text)


def _parse_fast(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Do as `parse_json`, in half its time; whole numbers are integers."""
    # An integer has no -0; msgspec counts no depth, and takes no lone surrogates or endless digits.
    if b"-0" in body or body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        return parse_json(body)
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError):
        return parse_json(body)


def read(document: object, asked_for: str | None = None) -> Notification:
    """Read JSON that was parsed already; see `parse`."""
    if not isinstance(document, dict):
        return Notification("other")
    job = _job_id(document.get("id", None if _WITHOUT_ID.isdisjoint(document) else asked_for))
    facts = _facts(document)
    if job and "status" in facts:
        return Notification("bulk_job", job, **facts)
    if "response" in document and ("eventId" in document or "notificationId" in document):
        return Notification("async_request")
    message = document.get("message")
    if isinstance(message, dict) and "eventId" in message:
        return Notification("element_event")
    misfit_id = "id" in document and not job
    misfit_status = "status" not in facts and any(name in document for name in STATUS)
    return Notification("unreadable" if misfit_id or misfit_status else "other")


def _facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Notification that are told, each by its first usable name."""
    facts: dict[str, Any] = {}
    places: dict[str, int] = {}
    for name in _NAMED.keys() & document.keys():
        fact, place, read = _NAMED[name]
        value = document[name]
        if value is not None and (fact not in facts or place < places[fact]):
            usable = read(value)
            if usable is not None:
                facts[fact], places[fact] = usable, place
    if facts.get("completed_at") == 0:  # the vendor's way to say that there is no such time
        del facts["completed_at"]
    return facts


def plain_integer(number: str) -> str | None:
    """Write a JSON number plainly: `4.2E7` as `42000000`.

    Gives None if it has a fraction, or takes more than MAX_ID characters or any decimal's exponent.
    """
    if number.isdigit() and len(number) <= MAX_ID:  # JSON has no leading zeros
        return str(number)
    try:
        value = Decimal(number)
    except InvalidOperation:
        return None
    if not value:
        return "0"
    # In this order: an exponent of a few digits stands for any number of zeros.
    if value.adjusted() >= MAX_ID or value != value.to_integral_value():
        return None
    plain = f"{value:.0f}"
    return plain if len(plain) <= MAX_ID else None


def json_text(value: object) -> str:
    """Write a JSON value back, ASCII only, numbers digit for digit.

    Lone surrogates become U+FFFD: JSON can escape them, but no UTF-8 reader takes them.
    """
    if isinstance(value, str):
        if isinstance(value, Number):
            return str(value)
        return encode_basestring_ascii(
            value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)
        )
    if isinstance(value, dict):
        members = (f"{json_text(key)}:{json_text(value[key])}" for key in value)
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    return str(value) if type(value) is int else json.dumps(value)


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = msgspec.json.Decoder(float_hook=Number).decode
_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_not_json)


def _deeper_than(text: str, limit: int) -> bool:
    if text.count("[") + text.count("{") <= limit:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        first = text[token.start()]
        depth += (first in "[{") - (first in "]}")
        if depth > limit:
            return True
    return False


def _job_id(value: object) -> str | None:
    text = plain_integer(value) if isinstance(value, Number) else value
    text = str(value) if type(value) is int else text  # and no bool
    return text if isinstance(text, str) and _ID.fullmatch(text) else None


def _text(value: object) -> str | None:
    """Text that every database can store."""
    if type(value) is not str:  # but a Number, for one
        return None
    if value.isascii() and "\0" not in value:  # as nearly all of it is
        return value
    return UNSTORABLE.sub("\ufffd", value)


def _text_or_json(value: object) -> str | None:
    return json_text(value) if (text := _text(value)) is None else text


def _count(value: object) -> int | None:
    if type(value) is int:  # and no bool
        return value if 0 <= value <= MAX_COUNT else None
    plain = plain_integer(value) if isinstance(value, Number) else value
    if not isinstance(plain, str) or not (plain.isascii() and plain.isdigit()):
        return None
    return int(plain) if len(plain) < 20 and int(plain) <= MAX_COUNT else None


def _time(value: object) -> int | None:
    ms = _count(value)
    return ms if ms is not None and ms <= MAX_TIME_MS else None


_READERS: tuple[tuple[str, tuple[str, ...], Callable[[object], object]], ...] = (
    ("status", STATUS, lambda value: _text(value) or None),
    ("attempt", ATTEMPT, _count),
    ("completed_at", COMPLETED_AT, _time),
    ("reported", REPORTED, _count),
    ("failed", FAILED, _count),
    ("message", MESSAGE, _text_or_json),
    ("object", OBJECT, _text),
    ("direction", DIRECTION, _text),
    ("created_at", CREATED_AT, _time),
    ("callback_payload", CALLBACK_PAYLOAD, json_text),
)
# Each name of the vendor's: of which fact, in which place, and how its value is read.
_NAMED = {
    name: (fact, place, read) for fact, names, read in _READERS for place, name in enumerate(names)
}
