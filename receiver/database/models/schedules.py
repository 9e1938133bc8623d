"""The table of expected schedules."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from receiver.database.models import Base, InstanceName, JobId


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
