"""What a verified body says.

The vendor publishes no schema for its bulk notifications, and several of its surfaces spell the
same fact differently. All of it is read here, totally: any bytes give a Notification, and what
cannot be read is of kind `unreadable`, never an error.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from json.encoder import encode_basestring_ascii
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field, structs

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

_T = TypeVar("_T")


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
    return _read_usual(body) or parse_any(body, asked_for)


def parse_any(body: bytes, asked_for: str | None = None) -> Notification:
    """Do as `parse`, which reads faster what the vendor usually sends and must say the same."""
    try:
        value = parse_json(body)
    except (ValueError, RecursionError):
        return Notification("unreadable")
    return _read(value, asked_for) if isinstance(value, dict) else Notification("other")


def parse_all(body: bytes) -> list[Notification] | None:
    """Read an array of such bodies, as the job list is one; None if it is no array."""
    try:
        entries = parse_json(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, list):
        return None
    return [_read(entry) for entry in entries if isinstance(entry, dict)]


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Read UTF-8 JSON, its numbers as `Number`s. Raises ValueError (or RecursionError)."""
    text = body.decode("utf-8")
    if _deeper_than(text, MAX_DEPTH):
        raise ValueError("nested too deeply")
    return _DECODER.decode(text)


_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Time = Annotated[int, Meta(ge=0, le=MAX_TIME_MS)]


class _Usual(Struct):
    """What `_bulk_job` reads, where each value is of the usual type: all else is read by it."""

    id: str | int
    status: str | None = None
    jobStatus: str | None = None
    job_state: str | None = None
    recordsCount: _Count | None = None
    recordCount: _Count | None = None
    record_count: _Count | None = None
    numOfLeadsProcessed: _Count | None = None
    recordsFailedCount: _Count | None = None
    errorCount: _Count | None = None
    error_count: _Count | None = None
    numOfRowsFailed: _Count | None = None
    error: str | None = None
    message: str | None = None
    infoMessage: str | None = None
    statusMessage: str | None = None
    objectName: str | None = None
    object_name: str | None = None
    jobDirection: str | None = None
    job_direction: str | None = None
    createdDate: _Time | None = None
    bulk_start_time: _Time | None = None
    completionTime: _Time | None = None
    completion_time: _Time | None = None
    bulk_finish_time: _Time | None = None
    job_reset_attempt: _Count | None = None
    jobResetAttempt: _Count | None = None
    dashed_payload: Raw | UnsetType = field(default=UNSET, name="callback-payload")
    callbackPayload: Raw | UnsetType = UNSET
    callback_payload: Raw | UnsetType = UNSET


_decode_usual = msgspec.json.Decoder(_Usual).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def _read_usual(body: bytes) -> Notification | None:
    """Read a body in which nothing is unusual; None if anything is."""
    if not body.isascii() or b"\\u" in body or body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        return None
    try:
        usual = _decode_usual(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    job = usual.id if type(usual.id) is str else str(usual.id)
    status = usual.status or usual.jobStatus or usual.job_state
    if not status or not _ID.fullmatch(job):
        return None
    # Each in the order of its names above: the first that is there.
    reported = usual.recordsCount
    if reported is None:
        reported = _first_of(usual.recordCount, usual.record_count, usual.numOfLeadsProcessed)
    failed = usual.recordsFailedCount
    if failed is None:
        failed = _first_of(usual.errorCount, usual.error_count, usual.numOfRowsFailed)
    message = usual.error
    if message is None:
        message = _first_of(usual.message, usual.infoMessage, usual.statusMessage)
    completed_at = usual.completionTime
    if completed_at is None:
        completed_at = _first_of(usual.completion_time, usual.bulk_finish_time)
    created_at = usual.createdDate
    attempt = usual.job_reset_attempt
    name, direction = usual.objectName, usual.jobDirection
    return Notification(
        "bulk_job",
        job,
        status,
        (usual.jobResetAttempt if attempt is None else attempt) or 0,
        completed_at or None,
        reported,
        failed,
        message,
        usual.object_name if name is None else name,
        usual.job_direction if direction is None else direction,
        usual.bulk_start_time if created_at is None else created_at,
        _payload(usual.dashed_payload, usual.callbackPayload, usual.callback_payload),
    )


def _first_of(*values: _T | None) -> _T | None:
    for value in values:
        if value is not None:
            return value
    return None


def _payload(*values: Raw | UnsetType) -> str | None:
    for raw in values:
        if raw is not UNSET and (text := _plain_json(bytes(raw))) != "null":
            return text
    return None


def _plain_json(raw: bytes) -> str:
    """Do as `json_text`, for ASCII without escaped characters.

    What comes out of msgspec as it went in has no number, name or escape that is written otherwise.
    """
    with suppress(msgspec.MsgspecError, RecursionError):
        plain = msgspec.json.format(raw, indent=-1)
        if _encode(_decode_any(raw)) == plain:
            return plain.decode()
    return json_text(_DECODER.decode(raw.decode()))


def _read(document: Mapping[str, Any], asked_for: str | None = None) -> Notification:
    job = _job_id(document.get("id", None if _WITHOUT_ID.isdisjoint(document) else asked_for))
    status = _first(document, STATUS, lambda value: _text(value) or None)
    if job and status:
        return _bulk_job(document, job, status)
    if "response" in document and ("eventId" in document or "notificationId" in document):
        return Notification("async_request")
    message = document.get("message")
    if isinstance(message, dict) and "eventId" in message:
        return Notification("element_event")
    misfit_id = "id" in document and not job
    misfit_status = not status and any(name in document for name in STATUS)
    return Notification("unreadable" if misfit_id or misfit_status else "other")


def plain_integer(number: str) -> str | None:
    """Write a JSON number plainly: `4.2E7` as `42000000`.

    Gives None if it has a fraction, or takes more than MAX_ID characters.
    """
    if number.isdigit() and len(number) <= MAX_ID:  # JSON has no leading zeros
        return str(number)
    mantissa, _, exponent = number.lower().partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.removeprefix("-").partition(".")
    digits = (whole + fraction).rstrip("0")
    leading_zeros = len(digits) - len(digits.lstrip("0"))
    if not digits:
        return "0"
    point = len(whole) + _bounded_exponent(exponent)
    if point < len(digits) or len(sign) + point - leading_zeros > MAX_ID:
        return None
    return sign + digits[leading_zeros:].ljust(point - leading_zeros, "0")


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
    return json.dumps(value)


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


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


def _bulk_job(document: Mapping[str, Any], job: str, status: str) -> Notification:
    return Notification(
        kind="bulk_job",
        job=job,
        status=status,
        attempt=_first(document, ATTEMPT, _count) or 0,
        completed_at=_first(document, COMPLETED_AT, _time) or None,
        reported=_first(document, REPORTED, _count),
        failed=_first(document, FAILED, _count),
        message=_first(document, MESSAGE, _text_or_json),
        object=_first(document, OBJECT, _text),
        direction=_first(document, DIRECTION, _text),
        created_at=_first(document, CREATED_AT, _time),
        callback_payload=_first(document, CALLBACK_PAYLOAD, json_text),
    )


def _first(
    document: Mapping[str, Any], names: tuple[str, ...], as_: Callable[[object], _T | None]
) -> _T | None:
    for name in names:
        value = document.get(name)
        if value is not None and (usable := as_(value)) is not None:
            return usable
    return None


def _job_id(value: object) -> str | None:
    text = plain_integer(value) if isinstance(value, Number) else value
    return text if isinstance(text, str) and _ID.fullmatch(text) else None


def _text(value: object) -> str | None:
    """Text that every database can store."""
    if isinstance(value, Number) or not isinstance(value, str):
        return None
    if value.isascii() and "\0" not in value:  # as nearly all of it is
        return value
    return UNSTORABLE.sub("\ufffd", value)


def _text_or_json(value: object) -> str | None:
    return json_text(value) if (text := _text(value)) is None else text


def _count(value: object) -> int | None:
    plain = plain_integer(value) if isinstance(value, Number) else value
    if not isinstance(plain, str) or not (plain.isascii() and plain.isdigit()):
        return None
    return int(plain) if len(plain) < 20 and int(plain) <= MAX_COUNT else None


def _time(value: object) -> int | None:
    ms = _count(value)
    return ms if ms is not None and ms <= MAX_TIME_MS else None


def _bounded_exponent(exponent: str) -> int:
    """The exponent as a number; one too long for any body of ours, cut to a billion."""
    magnitude = exponent.lstrip("+-").lstrip("0")
    size = int(magnitude or "0") if len(magnitude) < 10 else 10**9
    return -size if exponent.startswith("-") else size
