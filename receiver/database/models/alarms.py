"""The tables of alarms, schedules, the watch for both, and of what conditions are found in."""

from sqlalchemy import Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from receiver.database.models import Base, InstanceName, JobId, RowNumber, partial_index

NODE_GONE_MS = 120_000  # nodes say that they are alive every half minute


class Alarm(Base):
    """Something wrong, from when it was first seen until it was gone. At most one of each is open.

    subject -- an instance's name, or what else is wrong. instance -- whose tokens and subscriptions
    it is for; '' if it is of the receiver itself. count -- the most that were so at once.
    newest -- when the newest of its jobs or events became one of them, ms; news_newest -- of those
    that are no news any more. news_at -- when it was last news. notified_at, clear_notified_at --
    when messages about it were put into the outbound queue. handled_at, handled_by, note -- of who
    acknowledged it, or snoozed it until snoozed_until.
    """

    __tablename__ = "alarms"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(64))
    instance: Mapped[InstanceName]
    raised_at: Mapped[int]
    last_seen_at: Mapped[int]
    count: Mapped[int]
    detail: Mapped[str]
    examples: Mapped[str]  # JSON array
    newest: Mapped[int] = mapped_column(default=0)
    news_newest: Mapped[int] = mapped_column(default=0)
    news_at: Mapped[int]
    notified_at: Mapped[int | None]
    cleared_at: Mapped[int | None]
    clear_notified_at: Mapped[int | None]
    handled_at: Mapped[int | None]
    handled_by: Mapped[str | None]
    note: Mapped[str | None]
    snoozed_until: Mapped[int | None]
    __table_args__ = (
        partial_index(
            "alarms_open", "cleared_at IS NULL", "kind", "subject", "instance", unique=True
        ),
        Index("alarms_by_time", "raised_at", "id"),
    )


class Watch(Base):
    """One row: who holds the lease of the watch, and until when; '' is nobody."""

    __tablename__ = "watch"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    holder: Mapped[str] = mapped_column(String(32))
    until: Mapped[int]


class Node(Base):
    """A process that answers: when it was last alive, since when its answers fail, and why."""

    __tablename__ = "nodes"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    at: Mapped[int]
    failing_since: Mapped[int | None]
    failures: Mapped[int]
    reason: Mapped[str] = mapped_column(default="")


class Fetch(Base):
    """A job whose file was fetched through us, so that no alarm says that it will expire."""

    __tablename__ = "fetches"
    job: Mapped[JobId] = mapped_column(primary_key=True)
    instance: Mapped[InstanceName] = mapped_column(primary_key=True)
    at: Mapped[int]
    __table_args__ = (Index("fetches_by_time", "at"),)


class Schedule(Base):
    """When jobs are expected, and what the last check found; times and graces are ms.

    object -- None is any. due_at, job, started_at -- the latest due time that was fulfilled, by
    which job, and when that started. judged_at -- the time by which any of that changed last.
    """

    __tablename__ = "schedules"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    instance: Mapped[InstanceName]
    object: Mapped[str | None]
    cron: Mapped[str]
    tz: Mapped[str]
    start_grace: Mapped[int]
    run_grace: Mapped[int]
    created_at: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    due_at: Mapped[int | None]
    job: Mapped[JobId | None]
    started_at: Mapped[int | None]
    judged_at: Mapped[int]
