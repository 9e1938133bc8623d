"""Everything that one sandbox consists of, put together."""

from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, RLock

from receiver.openconnectors.sandbox.deliveries import Deliveries
from receiver.openconnectors.sandbox.jobs import Jobs
from receiver.openconnectors.sandbox.lifecycle import Lifecycle
from receiver.openconnectors.sandbox.options import LiveFaults, Options
from receiver.openconnectors.sandbox.scheduler import Scheduler


class Requests:
    """How often each path was asked for, in all and for each job."""

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._all: Counter[str] = Counter()
        self._jobs: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def count(self, template: str, job_id: str | None) -> None:
        """Count a request such as `GET /bulk/{id}/status`."""
        with self._lock:
            self._all[template] += 1
            if job_id is not None:
                self._jobs[job_id][template] += 1

    def totals(self) -> dict[str, object]:
        """The counts since the start, as JSON."""
        with self._lock:
            jobs = {job_id: dict(counts) for job_id, counts in self._jobs.items()}
            return {"requests": dict(self._all), "jobs": jobs}


class Stage:
    """The parts of one sandbox. They share one lock, so that no two can wait for each other."""

    def __init__(self, options: Options) -> None:
        lock = RLock()
        self._folder = TemporaryDirectory(prefix="sandbox-")
        self._scheduler = Scheduler(lock)
        self.folder = Path(self._folder.name)
        self.options = options
        self.closing = Event()
        self.requests = Requests(lock)
        self.faults = LiveFaults(options.faults, lock)
        self.jobs = Jobs(lock, options.first_job)
        self.deliveries = Deliveries(options, self.faults, self._scheduler, lock)
        self.lifecycle = Lifecycle(
            options=options,
            faults=self.faults,
            jobs=self.jobs,
            deliveries=self.deliveries,
            scheduler=self._scheduler,
            lock=lock,
        )

    def close(self) -> None:
        """Stop everything and forget all files; a second time does nothing."""
        self.closing.set()
        self._scheduler.close()
        self.deliveries.close()
        self._folder.cleanup()
