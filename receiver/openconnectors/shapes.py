"""How the vendor's API is written: paths, headers, parameters, and the names of a job's facts.

One vocabulary for the relay, the client, forwarded notifications and the sandbox. Reading is total:
what cannot be read is a ValueError or None, never another error. Sources: the vendor's OpenAPI
document (`BulkApi`), its published examples and its public integration tests.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
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
# last, and `notifications._Usual` reads it too, or the fast reader passes it over.
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
_PART = re.compile(r"(element|user|organization)[ \t]+([!-+\--~]+)", re.IGNORECASE)
_AND = re.compile(r"(?<!\s)\s++and\s++", re.IGNORECASE)
_CONDITION = re.compile(r"\s*(\w+)\s*=\s*(?:'([^']*)'|([0-9]+))\s*")
_FROM = re.compile(r"\bfrom\s++([^\s,;()\[\]`\"']{1,200})", re.IGNORECASE)
_PAGE_NUMBER = re.compile("[0-9]{1,9}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


class Route(NamedTuple):
    """What a request is about; job and object decoded, None where the path names none."""

    kind: Kind
    job: str | None = None
    object: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """A job as the vendor would write it; times in ms since the epoch.

    reported, failed -- numbers of records. callback_payload -- whatever JSON can hold.
    """

    id: str
    status: str | None
    reported: int | None = None
    failed: int | None = None
    message: str | None = None
    object: str | None = None
    direction: str | None = None
    created_at: int | None = None
    completed_at: int | None = None
    attempt: int = 0
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
# document's own `BulkStatus`, which has no id. Names, and the attributes of JobFacts they show.
SHAPES: Mapping[Shape, Mapping[str, str]] = {
    "v2": {
        "id": "id",
        "status": "status",
        "instanceId": "instance_id",
        "recordsCount": "reported",
        "recordsFailedCount": "failed",
        "error": "error",
        "message": "message",
    },
    "v3": {
        "id": "number",
        "jobStatus": "status",
        "objectName": "object",
        "jobDirection": "direction",
        "recordCount": "reported",
        "errorCount": "failed",
        "statusMessage": "message",
        "createdDate": "created_at",
        "completionTime": "completed_at",
        "fileFormat": "file_format",
    },
    "list": {
        "id": "number",
        "status": "status",
        "job_state": "status",
        "object_name": "object",
        "job_direction": "direction",
        "record_count": "reported",
        "error_count": "failed",
        "createdDate": "created_at",
        "completion_time": "completed_at",
        "instanceId": "instance_id",
        "fileFormat": "file_format",
    },
    "document": {
        "batchId": "number",
        "status": "status",
        "message": "message",
        "numOfLeadsProcessed": "reported",
        "numOfRowsFailed": "failed",
        "numOfRowsWithWarning": "warnings",
    },
}


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

    Gives the values by lower-case name. Raises ValueError, whose text holds no secret.
    """
    parts = [_PART.fullmatch(part.strip(" \t")) for part in text.split(",")]
    named = {part[1].lower(): part[2] for part in parts if part}
    if len(named) != len(parts):
        raise ValueError("must be: Element <token>, User <secret>")
    return named


def read_where(text: str, fields: Collection[str]) -> dict[str, str]:
    """Read `field='value' and …`. Raises ValueError for anything else, or another field."""
    conditions: dict[str, str] = {}
    for part in _AND.split(text):
        condition = _CONDITION.fullmatch(part)
        if condition is None or condition[1] not in fields:
            raise ValueError(f"where must be field='value', field one of {', '.join(fields)}")
        conditions[condition[1]] = condition[2] if condition[3] is None else condition[3]
    return conditions


def read_page_size(text: str | None) -> int:
    """Read `pageSize`. Raises ValueError."""
    if text is None:
        return PAGE_SIZE
    size = int(text) if _PAGE_NUMBER.fullmatch(text) else 0
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise ValueError(f"pageSize must be 1 to {MAX_PAGE_SIZE}")
    return size


def read_page(text: str) -> int:
    """Read `page`, 1 being the first: how many pages stand before it. Raises ValueError."""
    if not _PAGE_NUMBER.fullmatch(text):
        raise ValueError("page must be a number")
    return max(int(text) - 1, 0)


def read_retry_after(text: str, now: float) -> int | None:
    """Read `Retry-After`, seconds or a date, as seconds from now, cut at MAX_RETRY_AFTER.

    now -- seconds since the epoch. None where it is missing or cannot be read.
    """
    if re.fullmatch("[0-9]{1,10}", text):
        return min(int(text), MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(int(seconds) + 1, 0), MAX_RETRY_AFTER)


def queried_object(query: str) -> str | None:
    """Give the object that `select … from <object>` names."""
    match = _FROM.search(query)
    return match[1] if match else None


def write(job: JobFacts, shape: Shape) -> Body:
    """Write a job; of facts that are not known there is no word."""
    facts = {name: getattr(job, fact) for name, fact in SHAPES[shape].items()}
    facts["job_reset_attempt"] = job.attempt or None
    return {name: value for name, value in facts.items() if value is not None}


def both_vocabularies(body: Mapping[str, Any]) -> Body:
    """Give a status its facts under the names of v2 and of v3; what stands there stays as it is."""
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


def write_error(request_id: str, message: str | None) -> Body:
    """Write an error as the vendor does."""
    return {"requestId": request_id, "message": message}


def _add_names(body: Body, spellings: Sequence[str], wanted: Sequence[str]) -> None:
    value = next((body[name] for name in spellings if body.get(name) is not None), None)
    if value is not None:
        for name in wanted:
            body.setdefault(name, value)
