"""Bulk jobs, and the board that they are kept on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Literal

from msgspec import Raw

from receiver.openconnectors.sandbox.service import Format, Loaded

ENDINGS = frozenset({"COMPLETED", "CANCELLED", "ABORTED", "ERROR"})


def now_ms() -> int:
    """The time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a client asked for.

    token -- the element token: whose job this is.
    callback_url -- where its end is told; None: nowhere.
    payload -- JSON text that is passed back in notifications; empty: none.
    """

    token: str = field(repr=False)
    object_name: str
    direction: Literal["UPLOAD", "DOWNLOAD"]
    callback_url: str | None = None
    payload: Raw = field(default_factory=Raw)
    file_format: Format = "csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A bulk job as it is at one moment; times in ms since the epoch.

    source -- the uploaded file, if it is an upload.
    attempt -- how often it was reset and run again.
    loads -- what it loaded, or what its result consists of.
    """

    id: str
    order: Order
    source: Path | None
    status: str = "CREATED"
    created: int = field(default_factory=now_ms)
    ended: int | None = None
    loaded: int = 0
    failed: int = 0
    attempt: int = 0
    message: str | None = None
    loads: tuple[Loaded, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether its status is final."""
        return self.status in ENDINGS

    def again(self) -> "Job":
        """The same job, about to run once more."""
        return Job(
            id=self.id,
            order=self.order,
            source=self.source,
            created=self.created,
            attempt=self.attempt + 1,
        )

    def ending(self, status: str, message: str | None = None) -> "Job":
        """The same job, ended now."""
        return replace(self, status=status, message=message, ended=now_ms())

    def matches(self, where: Mapping[str, str]) -> bool:
        """Whether each field named in `where` has the value given there."""
        fields = {
            "job_status": self.status,
            "object_name": self.order.object_name,
            "job_direction": self.order.direction,
            "record_count": str(self.loaded),
        }
        return all(fields[name] == value for name, value in where.items())


class Jobs:
    """All jobs. Each change puts a new Job in the place of the old one."""

    def __init__(self, lock: RLock, first_id: int) -> None:
        self._lock = lock
        self._first_id = first_id
        self._jobs: dict[str, Job] = {}

    def add(self, order: Order, source: Path | None = None) -> Job:
        """Create a job, with the next id."""
        with self._lock:
            job = Job(id=str(self._first_id + len(self._jobs)), order=order, source=source)
            self._jobs[job.id] = job
            return job

    def find(self, job_id: str, token: str | None = None) -> Job | None:
        """The job `job_id`, if there is one and it belongs to `token` (None: to anyone)."""
        with self._lock:
            job = self._jobs.get(job_id)
        return job if job and token in (None, job.order.token) else None

    def swap(self, old: Job, new: Job) -> bool:
        """Put `new` in the place of `old`; False if something else took that place meanwhile."""
        with self._lock:
            if self._jobs[old.id] is not old:
                return False
            self._jobs[old.id] = new
            return True

    def of(self, token: str) -> Sequence[Job]:
        """The jobs of `token`, newest first."""
        with self._lock:
            return [job for job in reversed(self._jobs.values()) if job.order.token == token]

    def loads(self, token: str, object_name: str) -> tuple[Loaded, ...]:
        """What uploads of `token` have loaded into the object, oldest first."""
        uploads = [
            job
            for job in reversed(self.of(token))
            if job.order.direction == "UPLOAD" and job.order.object_name == object_name
        ]
        return tuple(load for job in uploads for load in job.loads)
