"""Bulk jobs: CREATED, STARTED, RUNNING, and one of the endings; and who is notified."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import RLock, Thread

import msgspec
from msgspec import Raw
from werkzeug.exceptions import Conflict, NotFound

from receiver.openconnectors import shapes
from receiver.openconnectors.sandbox import service
from receiver.openconnectors.sandbox.faults import Options
from receiver.openconnectors.shapes import Format, JobFacts, Shape

WHERE = ("job_status", "object_name", "job_direction", "record_count")
INSTANCE_ID = 425904

_STATUSES = ("CREATED", "STARTED", "RUNNING")  # each for a third of the time until a job's end


def now_ms() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Later:
    """Runs steps when they are due. A slow callback URL holds up sending, but never loading."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threads = {"loading": 4, "sending": 16}
        self._pools = {n: ThreadPoolExecutor(k, f"sandbox-{n}") for n, k in threads.items()}
        self._thread = Thread(target=self._loop.run_forever, name="sandbox-later", daemon=True)
        self._thread.start()

    def run(self, seconds: float, pool: str, step: Callable[[], None]) -> None:
        """Have a thread of `pool` run `step` in `seconds`; never, if closed before."""
        with suppress(RuntimeError):
            submit = partial(self._pools[pool].submit, step)
            self._loop.call_soon_threadsafe(self._loop.call_later, seconds, submit)

    def close(self) -> None:
        """Forget what is not due yet and wait for what is running; a second time does nothing."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(JobFacts):
    """A bulk job as it is at one moment.

    id -- empty until it is created. token -- the element token: whose job this is.
    source -- the uploaded file; None: it is a download. ordered -- the format that its file was
    ordered in; None: any. callback_url -- where its end is notified.
    payload -- JSON text that is passed back in notifications; empty: none.
    loads -- the files that its result consists of.
    """

    id: str = ""
    status: str = _STATUSES[0]
    reported: int = 0
    failed: int = 0
    created_at: int = field(default_factory=now_ms)
    instance_id: int = INSTANCE_ID
    token: str = field(repr=False)
    source: Path | None
    ordered: Format | None
    callback_url: str | None
    payload: Raw
    loads: tuple[Path, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether its status is final."""
        return self.completed_at is not None

    def ending(self, status: str, message: str | None = None) -> "Job":
        """Return the same job, ended now."""
        return replace(self, status=status, message=message, completed_at=now_ms())

    def matches(self, where: Mapping[str, str]) -> bool:
        """Whether each field named in `where` has the value that stands there."""
        values = (self.status, self.object, self.direction, str(self.reported))
        return where.items() <= dict(zip(WHERE, values, strict=True)).items()


class Jobs:
    """All jobs of one sandbox. Each change puts a new Job in the place of the old one.

    send -- sends a notification: (job's id, URL, body).
    """

    def __init__(
        self, options: Options, later: Later, lock: RLock, send: Callable[[str, str, bytes], None]
    ) -> None:
        self._options, self._later, self._lock, self._send = options, later, lock, send
        self._jobs: dict[str, Job] = {}

    def create(self, job: Job) -> Job:
        """Give a job its id and set it going; under the fault `overtake`, run it to its end."""
        with self._lock:
            job = replace(job, id=str(self._options.first_job + len(self._jobs)))
            self._jobs[job.id] = job
        self._run(job)
        return job

    def find(self, job_id: str, token: str | None = None) -> Job:
        """Return a job that belongs to `token` (None: to anyone). Raises NotFound."""
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None or token not in (None, job.token):
            raise NotFound(f"there is no job {job_id}")
        return self._as_of_now(job)

    def of(self, token: str) -> Sequence[Job]:
        """Return the jobs of `token`, newest first."""
        with self._lock:
            jobs = [job for job in reversed(self._jobs.values()) if job.token == token]
        return list(map(self._as_of_now, jobs))

    def _as_of_now(self, job: Job) -> Job:
        if job.has_ended:
            return job
        passed = (now_ms() - job.created_at) / max(1, 1000 * self._options.job_seconds)
        place = min(int(passed * len(_STATUSES)), len(_STATUSES) - 1)
        return replace(job, status=_STATUSES[place])

    def cancel(self, job: Job) -> Job:
        """End `job` as cancelled by its owner. Raises Conflict if it has ended."""
        with self._lock:
            current = self._jobs[job.id]
            if current.has_ended:
                raise Conflict(f"job {job.id} has ended")
            cancelled = self._jobs[job.id] = current.ending("CANCELLED")
        self._notify(cancelled)
        return cancelled

    def reset(self, job: Job) -> Job:
        """Have `job` run once more, from the beginning."""
        with self._lock:
            old = self._jobs[job.id]
            again = replace(old, status=_STATUSES[0], created_at=now_ms(), completed_at=None)
            empty = replace(again, message=None, reported=0, failed=0, loads=())
            fresh = self._jobs[job.id] = replace(empty, attempt=(old.attempt or 0) + 1)
        self._run(fresh)
        return fresh

    def write(self, job: Job, shape: Shape | None = None) -> shapes.Body:
        """Write `job` in `shape`; None: in the one that statuses have here."""
        return shapes.write(job, shape or self._options.shape)

    def write_created(self, job: Job) -> shapes.Body:
        """Write what the call that created `job` is answered."""
        if self._options.shape in ("v2", "document"):
            instance = "instanceId" if job.source else "instance_id"
            return {"id": job.id, "status": "CREATED", instance: INSTANCE_ID}
        return self.write(job)

    def _run(self, job: Job) -> None:
        if self._options.faults.overtake:
            self._end(job)
        else:
            self._later.run(self._options.job_seconds, "loading", partial(self._end, job))

    def _end(self, job: Job) -> None:
        """End `job`, unless it was cancelled or reset meanwhile, and notify its end."""
        ended = self._load(job)
        with self._lock:
            if self._jobs[job.id] is not job:
                return
            self._jobs[job.id] = ended
        self._notify(ended)

    def _load(self, job: Job) -> Job:
        final = self._options.faults.final_status or "COMPLETED"
        if final in ("ERROR", "ABORTED", "CANCELLED"):
            return job.ending(final, "The sandbox ends jobs so because of a fault that was set.")
        if job.source is None:
            done, problem = self._download(job), None
        else:
            loaded, failed, problem = service.count(job.source)
            reported = loaded + (failed if self._options.total_counts else 0)
            done = replace(job, reported=reported, failed=failed, loads=(job.source,))
        return done.ending("ERROR" if problem else final, problem)

    def _download(self, job: Job) -> Job:
        others = [
            other
            for other in reversed(self.of(job.token))
            if other.direction == "UPLOAD" and other.object == job.object
        ]
        loads = tuple(load for other in others for load in other.loads)
        return replace(job, loads=loads, reported=sum(service.count(load)[0] for load in loads))

    def _notify(self, job: Job) -> None:
        url = job.callback_url or self._options.callback_url
        if url is None:
            return
        body = self.write(job, "v2" if self._options.shape == "document" else None)
        if bytes(job.payload):
            body["callback-payload"] = job.payload
        self._send(job.id, url, msgspec.json.encode(body))
