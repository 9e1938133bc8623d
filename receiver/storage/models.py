"""The tables. Times are ms since the epoch; whatever a stranger sent is bytes."""

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only in an INTEGER primary key.
RowNumber = BigInteger().with_variant(Integer, "sqlite")


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


class Event(Base):
    """A verified callback. (instance, sha256) is what makes two deliveries one event.

    Bodies lie apart, so that they can be dropped while the hash goes on recognising a repeat.
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
        Index("events_by_job", "job", "instance"),
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
    registers: Mapped[str]  # JSON of jobs.Registers
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
    # Under way: when to ask the vendor next (None: when it is overdue), and how often we did.
    poll_at: Mapped[int | None]
    polls: Mapped[int] = mapped_column(server_default="0")
    # Ended with failed records: when to fetch their errors next; None once they are kept.
    errors_at: Mapped[int | None]
    errors_tries: Mapped[int] = mapped_column(server_default="0")
    __table_args__ = (
        Index("jobs_by_change", "updated_at", "id", "instance"),
        Index("jobs_by_errors", "errors_at"),
        Index("jobs_by_outcome", "outcome", "updated_at"),
        Index("jobs_by_expiry", "files_expire_at"),
    )


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


class Forward(Base):
    """A notification to be told to a client's own callback URL."""

    __tablename__ = "forwards"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(String(200))
    instance: Mapped[str] = mapped_column(String(64))
    at: Mapped[int]
    url: Mapped[str]
    body: Mapped[bytes]
    tries: Mapped[int]
    next_at: Mapped[int | None]  # None: done or given up
    result: Mapped[str | None]
    __table_args__ = (Index("forwards_by_turn", "next_at"),)


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
    """One row: when any node was last alive and could write. A gap is an outage of ours."""

    __tablename__ = "heartbeat"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[int]


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
