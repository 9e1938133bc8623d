"""The tables; those of alarms and of messages to others have a module each.

Times are ms since the epoch; whatever a stranger sent is bytes.
"""

from typing import Annotated

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Sequence,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only in an INTEGER primary key.
RowNumber = BigInteger().with_variant(Integer, "sqlite")


def _bytewise(length: int) -> String:
    """Text that is compared byte by byte on either database, whatever its locale and version."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


InstanceName = Annotated[str, mapped_column(_bytewise(64))]
JobId = Annotated[str, mapped_column(_bytewise(200))]

# What some indexes are limited to. In full where they are to serve: a parameter would hide it.
UNDER_WAY = "under_way"
NOT_A_JOB = "kind <> 'bulk_job'"

IS_UNDER_WAY = text(f"jobs.{UNDER_WAY}")

# An event's or timeline entry's `n` is its time, ms, and a number: its id and its place in lists.
NUMBER_BITS = 20

FORGOTTEN = ""  # key of an event of which only identity and counts are left


def partial_index(name: str, condition: str, *columns: str, unique: bool = False) -> Index:
    """An index of some rows only, on either database."""
    some = text(condition)
    return Index(name, *columns, unique=unique, sqlite_where=some, postgresql_where=some)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {int: BigInteger, bytes: LargeBinary, str: Text}  # noqa: RUF012


class Instance(Base):
    """A connector instance; its secrets are encrypted."""

    __tablename__ = "instances"
    name: Mapped[InstanceName] = mapped_column(primary_key=True)
    created_at: Mapped[int]
    hub: Mapped[str | None]
    element_token: Mapped[bytes | None]
    user_secret: Mapped[bytes | None]
    organization_secret: Mapped[bytes | None]


class StoredKey(Base):
    """A signature key of an instance, encrypted together with its place."""

    __tablename__ = "signature_keys"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    instance: Mapped[InstanceName] = mapped_column(ForeignKey("instances.name", ondelete="CASCADE"))
    sealed: Mapped[bytes]
    created_at: Mapped[int]
    retired_at: Mapped[int | None]
    last_used_at: Mapped[int | None]


class KeyVersion(Base):
    """One row that counts the changes to instances and keys, so that caches notice them."""

    __tablename__ = "key_version"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    version: Mapped[int]


class Token(Base):
    """An API token: its SHA-256, what it may do, until when, and for which instances."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str]
    sha256: Mapped[bytes] = mapped_column(unique=True)
    scope: Mapped[str]
    instances: Mapped[str | None]  # JSON array of names; None is all
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]


class SignIn(Base):
    """Someone signed in at the dashboard: the SHA-256 of the session's id, and with which token."""

    __tablename__ = "sessions"
    sha256: Mapped[bytes] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[int]
    last_seen_at: Mapped[int]
    expires_at: Mapped[int]
    notice: Mapped[str | None]  # what the next page shows them, once


# Numbers the events and entries of one millisecond over all nodes, a batch with each step; SQLite
# has one writer at a time, who looks for the last number.
MAX_BATCH = 256
EVENT_NUMBERS = Sequence(
    "event_numbers", increment=MAX_BATCH, start=0, minvalue=0, metadata=Base.metadata
)


class Event(Base):
    """A verified callback, its bytes, and what it changed in its job.

    (instance, job, sha256) is what makes two deliveries one event; it never changes, so that a
    repeat is recognised for ever. job -- '' where the body is not about one. key -- which signature
    key matched; '' once the event is forgotten: then little but identity and count are left.
    changed -- JSON array of names of facts. body -- None once it was pruned or erased.
    """

    __tablename__ = "events"
    n: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=False)
    instance: Mapped[InstanceName]
    job: Mapped[JobId]
    sha256: Mapped[bytes]
    kind: Mapped[str]
    deliveries: Mapped[int]
    last_received_at: Mapped[int]
    key: Mapped[str]
    size: Mapped[int]
    webhook_id: Mapped[str | None]
    headers: Mapped[str | None]  # JSON
    peer: Mapped[str | None]
    status: Mapped[str | None]
    changed: Mapped[str | None]
    note: Mapped[str | None]
    body: Mapped[bytes | None]
    __table_args__ = (
        Index("events_identity", "instance", "job", "sha256", unique=True),
        Index("events_by_instance", "instance", "n"),
        partial_index("events_by_kind", NOT_A_JOB, "kind", "n"),
    )


class TimelineEntry(Base):
    """What a poll or a submission changed in a job, or why it changed nothing.

    With the events of the job, in the order of `n`, it is the job's timeline.
    """

    __tablename__ = "timeline"
    n: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=False)
    instance: Mapped[InstanceName]
    job: Mapped[JobId]
    source: Mapped[str]
    status: Mapped[str | None]
    changed: Mapped[str]  # JSON array of names of facts
    note: Mapped[str | None]
    __table_args__ = (Index("timeline_by_job", "instance", "job"),)


class JobRow(Base):
    """A job: its registers as merged so far, what it is sorted by, and what is to be done for it.

    facet -- what lists filter by and summaries count. under_way -- the vendor is to be asked for
    it: its end is not known, or two ends contradict each other.
    """

    __tablename__ = "jobs"
    # First, so that a job is one look-up, whatever the number of instances.
    id: Mapped[JobId] = mapped_column(primary_key=True)
    instance: Mapped[InstanceName] = mapped_column(primary_key=True)
    facet: Mapped[int]
    updated_at: Mapped[int]
    revision: Mapped[int]
    events: Mapped[int]
    first_seen_at: Mapped[int]
    files_expire_at: Mapped[int | None]
    callback_due: Mapped[bool]
    learnt_by: Mapped[str | None]
    # Where the client that submitted it wants its callback, after us.
    client_url: Mapped[str | None]
    under_way: Mapped[bool]
    # Under way: when to ask the vendor next (None: when it is overdue), and how often we did.
    poll_at: Mapped[int | None]
    polls: Mapped[int] = mapped_column(server_default="0")
    # How often in a row the vendor did not know it, since when, and when it was closed as lost.
    misses: Mapped[int] = mapped_column(server_default="0")
    missing_since: Mapped[int | None]
    closed_at: Mapped[int | None]
    # Ended with failed records: when to fetch their errors next; None once they are kept.
    errors_at: Mapped[int | None]
    errors_tries: Mapped[int] = mapped_column(server_default="0")
    registers: Mapped[str]  # JSON of job.Registers
    __table_args__ = (
        # A page by filter merges the ranges of its facets. Each index by which lists are read ends
        # in the key, by which they are sorted where times are equal.
        Index("jobs_by_facet", "facet", "updated_at", "id", "instance"),
        Index("jobs_by_change", "updated_at", "id", "instance"),
        partial_index(
            "jobs_by_expiry", "files_expire_at IS NOT NULL", "files_expire_at", "id", "instance"
        ),
        partial_index("jobs_with_errors_due", "errors_at IS NOT NULL", "instance", "errors_at"),
        # With what it is limited to, or SQLite would look that up in each row.
        partial_index(
            "jobs_under_way", UNDER_WAY, "facet", "first_seen_at", "under_way", "id", "instance"
        ),
    )


class Facet(Base):
    """What jobs are filtered by and counted under: the number stands for the tuple of the rest.

    The number is computed from the tuple, never looked up. other -- stands for all tuples of the
    same instance, outcome and callback_lost beyond those an instance may have: status, object and
    direction are then those of the job's registers, and a filter by them reads these rows.
    """

    __tablename__ = "facets"
    facet: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=False)
    instance: Mapped[InstanceName]
    status: Mapped[str | None]
    outcome: Mapped[str]
    object: Mapped[str | None]
    direction: Mapped[str | None]
    callback_lost: Mapped[bool]
    other: Mapped[bool] = mapped_column(server_default=false())
    __table_args__ = (Index("facets_by_instance", "instance"),)


class Count(Base):
    """How many jobs a facet has now (hour 0), or has whose files expire in an hour since the epoch.

    Rows that differ in nothing but their slot are added up: on PostgreSQL each process writes to a
    slot of its own, mostly, so that nodes do not wait for each other. The hour comes first: what
    changes lies together then.
    """

    __tablename__ = "counts"
    hour: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    facet: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int]
    __table_args__ = ({"sqlite_with_rowid": False},)


class RecordError(Base):
    """A record that the vendor could not load, in the words of the vendor."""

    __tablename__ = "record_errors"
    job: Mapped[JobId] = mapped_column(primary_key=True)
    instance: Mapped[InstanceName] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    entry: Mapped[str]  # JSON
    message: Mapped[str]  # what differs between records left out, so that equal causes are equal


class Submission(Base):
    """An upload or query sent to the vendor for a client of ours; job is None until it answered."""

    __tablename__ = "submissions"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    instance: Mapped[InstanceName]
    at: Mapped[int]
    object: Mapped[str | None]
    file: Mapped[str | None]
    submitted: Mapped[int | None]
    submitted_by: Mapped[str]
    state: Mapped[str]  # sending, taken, refused, unclear, dismissed
    job: Mapped[JobId | None]
    __table_args__ = (Index("submissions_by_state", "state", "at"),)


class Pace(Base):
    """When an instance's vendor may be asked next, over all nodes, and how often it failed."""

    __tablename__ = "paces"
    instance: Mapped[InstanceName] = mapped_column(primary_key=True)
    next_at: Mapped[int]
    failures: Mapped[int]
    blocked_until: Mapped[int]
    reason: Mapped[str | None]  # of the latest failure
    queued: Mapped[int | None]  # deliveries the vendor held back for us when last asked
    queued_asked_at: Mapped[int | None]


class Question(Base):
    """A job that the vendor was asked for a moment ago; it need not be stored, nor exist."""

    __tablename__ = "questions"
    instance: Mapped[InstanceName] = mapped_column(primary_key=True)
    id: Mapped[JobId] = mapped_column(primary_key=True)
    at: Mapped[int]


class UsualTime(Base):
    """How long jobs of an object mostly take, so that those that take longer are overdue."""

    __tablename__ = "usual_times"
    instance: Mapped[InstanceName] = mapped_column(primary_key=True)
    object: Mapped[str] = mapped_column(String(200), primary_key=True)  # '' where none is known
    ms: Mapped[int]


class Heartbeat(Base):
    """One row: when any node was last alive and could write. A gap is an outage of ours.

    steady_at -- the latest time that the clock reached without a doubtful step; 0: not yet known.
    """

    __tablename__ = "heartbeat"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[int]
    steady_at: Mapped[int] = mapped_column(server_default="0")


class Retention(Base):
    """One row: when old rows are looked for next, and how far they are gone.

    next_at -- whoever moves it on makes the pass. bodies_before -- no event received before then
    has a body; events_before -- nor is more than its identity left; errors_before -- nor has a job
    that changed last before then failed records: no pass need look there again.
    """

    __tablename__ = "retention"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    next_at: Mapped[int]
    bodies_before: Mapped[int]
    events_before: Mapped[int]
    errors_before: Mapped[int]


class Rejection(Base):
    """The bounded quarantine: a delivery to a known instance whose signature was not right."""

    __tablename__ = "rejections"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    at: Mapped[int]
    instance: Mapped[InstanceName]
    reason: Mapped[str]
    peer: Mapped[str]
    size: Mapped[int]
    signature: Mapped[bytes | None]
    body: Mapped[bytes | None]
    __table_args__ = (Index("rejections_by_time", "at", "id"),)


class RejectionCount(Base):
    """How many deliveries were rejected in a minute, for a reason; '' is an unknown instance."""

    __tablename__ = "rejection_counts"
    minute: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(String(32), primary_key=True)
    instance: Mapped[InstanceName] = mapped_column(primary_key=True)
    count: Mapped[int]


class RejectedAddress(Base):
    """How often an address was rejected since its window began; shared by all nodes."""

    __tablename__ = "refused_addresses"
    peer: Mapped[str] = mapped_column(String(64), primary_key=True)
    since: Mapped[int]
    count: Mapped[int]


class AuditEntry(Base):
    """One thing that someone did; numbered without gaps, each chained to the one before it."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=False)
    at: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[str]
    request: Mapped[str | None]  # the id of the HTTP request, where there was one
    hash: Mapped[bytes]


class AuditHead(Base):
    """One row: how many entries the audit has, and the hash of the last."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    entries: Mapped[int]
    hash: Mapped[bytes]
