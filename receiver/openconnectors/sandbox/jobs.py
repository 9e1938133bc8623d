"""Bulk jobs: CREATED, STARTED, RUNNING, and one of the endings; and who is told."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from threading import RLock, Thread
from typing import Literal

import msgspec
from msgspec import Raw

from receiver.openconnectors import shapes
from receiver.openconnectors.sandbox import service
from receiver.openconnectors.sandbox.faults import LiveFaults, Options
from receiver.openconnectors.sandbox.service import Loaded
from receiver.openconnectors.shapes import Format, JobFacts

ENDINGS = frozenset({"COMPLETED", "COMPLETE", "SUCCESS", "CANCELLED", "ABORTED", "ERROR"})
WHERE = ("job_status", "object_name", "job_direction", "record_count")

_NEXT = {"CREATED": "STARTED", "STARTED": "RUNNING"}
_MIXED = ("v2", "v3", "list")


def now_ms() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Later:
    """Runs steps when they are due. A slow callback URL holds up sending, but never loading."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._crews = {
            "loading": ThreadPoolExecutor(4, "sandbox-loading"),
            "sending": ThreadPoolExecutor(16, "sandbox-sending"),
        }
        self._thread = Thread(target=self._loop.run_forever, name="sandbox-later", daemon=True)
        self._thread.start()

    def run(self, seconds: float, crew: str, step: Callable[[], None]) -> None:
        """Have a thread of `crew` run `step` in `seconds`; never, if closed before."""
        with suppress(RuntimeError):
            submit = partial(self._crews[crew].submit, step)
            self._loop.call_soon_threadsafe(self._loop.call_later, seconds, submit)

    def close(self) -> None:
        """Forget what is not due yet and wait for what is running; a second time does nothing."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        for crew in self._crews.values():
            crew.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a client asked for.

    token -- the element token: whose job this is.
    callback_url -- where its end is told; None: nowhere.
    payload -- JSON text that is passed back in notifications; empty: none.
    file_format -- None: none was named.
    """

    token: str = field(repr=False)
    object_name: str
    direction: Literal["UPLOAD", "DOWNLOAD"]
    callback_url: str | None = None
    payload: Raw = field(default_factory=Raw)
    file_format: Format | None = None


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

    def ending(self, status: str, message: str | None = None) -> "Job":
        """Return the same job, ended now."""
        return replace(self, status=status, message=message, ended=now_ms())

    def matches(self, where: Mapping[str, str]) -> bool:
        """Whether each field named in `where` has the value given there."""
        values = (self.status, self.order.object_name, self.order.direction, str(self.loaded))
        fields = dict(zip(WHERE, values, strict=True))
        return all(fields[name] == value for name, value in where.items())


class Jobs:
    """All jobs of one sandbox. Each change puts a new Job in the place of the old one.

    notify -- sends (job's id, URL, body, whether now in this thread).
    """

    def __init__(
        self,
        *,
        options: Options,
        faults: LiveFaults,
        later: Later,
        lock: RLock,
        notify: Callable[[str, str, bytes, bool], None],
    ) -> None:
        self._options, self._faults = options, faults
        self._later, self._lock, self._notify = later, lock, notify
        self._jobs: dict[str, Job] = {}
        self._shapes = cycle(_MIXED if options.shape == "mixed" else [options.shape])

    def create(self, order: Order, source: Path | None = None) -> Job:
        """Create a job and set it going; under the fault `overtake`, run it to its end first."""
        with self._lock:
            job = Job(id=str(self._options.first_job + len(self._jobs)), order=order, source=source)
            self._jobs[job.id] = job
        if self._faults.current.overtake:
            self._run(job)
        else:
            self._schedule(job)
        return job

    def find(self, job_id: str, token: str | None = None) -> Job | None:
        """Return the job `job_id`, if there is one and it belongs to `token` (None: to anyone)."""
        with self._lock:
            job = self._jobs.get(job_id)
        return job if job and token in (None, job.order.token) else None

    def of(self, token: str) -> Sequence[Job]:
        """Return the jobs of `token`, newest first."""
        with self._lock:
            return [job for job in reversed(self._jobs.values()) if job.order.token == token]

    def cancel(self, job: Job) -> Job | None:
        """End `job` as cancelled by its owner; None if it has ended otherwise."""
        with self._lock:
            current = self._jobs[job.id]
            if current.has_ended:
                return None
            cancelled = self._jobs[job.id] = current.ending("CANCELLED")
        self._tell(cancelled)
        return cancelled

    def reset(self, job: Job) -> Job:
        """Have `job` run once more, from the beginning."""
        with self._lock:
            old = self._jobs[job.id]
            fresh = Job(
                id=old.id,
                order=old.order,
                source=old.source,
                created=old.created,
                attempt=old.attempt + 1,
            )
            self._jobs[job.id] = fresh
        self._schedule(fresh)
        return fresh

    def write(self, job: Job, shape: str | None = None) -> shapes.Body:
        """Write `job` in `shape`; None: in the one that statuses have here."""
        order = job.order
        return shapes.SHAPES[shape or next(self._shapes)](
            JobFacts(
                id=job.id,
                status=job.status,
                reported=job.loaded + (job.failed if self._options.total_counts else 0),
                failed=job.failed,
                message=job.message,
                object=order.object_name,
                direction=order.direction,
                created_at=job.created,
                completed_at=job.ended,
                attempt=job.attempt,
                instance_id=self._options.instance_id,
                file_format=order.file_format or "csv",
            )
        )

    def write_created(self, job: Job, instance: str) -> shapes.Body:
        """Write what the call that created `job` is answered; instance -- that name's spelling."""
        created = replace(job, status="CREATED", ended=None, loaded=0, failed=0, message=None)
        shape = next(self._shapes)
        if shape in ("v2", "document"):
            return {"id": job.id, "status": "CREATED", instance: self._options.instance_id}
        return self.write(created, shape)

    def _schedule(self, job: Job) -> None:
        pause = self._options.job_seconds / (len(_NEXT) + 1)
        self._later.run(pause, "loading", partial(self._step, job))

    def _step(self, job: Job) -> None:
        if (moved := self._moved(job)) and not moved.has_ended:
            self._schedule(moved)

    def _run(self, job: Job | None) -> None:
        while job is not None and not job.has_ended:
            job = self._moved(job, at_once=True)

    def _moved(self, job: Job, *, at_once: bool = False) -> Job | None:
        """Move `job` on and tell of it; None if it was cancelled or reset meanwhile."""
        moved = self._advance(job)
        with self._lock:
            if self._jobs[job.id] is not job:
                return None
            self._jobs[job.id] = moved
        self._tell(moved, at_once=at_once)
        return moved

    def _advance(self, job: Job) -> Job:
        if job.status in _NEXT:
            return replace(job, status=_NEXT[job.status])
        final = self._faults.current.final_status or "COMPLETED"
        if final in ("ERROR", "ABORTED", "CANCELLED"):
            return job.ending(final, "The sandbox was told to end jobs like this.")
        if job.source is None:
            return self._download(job).ending(final)
        try:
            load = service.load(
                job.source, job.source.with_name(f"{job.source.name}-{job.attempt}")
            )
        except OSError as error:
            return job.ending("ABORTED", f"The file could not be kept: {error}.")
        done = replace(job, loads=(load,), loaded=load.loaded, failed=load.failed)
        return done.ending("ERROR" if load.problem else final, load.problem)

    def _download(self, job: Job) -> Job:
        loads = tuple(
            load
            for each in reversed(self.of(job.order.token))
            if each.source is not None and each.order.object_name == job.order.object_name
            for load in each.loads
        )
        return replace(job, loads=loads, loaded=sum(load.loaded for load in loads))

    def _tell(self, job: Job, *, at_once: bool = False) -> None:
        url = job.order.callback_url or self._options.callback_url
        if url is None or not (job.has_ended or self._options.progress):
            return
        shape = next(self._shapes)
        body = self.write(job, "v2" if shape == "document" else shape)
        if bytes(job.order.payload):
            body["callback-payload"] = job.order.payload
        self._notify(job.id, url, msgspec.json.encode(body), at_once)
