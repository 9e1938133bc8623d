"""What the API takes and answers: the structures behind its OpenAPI document."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from receiver.callbacks.diagnosis import Reason
from receiver.callbacks.events import EventRecord
from receiver.jobs.job import Outcome
from receiver.jobs.public import Job, Time, from_record
from receiver.openconnectors.notifications import Kind, Source
from receiver.web.http import Moment

BYTES = "application/octet-stream"
MAX_LIMIT = 1000
MAX_WAIT_SECONDS = 60

Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="How many at most")]
Cursor = Annotated[str, Meta(description="`next` of the page before")]
Word = Annotated[str, Meta(pattern="^[^\\x00]*$", max_length=1000)]
SearchText = Annotated[str, Meta(pattern="^[^\\x00]*$", min_length=1, max_length=1000)]
EventId = Annotated[str, Meta(pattern="^[0-7][0-9a-f]{15}$")]
When = Annotated[
    Moment,
    Meta(
        description="ISO 8601; without a zone it is UTC",
        extra_json_schema={"type": "string", "format": "date-time"},
    ),
]


class JobsQuery(Struct, forbid_unknown_fields=True):
    """Which jobs; filters may be repeated."""

    instance: list[Word] = []
    status: list[Word] = []
    outcome: list[Outcome] = []
    object: list[Word] = []
    direction: list[Word] = []
    updated_after: When | UnsetType = UNSET
    updated_before: When | UnsetType = UNSET
    expires_before: When | UnsetType = UNSET
    q: Annotated[Word, Meta(description="A part of the job's id")] | UnsetType = UNSET
    file: Annotated[SearchText, Meta(description="A part of the file's name")] | UnsetType = UNSET
    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class JobQuery(Struct, forbid_unknown_fields=True):
    """Which of the jobs with this id, and how long to wait for its end."""

    instance: Word | UnsetType = UNSET
    wait: Annotated[int, Meta(ge=0, le=MAX_WAIT_SECONDS, description="Seconds")] = 0


class InstanceQuery(Struct, forbid_unknown_fields=True):
    """Which of the jobs with this id."""

    instance: Word | UnsetType = UNSET


class ErrorsQuery(Struct, forbid_unknown_fields=True):
    """Which of the jobs with this id, and which of its failed records."""

    instance: Word | UnsetType = UNSET
    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class EventsQuery(Struct, forbid_unknown_fields=True):
    """Which events; filters may be repeated.

    Texts are searched for as they stand: of a job, or from `received_after` on, which else is 7
    days before `received_before`.
    """

    instance: list[Word] = []
    kind: list[Kind] = []
    job: list[Word] = []
    received_after: When | UnsetType = UNSET
    received_before: When | UnsetType = UNSET
    body: (
        Annotated[
            SearchText,
            Meta(description="A part of the body; of 7 days, unless a time or a job is named"),
        ]
        | UnsetType
    ) = UNSET
    header: (
        Annotated[SearchText, Meta(description="A part of a header or of its name, as `body`")]
        | UnsetType
    ) = UNSET
    file: (
        Annotated[SearchText, Meta(description="A part of the job's file, as `body`")] | UnsetType
    ) = UNSET
    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class StreamQuery(Struct, forbid_unknown_fields=True):
    """Which events, as they come; filters may be repeated."""

    types: list[Literal["event.received"]] = []
    instance: list[Word] = []
    last_event_id: (
        Annotated[
            EventId,
            Meta(description="Where to go on, if the header `Last-Event-ID` cannot be sent"),
        ]
        | UnsetType
    ) = UNSET


class RejectionsQuery(Struct, forbid_unknown_fields=True):
    """Which rejected deliveries; filters may be repeated."""

    instance: list[Word] = []
    reason: list[Reason] = []
    peer: list[Word] = []
    after: When | UnsetType = UNSET
    before: When | UnsetType = UNSET
    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class InstancesQuery(Struct, forbid_unknown_fields=True):
    """Which instances; all that the token reaches, if none is named."""

    instance: list[Word] = []


class NoQuery(Struct, forbid_unknown_fields=True):
    """Nothing can be asked for."""


class JobPage(Struct):
    """Jobs, newest change first."""

    jobs: list[Job]
    next: str | None


class TimelineEntry(Struct):
    """What one callback, poll or submission changed, or why it changed nothing."""

    at: Time
    source: Source
    status: str | None
    changed: list[str]
    note: str | None
    event: str | None


class Timeline(Struct):
    """What happened to a job, in the order it became known."""

    timeline: list[TimelineEntry]


class ErrorGroup(Struct):
    """Failed records with the same message, but for what differs between records."""

    message: str
    count: int
    examples: list[Any]


class ErrorPage(Struct):
    """The failed records of a job as the vendor gave them, and all of them by message."""

    errors: list[Any]
    groups: list[ErrorGroup]
    next: str | None


class Event(Struct):
    """A verified callback. `key` is the id of the signature key that matched."""

    id: str
    instance: str
    kind: Kind
    job: str | None
    received_at: Time
    last_received_at: Time
    deliveries: int
    key: str
    size: int
    sha256: str
    webhook_id: str | None


class StoredEvent(Event):
    """An event with the headers and the peer of the delivery that was stored; secrets are masked.

    Both are null where they were not stored, as with what was verified only later.
    """

    headers: dict[str, str] | None
    peer: str | None


class StreamedEvent(Struct):
    """A verified callback as it came. body -- base64 of its bytes. headers -- as of StoredEvent."""

    id: str
    instance: str
    kind: Kind
    job: str | None
    received_at: Time
    webhook_id: str | None
    headers: dict[str, str] | None
    body: bytes


class Missed(Struct, omit_defaults=True):
    """What is not in a stream that should be. event, instance, job -- if it is one event."""

    reason: Literal["too_old", "unknown_id", "body_removed"]
    detail: str
    event: str | None = None
    instance: str | None = None
    job: str | None = None


class EventPage(Struct):
    """Events, newest first."""

    events: list[Event]
    next: str | None


class Rejection(Struct):
    """A delivery that was rejected for its signature."""

    id: str
    at: Time
    instance: str
    reason: str
    peer: str
    size: int
    diagnosis: Annotated[str, Meta(description="Why, in words, by the keys there are now")]


class RejectionPage(Struct):
    """Rejected deliveries in the quarantine, newest first; how many came in an hour, by reason.

    Those to an unknown instance, too large or cut off are only counted.
    """

    rejections: list[Rejection]
    last_hour: dict[str, int]
    next: str | None


class VerifiedAgain(Struct):
    """How many quarantined deliveries were looked at, and how many of them are events by now."""

    looked: int
    verified: int


class Submission(Struct):
    """An upload or download that was cut off while it was sent: its job may exist."""

    id: str
    instance: str
    at: Time
    object: str | None
    file: str | None
    submitted: Annotated[int | None, Meta(description="Records")]
    submitted_by: str


class Submissions(Struct):
    """Submissions with unknown result, oldest first."""

    submissions: list[Submission]


class Instance(Struct):
    """A connector instance: how many signature keys it has, and whether it can be asked about."""

    name: str
    hub: str | None
    keys: int
    vendor_secrets: bool


class Instances(Struct):
    """The instances that the token reaches, by name."""

    instances: list[Instance]


def stored_event(record: EventRecord) -> StoredEvent:
    """Show an event with what came with its body."""
    return from_record(record, StoredEvent, headers=_headers(record))


def streamed_event(record: EventRecord, body: bytes) -> StreamedEvent:
    """Show an event with all that came."""
    return from_record(record, StreamedEvent, headers=_headers(record), body=body)


def _headers(record: EventRecord) -> dict[str, str] | None:
    return msgspec.json.decode(record.headers or "null", type=dict[str, str] | None)


def instance(row: Mapping[str, Any]) -> Instance:
    """Show an instance; one of the environment alone has no row of its own."""
    vendor_secrets = bool(row.get("vendor_secrets"))
    return Instance(row["name"], row.get("hub"), row.get("keys", 0), vendor_secrets)
