"""The tables of messages to others: clients, subscribers and those who answer alarms."""

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from receiver.database.models import Base, InstanceName, JobId, RowNumber, partial_index

_WAITING = "next_at IS NOT NULL"


class OutboundDelivery(Base):
    """One message to one recipient. Its webhook_id is the same at each attempt.

    kind -- callback, alarm or subscription. target -- an http, https or mailto URL. host -- what
    attempts are counted by, so that one that hangs holds up no other. order_key -- of those that
    have the same, one waits until those before it are done. headers -- JSON object.
    """

    __tablename__ = "outbound_deliveries"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(16))
    subscription: Mapped[str | None] = mapped_column(String(64))
    instance: Mapped[InstanceName | None]
    job: Mapped[JobId | None]
    webhook_id: Mapped[str] = mapped_column(String(64), unique=True)
    order_key: Mapped[str | None] = mapped_column(String(300))
    target: Mapped[str]
    host: Mapped[str] = mapped_column(String(255))
    headers: Mapped[str]
    body: Mapped[bytes]
    at: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))  # waiting, delivered, failed
    tries: Mapped[int]
    next_at: Mapped[int | None]  # None: delivered or given up
    __table_args__ = (
        partial_index("outbound_waiting", _WAITING, "host", "next_at", "kind"),
        partial_index("outbound_in_order", _WAITING, "order_key", "id"),
        Index("outbound_by_job", "job", "instance"),
    )


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
    __table_args__ = (Index("outbound_attempts_of", "delivery"),)
