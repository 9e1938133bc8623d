"""The tables of messages to others: clients, subscribers and those who answer alarms."""

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from receiver.database.models import Base, InstanceName, JobId, RowNumber, partial_index


class OutboundDelivery(Base):
    """One message to one recipient. Its webhook_id is the same at each attempt.

    kind -- callback, alarm or subscription. subscription, type -- for the last: its name, and the
    message's type. target -- an http, https or mailto URL. host -- what attempts are counted by,
    so that one that hangs holds up no other. Of those about one job for one subscription, one waits
    until those before it are done. webhook_id of a callback -- the vendor's, '' if it had none.

    What several nodes may find at once is queued once, by its webhook_id. What a callback changes
    is not: who queues it holds the job's row.
    """

    __tablename__ = "outbound_deliveries"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(16))
    subscription: Mapped[str | None] = mapped_column(String(64))
    type: Mapped[str | None] = mapped_column(String(32))
    instance: Mapped[InstanceName | None]
    job: Mapped[JobId | None]
    webhook_id: Mapped[str]
    target: Mapped[str]
    host: Mapped[str] = mapped_column(String(255))
    body: Mapped[bytes]
    at: Mapped[int]
    # Or delivered, failed, cancelled.
    state: Mapped[str] = mapped_column(String(16), server_default="waiting")
    tries: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[int | None]  # None: delivered or given up
    attempts: Mapped[list["OutboundAttempt"]] = relationship(
        order_by="OutboundAttempt.id", viewonly=True, lazy="raise"
    )
    __table_args__ = (
        partial_index("outbound_waiting", "next_at IS NOT NULL", "host", "next_at", "kind"),
        Index("outbound_by_job", "job", "instance"),
        partial_index(
            "outbound_once", "job IS NULL OR type = 'job.overdue'", "webhook_id", unique=True
        ),
        partial_index(
            "outbound_by_subscription", "subscription IS NOT NULL", "subscription", "state", "id"
        ),
    )


class Subscription(Base):
    """Where outcomes and alarms are sent, and which.

    format -- of bodies. instances, objects, outcomes, types -- JSON arrays: what is sent; an
    empty one of the first three is all. secret, previous_secret -- encrypted; the latter signs
    until `previous_until`, too. disabled_for -- why nothing is sent: operator, gone or failing.
    failing_since -- the first failure since anything was accepted.
    """

    __tablename__ = "subscriptions"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    url: Mapped[str]
    format: Mapped[str] = mapped_column(String(16))
    instances: Mapped[str]
    objects: Mapped[str]
    outcomes: Mapped[str]
    types: Mapped[str]
    secret: Mapped[bytes]
    previous_secret: Mapped[bytes | None]
    previous_until: Mapped[int | None]
    created_at: Mapped[int]
    disabled_at: Mapped[int | None]
    disabled_for: Mapped[str | None] = mapped_column(String(16))
    failing_since: Mapped[int | None]


class OutboundAttempt(Base):
    """One attempt to deliver. status -- HTTP's or SMTP's, if there was an answer; error, if not.

    answer -- the first bytes of the answer's body.
    """

    __tablename__ = "outbound_attempts"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    delivery: Mapped[int] = mapped_column(
        RowNumber, ForeignKey("outbound_deliveries.id", ondelete="CASCADE")
    )
    at: Mapped[int]
    duration_ms: Mapped[int]
    status: Mapped[int | None]
    error: Mapped[str | None]
    answer: Mapped[bytes]

    @property
    def answer_text(self) -> str:
        """The first bytes of the answer as text."""
        return self.answer.decode("utf-8", "replace")

    __table_args__ = (Index("outbound_attempts_of", "delivery"),)
