"""How the vendor's API is written: paths, headers, parameters, and the names of a job's facts.

One vocabulary for the relay, the client, forwarded notifications and the sandbox. Reading is total:
what cannot be read is a ValueError or None, never another error. Sources: the vendor's OpenAPI
document (`BulkApi`), its published examples and its public integration tests.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

BASE = "/elements/api-v2"
CALLBACK_URL_HEADER = "Elements-Async-Callback-Url"
WEBHOOK_ID_HEADER = "Elements-Webhook-Id"
NEXT_PAGE_HEADER = "elements-next-page-token"
COUNT_HEADER = "elements-returned-count"
DELIVERIES = "/notifications/subscriptions/deliveries"
QUEUED = "channel='webhook' and status='queued'"

PAGE_SIZE = 200
MAX_PAGE_SIZE = 2000
MAX_RETRY_AFTER = 3600  # seconds
Format: TypeAlias = Literal["csv", "json", "jsonl"]
MEDIA_TYPES: Mapping[Format, str] = {
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/jsonl",
}
FORMATS: Mapping[str, Format] = {  # of `POST /bulk/download`, as clients and documents write them
    **{name: name for name in MEDIA_TYPES},
    **{media_type: name for name, media_type in MEDIA_TYPES.items()},
    "txt/csv": "csv",
}

# One fact, its names: of bulk v1 and v2, of v3's status, of the job list, then what else was seen.
# Whoever reads takes the first usable one; the first two are what is written. So a new name stands
# last.
STATUS = ("status", "jobStatus", "job_state")
REPORTED = ("recordsCount", "recordCount", "record_count", "numOfLeadsProcessed")
FAILED = ("recordsFailedCount", "errorCount", "error_count", "numOfRowsFailed")
MESSAGE = ("error", "message", "infoMessage", "statusMessage")
OBJECT = ("objectName", "object_name")
DIRECTION = ("jobDirection", "job_direction")
CREATED_AT = ("createdDate", "bulk_start_time")
COMPLETED_AT = ("completionTime", "completion_time", "bulk_finish_time")
ATTEMPT = ("job_reset_attempt", "jobResetAttempt")
CALLBACK_PAYLOAD = ("callback-payload", "callbackPayload", "callback_payload")

_FAILURES = frozenset({"ERROR", "ABORTED"})

Kind: TypeAlias = Literal[
    "objects",
    "upload",
    "query",
    "download",
    "status",
    "errors",
    "jobs",
    "cancel",
    "result",
    "other",
]
Shape: TypeAlias = Literal["v2", "v3", "list", "document"]
Body: TypeAlias = dict[str, Any]

_ROUTES: tuple[tuple[str, str, Kind], ...] = (  # the first that fits
    ("GET", "/objects", "objects"),
    ("GET", "/bulk/jobs", "jobs"),
    ("POST", "/bulk/query", "query"),
    ("POST", "/bulk/download", "download"),
    ("POST", "/bulk/workflows", "other"),
    ("POST", "/bulk/(?P<object>[^/]+)", "upload"),
    ("GET", "/bulk/(?P<job>[^/]+)/status", "status"),
    ("GET", "/bulk/(?P<job>[^/]+)/errors", "errors"),
    ("PUT", "/bulk/(?P<job>[^/]+)/cancel", "cancel"),
    ("GET", "/bulk/(?P<job>[^/]+)/(?P<object>[^/]+)", "result"),
)
_PART = re.compile(
    r"(organization(?![^ \t])|(?:element|user)(?=[ \t]+[!-+\--~]+\Z))[ \t]*+(.*)",
    re.IGNORECASE | re.DOTALL,
)
_AND = re.compile(r"(?<!\s)\s++and\s++", re.IGNORECASE)
_CONDITION = re.compile(r"\s*(\w+)\s*=\s*(?:'([^']*)'|([0-9]+))\s*")
_FROM = re.compile(r"\bfrom\s++([^\s,;()\[\]`\"']{1,200})", re.IGNORECASE)
_DIGITS = re.compile("[0-9]{1,18}")  # what 64 bits hold
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


class Route(NamedTuple):
    """What a request is about; job and object decoded, None where the path names none."""

    kind: Kind
    job: str | None = None
    object: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """A job as the vendor would write it. Times in ms since the epoch, numbers of records."""

    id: str
    status: str | None
    reported: int | None = None
    failed: int | None = None
    message: str | None = None
    object: str | None = None
    direction: str | None = None
    created_at: int | None = None
    completed_at: int | None = None
    attempt: int | None = None
    instance_id: int | None = None
    file_format: str | None = None
    warnings: int = 0

    @property
    def number(self) -> int | str:
        """The id as a number, where that loses nothing: `007` stays a text."""
        plain = self.id.isascii() and self.id.isdigit() and len(self.id) < 19
        return int(self.id) if plain and str(int(self.id)) == self.id else self.id

    @property
    def error(self) -> str | None:
        """The message, only if the job failed."""
        return self.message if is_failure(self.status) else None


# A job in each of the vendor's shapes: of bulk v1 and v2, of v3's status, of the job list, and the
# document's own `BulkStatus`, which has no id. An attribute of JobFacts, and its names there.
_SHAPES: tuple[Shape, ...] = ("v2", "v3", "list", "document")
_NAMES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("id", ("id", None, None, None)),
    ("number", (None, "id", "id", "batchId")),
    ("status", ("status", "jobStatus", "status", "status")),
    ("status", (None, None, "job_state", None)),
    ("instance_id", ("instanceId", None, "instanceId", None)),
    ("reported", REPORTED),
    ("failed", FAILED),
    ("error", ("error", None, None, None)),
    ("message", ("message", "statusMessage", None, "message")),
    ("object", (None, *OBJECT, None)),
    ("direction", (None, *DIRECTION, None)),
    ("created_at", (None, "createdDate", "createdDate", None)),
    ("completed_at", (None, "completionTime", "completion_time", None)),
    ("file_format", (None, "fileFormat", "fileFormat", None)),
    ("warnings", (None, None, None, "numOfRowsWithWarning")),
    ("attempt", ("job_reset_attempt",) * 4),
)


def read_route(method: str, path: str) -> Route:
    """Read a path below the base, percent-encoded as it came.

    Raises ValueError for one that would lead out of its place, to whatever else our secrets open,
    or that holds control characters.
    """
    for segment in re.split(r"[/\\]", unquote(path, errors="replace")):
        # Java servers cut a segment at its semicolon before they look for dots.
        if segment.partition(";")[0] in (".", ".."):
            raise ValueError("a segment of dots")
    if _UNSAFE.search(unquote(path, errors="replace")):
        raise ValueError("a control character")
    for expected, pattern, kind in _ROUTES:
        if method == expected and (match := re.fullmatch(f"(?:/hubs/[^/]+)?{pattern}/?", path)):
            named = {name: unquote(value) for name, value in match.groupdict().items()}
            return Route(kind, **named)
    return Route("other")


def read_authorization(text: str) -> Mapping[str, str]:
    """Read `Element <token>, User <secret>[, Organization <secret>]`, in any order and case.

    Return the values by lower-case name; none of them if anything else stands there. What an
    Organization part holds is not looked at.
    """
    given = [part.strip(" \t") for part in text.split(",")]
    parts = [_PART.fullmatch(part) for part in given if part]
    named = {part[1].lower(): part[2] for part in parts if part}
    return named if len(named) == len(parts) else {}


def read_where(text: str | None, fields: Collection[str]) -> dict[str, str]:
    """Read `field='value' and …`; None holds no condition. Raises ValueError."""
    conditions: dict[str, str] = {}
    for part in [] if text is None else _AND.split(text):
        condition = _CONDITION.fullmatch(part)
        if condition is None or condition[1] not in fields:
            raise ValueError(f"where must be field='value', field one of {', '.join(fields)}")
        conditions[condition[1]] = condition[2] if condition[3] is None else condition[3]
    return conditions


def read_page(args: Mapping[str, str], prefix: str = "") -> tuple[int, int]:
    """Read where a page starts, and its size. Raises ValueError.

    args -- `pageSize`; `nextPage`, a number after `prefix`, or `page`, 1 being the first.
    """
    size = _read_number(args, "pageSize", str(PAGE_SIZE))
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise ValueError(f"pageSize must be 1 to {MAX_PAGE_SIZE}")
    if "nextPage" in args:
        return _read_number(args, "nextPage", prefix=prefix), size
    return min(size * max(_read_number(args, "page", "1") - 1, 0), 10**18), size


def page_headers(count: int, following: str | None) -> dict[str, str]:
    """Write the headers of a page of entries; following -- the token of the next one."""
    headers = {COUNT_HEADER: str(count)}
    return headers if following is None else {**headers, NEXT_PAGE_HEADER: following}


def read_retry_after(text: str, now: float, limit: int = MAX_RETRY_AFTER) -> int | None:
    """Read `Retry-After` (RFC 9110, 10.2.3), seconds or a date, as seconds from now.

    now -- seconds since the epoch. None where it is missing or cannot be read.
    """
    if _DIGITS.fullmatch(text):
        return min(int(text), limit)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(int(seconds) + 1, 0), limit)


def queried_object(query: str) -> str | None:
    """Return the object that `select … from <object>` names."""
    match = _FROM.search(query)
    return match[1] if match else None


def write(job: JobFacts, shape: Shape) -> Body:
    """Write a job; of facts that are not known there is no word."""
    column = _SHAPES.index(shape)
    facts = {names[column]: getattr(job, fact) for fact, names in _NAMES}
    return {name: value for name, value in facts.items() if name and value is not None}


def both_vocabularies(body: Mapping[str, Any]) -> Body:
    """Return a status with its facts under the names of v2 and v3 too, where they are missing."""
    result = dict(body)
    for names in (STATUS, REPORTED, FAILED):
        _add_names(result, names, names[:2])
    for others in (OBJECT, DIRECTION, CREATED_AT, COMPLETED_AT):
        _add_names(result, others, others[:1])
    failed = is_failure(result.get("status"))
    _add_names(result, MESSAGE, ("error", "statusMessage") if failed else ("statusMessage",))
    return result


def is_failure(status: object) -> bool:
    """Whether a status says that the job ended by a fault, of the vendor's or the endpoint's."""
    return isinstance(status, str) and status.upper() in _FAILURES


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def write_error(request_id: str, message: str | None) -> Body:
    """Write an error as the vendor does."""
    return {"requestId": request_id, "message": message}


def _read_number(args: Mapping[str, str], name: str, default: str = "", prefix: str = "") -> int:
    text = args.get(name, default)
    digits = text.removeprefix(prefix)
    if not (text.startswith(prefix) and _DIGITS.fullmatch(digits)):
        raise ValueError(f"{name} must be a number, or what the page before it named")
    return int(digits)


def _add_names(body: Body, spellings: Sequence[str], wanted: Sequence[str]) -> None:
    value = next((body[name] for name in spellings if body.get(name) is not None), None)
    if value is not None:
        for name in wanted:
            body.setdefault(name, value)
