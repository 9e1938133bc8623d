"""What is measured when metrics are read, at most every few seconds however often they are."""

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
from receiver.metrics import Measured
from receiver.settings import Settings
from receiver.subscriptions.log import oldest_waiting

MAX_AGE_SECONDS = 5.0
_SQLITE = "sqlite:///"

log = structlog.get_logger()


class Measurements:
    """What STORED has, at most `MAX_AGE_SECONDS` old. clock -- ms since the epoch."""

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], int]) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._guard = threading.Lock()
        self._measured: Measured | None = None
        self._read_at = 0.0

    def read(self) -> Measured:
        """Return them; those who ask at the same time share one look."""
        with self._guard:
            if self._measured is None or time.monotonic() - self._read_at >= MAX_AGE_SECONDS:
                self._measured = {
                    **self._stored(),
                    **_disks(self._settings),
                    "info": {__version__: 1.0},
                }
                self._read_at = time.monotonic()
            return self._measured

    def _stored(self) -> Measured:
        try:
            with self._database.read() as session:
                now = database_time(session, self._clock)
                ages = oldest_waiting(session, now)
            stored = gauges(self._database, now, self._settings.overdue_after)
        except StoreError as error:
            logs.summed(log, "metrics lack what the database knows", error=str(error))
            return {"database_up": 0}
        oldest, summary = stored.oldest_under_way, stored.summary
        return {
            "database_up": 1,
            "overdue_jobs": summary.overdue,
            "oldest_job_seconds": 0 if oldest is None else max(0, now - oldest) / 1000,
            "lost_callbacks": summary.lost_callbacks,
            "unreadable_events": summary.unreadable_events,
            "expiring_files": summary.expiring_24h,
            "rejections_hour": summary.rejections_1h,
            "queued_at_vendor": summary.queued_at_vendor,
            "unclear_submissions": summary.unclear_submissions,
            "jobs": summary.jobs,
            "last_callback_timestamp_seconds": {
                name: at / 1000 for name, at in stored.last_callbacks.items()
            },
            "alarms": stored.alarms,
            "oldest_delivery_seconds": ages,
        }


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
