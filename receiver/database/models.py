"""The tables. Times are ms since the epoch; whatever a stranger sent is bytes."""

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only in an INTEGER primary key.
RowNumber = BigInteger().with_variant(Integer, "sqlite")

# What some indexes are limited to. In full where they are to serve: a parameter would hide it.
UNDER_WAY = "outcome IN ('pending', 'unknown')"
UNREADABLE = "kind = 'unreadable'"
CALLBACK_LOST = "callback_lost"
CONTESTED = "contested"

IS_UNDER_WAY = text(UNDER_WAY)
IS_CONTESTED = text(CONTESTED)


def _where(name: str, condition: str, *columns: str) -> Index:
    """An index of some rows only, on either database."""
    some = text(condition)
    return Index(name, *columns, sqlite_where=some, postgresql_where=some)


def _where_known(name: str, column: str, *columns: str) -> Index:
    return _where(name, f"{column} IS NOT NULL", column, *columns)


FORGOTTEN = 0  # received_at of an event of which little but the hash is kept


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {int: BigInteger, bytes: LargeBinary, str: Text}  # noqa: RUF012


class Instance(Base):
    """A connector instance; its secrets are sealed."""

    __tablename__ = "instances"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[int]
    hub: Mapped[str | None]
    element_token: Mapped[bytes | None]
    user_secret: Mapped[bytes | None]
    organization_secret: Mapped[bytes | None]


class StoredKey(Base):
    """A signature key of an instance, sealed together with its place."""

    __tablename__ = "signature_keys"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    instance: Mapped[str] = mapped_column(ForeignKey("instances.name", ondelete="CASCADE"))
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
    """Someone signed in at the dashboard: the SHA-256 of the session's id, and with which token.

    notice -- what the next page tells them, once.
    """

    __tablename__ = "sessions"
    sha256: Mapped[bytes] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[int]
    last_seen_at: Mapped[int]
    expires_at: Mapped[int]
    notice: Mapped[str | None]


class Event(Base):
    """A verified callback. (instance, sha256) is what makes two deliveries one event.

    Bodies lie apart, so that they can be dropped while the hash goes on recognising a repeat. An
    event with received_at FORGOTTEN has hardly more than its id, hash and count of deliveries left.
    """

    __tablename__ = "events"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    instance: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[bytes]
    kind: Mapped[str]
    job: Mapped[str | None]
    received_at: Mapped[int]
    last_received_at: Mapped[int]
    deliveries: Mapped[int]
    key: Mapped[str]
    size: Mapped[int]
    webhook_id: Mapped[str | None]
    __table_args__ = (
        Index("events_identity", "instance", "sha256", unique=True),
        Index("events_by_receipt", "received_at", "id"),
        Index("events_by_instance", "instance", "received_at", "id"),
        _where("events_by_kind", "kind <> 'bulk_job'", "kind", "received_at", "id"),
        _where("events_unreadable", UNREADABLE, "instance", "kind"),
        Index("events_by_job", "job", "received_at", "id"),
    )


class Body(Base):
    """The exact bytes of an event."""

    __tablename__ = "bodies"
    event: Mapped[str] = mapped_column(
        ForeignKey("events.id", ondelete="CASCADE"), primary_key=True
    )
    body: Mapped[bytes]


class JobRow(Base):
    """A job: its registers as merged so far, and what lists filter and sort by."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    instance: Mapped[str] = mapped_column(String(64), primary_key=True)
    registers: Mapped[str]  # JSON of jobs.job.Registers
    revision: Mapped[int]
    events: Mapped[int]
    first_seen_at: Mapped[int]
    updated_at: Mapped[int]
    status: Mapped[str | None]
    outcome: Mapped[str]
    object: Mapped[str | None]
    direction: Mapped[str | None]
    learnt_by: Mapped[str | None]
    files_expire_at: Mapped[int | None]
    callback_due: Mapped[bool] = mapped_column(server_default=false())
    callback_lost: Mapped[bool] = mapped_column(server_default=false())
    # Where the client that submitted it wants to be told, after us.
    client_url: Mapped[str | None]
    # Its endings contradict each other, and the vendor has not been asked since.
    contested: Mapped[bool] = mapped_column(server_default=false())
    # Under way or contested: when to ask next (None: when it is overdue), and how often we did.
    poll_at: Mapped[int | None]
    polls: Mapped[int] = mapped_column(server_default="0")
    # Ended with failed records: when to fetch their errors next; None once they are kept.
    errors_at: Mapped[int | None]
    errors_tries: Mapped[int] = mapped_column(server_default="0")
    __table_args__ = (
        Index("jobs_by_change", "updated_at", "id", "instance"),
        _where("jobs_with_errors_due", "errors_at IS NOT NULL", "instance", "errors_at"),
        # One for each filter, in the order of pages: see paging.py. At a million jobs on SQLite
        # they cost 9 us for a new job, and 30 us for each change of one.
        Index("jobs_by_instance", "instance", "updated_at", "id"),
        _where_known("jobs_by_status", "status", "updated_at", "id", "instance"),
        Index("jobs_by_outcome", "outcome", "updated_at", "id", "instance"),
        _where_known("jobs_by_object", "object", "updated_at", "id", "instance"),
        _where_known("jobs_by_direction", "direction", "updated_at", "id", "instance"),
        Index("jobs_by_expiry", "files_expire_at"),
        _where("jobs_under_way", UNDER_WAY, "outcome", "first_seen_at", "instance", "object"),
        _where("jobs_contested", CONTESTED, "instance"),
        _where("jobs_lost", CALLBACK_LOST, "updated_at", "id", "instance"),
        Index("jobs_by_age", "instance", "first_seen_at", "id"),
    )


class CounterRow(Base):
    """How many jobs there are of a kind; `storage.counters` tells of which.

    Rows that differ in nothing but their slot are added up: each process has a slot of its own to
    write to, mostly.
    """

    __tablename__ = "counters"
    measure: Mapped[str] = mapped_column(String(32), primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    instance: Mapped[str] = mapped_column(String(64), primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int]


class RecordError(Base):
    """A record that the vendor could not load, as the vendor tells it."""

    __tablename__ = "record_errors"
    job: Mapped[str] = mapped_column(String(200), primary_key=True)
    instance: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    entry: Mapped[str]  # JSON
    message: Mapped[str]  # what differs between records left out, so that equal causes are equal


class Submission(Base):
    """An upload or query sent to the vendor for a client of ours; job is None until it answered."""

    __tablename__ = "submissions"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    instance: Mapped[str] = mapped_column(String(64))
    at: Mapped[int]
    object: Mapped[str | None]
    file: Mapped[str | None]
    submitted: Mapped[int | None]
    submitted_by: Mapped[str]
    state: Mapped[str]  # sending, taken, refused, unclear
    job: Mapped[str | None]
    __table_args__ = (Index("submissions_by_state", "state", "at"),)


class Pace(Base):
    """When an instance's vendor may be asked next, over all nodes, and how it held up."""

    __tablename__ = "paces"
    instance: Mapped[str] = mapped_column(String(64), primary_key=True)
    next_at: Mapped[int]
    failures: Mapped[int]
    blocked_until: Mapped[int]
    queued: Mapped[int | None]  # deliveries the vendor held back for us when last asked
    queued_asked_at: Mapped[int | None]


class UsualTime(Base):
    """How long jobs of an object mostly take, so that those that take longer are overdue."""

    __tablename__ = "usual_times"
    instance: Mapped[str] = mapped_column(String(64), primary_key=True)
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
    """One row: when old rows are looked for next, how far they are gone, and what went last.

    next_at -- whoever moves it on makes the pass. bodies_before -- no event received before then
    has a body; errors_before -- nor has a job that changed last before then failed records: no pass
    need look there again. began_at, ended_at, deleted (JSON, rows by kind) -- the last whole pass.
    """

    __tablename__ = "retention"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    next_at: Mapped[int]
    bodies_before: Mapped[int]
    errors_before: Mapped[int]
    began_at: Mapped[int | None]
    ended_at: Mapped[int | None]
    deleted: Mapped[str | None]


class TimelineEntry(Base):
    """What one event, poll or submission changed in a job, or why it changed nothing."""

    __tablename__ = "timeline"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(String(200))
    instance: Mapped[str] = mapped_column(String(64))
    at: Mapped[int]
    source: Mapped[str]
    status: Mapped[str | None]
    changed: Mapped[str]  # JSON array of names of facts
    note: Mapped[str | None]
    event: Mapped[str | None]
    __table_args__ = (Index("timeline_by_job", "job", "instance", "id"),)


class Rejection(Base):
    """The bounded quarantine: a delivery to a known instance whose signature was not right."""

    __tablename__ = "rejections"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    at: Mapped[int]
    instance: Mapped[str] = mapped_column(String(64))
    reason: Mapped[str]
    peer: Mapped[str]
    size: Mapped[int]
    signature: Mapped[bytes | None]
    body: Mapped[bytes | None]
    __table_args__ = (Index("rejections_by_time", "at", "id"),)


class RejectionCount(Base):
    """How many deliveries were refused in a minute, for a reason; instance '' is an unknown one."""

    __tablename__ = "rejection_counts"
    minute: Mapped[int] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(String(32), primary_key=True)
    instance: Mapped[str] = mapped_column(String(64), primary_key=True)
    count: Mapped[int]


class RefusedAddress(Base):
    """How often an address was refused since its window began; shared by all nodes."""

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
