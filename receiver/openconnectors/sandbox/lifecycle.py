"""How a job moves on: CREATED, STARTED, RUNNING, and one of the endings."""

import sqlite3
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from threading import RLock

import msgspec

from receiver.openconnectors.sandbox import bodies, service
from receiver.openconnectors.sandbox.deliveries import Deliveries
from receiver.openconnectors.sandbox.jobs import Job, Jobs, Order
from receiver.openconnectors.sandbox.options import LiveFaults, Options
from receiver.openconnectors.sandbox.scheduler import Scheduler

_NEXT = {"CREATED": "STARTED", "STARTED": "RUNNING"}
_STEPS = len(_NEXT) + 1


class Lifecycle:
    """Moves the jobs of one sandbox on, and tells their owners."""

    def __init__(
        self,
        *,
        options: Options,
        faults: LiveFaults,
        jobs: Jobs,
        deliveries: Deliveries,
        scheduler: Scheduler,
        lock: RLock,
    ) -> None:
        self._options = options
        self._faults = faults
        self._jobs = jobs
        self._deliveries = deliveries
        self._scheduler = scheduler
        self._lock = lock
        self._shapes = cycle(bodies.SHAPES if options.shape == "mixed" else [options.shape])

    def create(self, order: Order, source: Path | None = None) -> Job:
        """Create a job and set it going; under the fault `overtake`, run it to its end first."""
        job = self._jobs.add(order, source)
        if self._faults.current.overtake:
            self._run(job)
        else:
            self._schedule(job)
        return job

    def cancel(self, job: Job) -> Job | None:
        """End `job` as cancelled by its owner; None if it has ended otherwise."""
        with self._lock:
            current = self._jobs.find(job.id)
            if current is None or current.has_ended:
                return None
            cancelled = current.ending("CANCELLED")
            self._jobs.swap(current, cancelled)
        self._tell(cancelled)
        return cancelled

    def reset(self, job: Job) -> Job:
        """Have `job` run once more, from the beginning."""
        with self._lock:
            current = self._jobs.find(job.id) or job
            fresh = current.again()
            self._jobs.swap(current, fresh)
        self._schedule(fresh)
        return fresh

    def status(self, job: Job, shape: str | None = None) -> bodies.Body:
        """What the vendor says of `job` in `shape`; None: in the shape that statuses have here."""
        return bodies.status(job, shape or next(self._shapes), self._options.instance_id)

    def _schedule(self, job: Job) -> None:
        pause = self._options.job_seconds / _STEPS
        self._scheduler.after(pause, "loading", partial(self._step, job))

    def _step(self, job: Job) -> None:
        moved = self._advance(job)
        # A job that was cancelled or reset meanwhile is no longer this thread's business.
        if self._jobs.swap(job, moved):
            self._tell(moved)
            if not moved.has_ended:
                self._schedule(moved)

    def _run(self, job: Job) -> None:
        while not job.has_ended:
            moved = self._advance(job)
            if not self._jobs.swap(job, moved):
                return
            self._tell(moved, at_once=True)
            job = moved

    def _advance(self, job: Job) -> Job:
        if job.status in _NEXT:
            return replace(job, status=_NEXT[job.status])
        forced = self._faults.current.final_status
        if forced:
            return job.ending(forced, "The sandbox was told to end jobs like this.")
        return self._download(job) if job.source is None else self._upload(job, job.source)

    def _upload(self, job: Job, source: Path) -> Job:
        try:
            load = service.load(source, source.with_name(f"{source.name}-{job.attempt}"))
        except (OSError, sqlite3.Error) as error:
            return job.ending("ABORTED", f"The file could not be kept: {error}.")
        done = replace(job, loads=(load,), loaded=load.loaded, failed=load.failed)
        return done.ending("ERROR" if load.problem else "COMPLETED", load.problem)

    def _download(self, job: Job) -> Job:
        loads = self._jobs.loads(job.order.token, job.order.object_name)
        done = replace(job, loads=loads, loaded=sum(load.loaded for load in loads))
        return done.ending("COMPLETED")

    def _tell(self, job: Job, *, at_once: bool = False) -> None:
        url = job.order.callback_url or self._options.callback_url
        if url is None or not (job.has_ended or self._options.progress):
            return
        body = bodies.notification(job, next(self._shapes), self._options.instance_id)
        self._deliveries.post(job.id, url, msgspec.json.encode(body), at_once=at_once)
