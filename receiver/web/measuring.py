"""What is measured when metrics are read, and kept for a few seconds however often they are."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable

import structlog

from receiver import __version__
from receiver.database.engine import Database, database_time
from receiver.errors import StoreError
from receiver.jobs.summary import gauges
from receiver.lib import logs
from receiver.metrics import Numbers
from receiver.settings import Settings

KEPT_SECONDS = 5.0
_SQLITE = "sqlite:///"

log = structlog.get_logger()


class Measured:
    """Numbers from the database, at most `KEPT_SECONDS` old. clock -- ms since the epoch."""

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], int]) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._guard = threading.Lock()
        self._numbers: Numbers | None = None
        self._read_at = 0.0

    def read(self) -> Numbers:
        """Give them; those who ask at the same time share one look."""
        with self._guard:
            if self._numbers is None or time.monotonic() - self._read_at >= KEPT_SECONDS:
                self._numbers = self._look()
                self._read_at = time.monotonic()
            return self._numbers

    def _now(self) -> int:
        with self._database.read() as session:
            return database_time(session, self._clock)

    def _look(self) -> Numbers:
        always: dict[str, dict[str, float]] = {**_disks(self._settings), "info": {__version__: 1.0}}
        try:
            now = self._now()
            seen = gauges(self._database, now, self._settings.overdue_after)
        except StoreError as error:
            logs.summed(log, "metrics lack what the database knows", error=str(error))
            return Numbers({"database_up": 0}, always)
        oldest = seen.oldest_under_way
        counted = seen.summary
        plain = {
            "database_up": 1,
            "overdue_jobs": counted.overdue,
            "oldest_job_seconds": 0 if oldest is None else max(0, now - oldest) / 1000,
            "lost_callbacks": counted.lost_callbacks,
            "unreadable_events": counted.unreadable_events,
            "expiring_files": counted.expiring_24h,
            "rejections_hour": counted.rejections_1h,
            "queued_at_vendor": counted.queued_at_vendor,
            "unclear_submissions": counted.unclear_submissions,
        }
        labelled: dict[str, dict[str, float]] = {
            **always,
            "jobs": {name: float(n) for name, n in counted.jobs.items()},
            "last_callback_timestamp_seconds": {
                name: at / 1000 for name, at in seen.last_callbacks.items()
            },
            "alarms": {kind: float(n) for kind, n in seen.alarms.items()},
        }
        return Numbers(plain, labelled)


def _disks(settings: Settings) -> dict[str, dict[str, float]]:
    """Where uploads are spooled, and the database's file if it is one."""
    places = {"temporary": tempfile.gettempdir()}
    if settings.database_url.startswith(_SQLITE):
        places["database"] = settings.database_url.removeprefix(_SQLITE).partition("?")[0]
    free, ratio = {}, {}
    for place, path in places.items():
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        free[place], ratio[place] = float(usage.free), usage.free / usage.total
    return {"disk_free_bytes": free, "disk_free_ratio": ratio}
