"""Health and metrics: /healthz, /readyz, /metrics."""

import asyncio
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import get_args

import flask
import structlog
from flask import Flask
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from receiver import __version__
from receiver.alarms.kinds import Severity, kind_of
from receiver.database import migrations
from receiver.database.engine import Database, database_time
from receiver.errors import StoreError, StoreUnavailable
from receiver.jobs.summary import gauges
from receiver.lib import logs
from receiver.metrics import Measured
from receiver.schedules.registry import count_by_state
from receiver.settings import Settings
from receiver.subscriptions.log import oldest_waiting
from receiver.web import Services, services
from receiver.web.http import Response, json_response
from receiver.web.problems import flask_response

HEALTHZ = "/healthz"  # the only one that waits for nothing
READYZ = "/readyz"
READY = json_response({"status": "ready"})
READY_SECONDS = 0.5  # for SQLite's lock: a probe is to be answered within a second
ANSWER_SECONDS = 0.6  # a busy machine may take the rest of the second there and back
LOOK_SECONDS = 4.0  # that a look at the database may take, if it is slow and not away
READY_AGE_SECONDS = 30.0  # of a look that is answered with once more; probes come more often
ROOM_BYTES = 2**20  # what callbacks take before who looks after the disk can do anything
MAX_AGE_SECONDS = 5.0  # of what is measured when metrics are read

log = structlog.get_logger()


def healthz(_services: Services) -> Response:
    """Say that the process answers, whatever the database does: an outage must not kill nodes."""
    return json_response({"status": "ok"})


def readyz(services: Services) -> Response:
    """Say that callbacks can be committed now: writer, database, schema and disk."""
    if not services.intake.writer.alive:
        raise StoreUnavailable("the writer has stopped")
    try:
        migrations.check_ready(services.database, READY_SECONDS)
    except StoreError as error:
        raise StoreUnavailable(str(error)) from error
    # What was just committed may fit into SQLite's log as it is, though no callback does.
    free = _disks(services.database)["disk_free_bytes"].get("database", math.inf)
    if free < ROOM_BYTES:
        raise StoreUnavailable("the database's disk is full")
    return READY


def metrics(services: Services) -> Response:
    """Return what all workers of this node counted, and what the database knows, for Prometheus."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    stored = CollectorRegistry()
    stored.register(services.stored)
    body = generate_latest(registry) + generate_latest(stored)
    return Response(200, {"Content-Type": CONTENT_TYPE_LATEST}, body)


PROBES: Mapping[str, Callable[[Services], Response]] = {
    HEALTHZ: healthz,
    READYZ: readyz,
    "/metrics": metrics,
}


def register(app: Flask) -> None:
    """Have an application answer probes."""
    for path, probe in PROBES.items():
        app.add_url_rule(path, path, partial(_answer, probe))


def _answer(probe: Callable[[Services], Response]) -> flask.Response:
    return flask_response(probe(services()))


class Measurements:
    """What STORED has, at most `MAX_AGE_SECONDS` old. clock -- ms since the epoch."""

    def __init__(self, settings: Settings, database: Database, clock: Callable[[], int]) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._lock = threading.Lock()
        self._measured: Measured | None = None
        self._read_at = 0.0

    def read(self) -> Measured:
        """Return them; those who ask at the same time share one look."""
        with self._lock:
            if self._measured is None or time.monotonic() - self._read_at >= MAX_AGE_SECONDS:
                self._measured = {
                    **self._stored(),
                    **_disks(self._database),
                    "info": {__version__: 1.0},
                }
                self._read_at = time.monotonic()
            return self._measured

    def _stored(self) -> Measured:
        try:
            with self._database.read() as session:
                now = database_time(session, self._clock)
                ages, schedules = oldest_waiting(session, now), count_by_state(session)
            stored = gauges(self._database, now, self._settings.overdue_after)
        except StoreError as error:
            logs.warn_summed(log, "metrics lack what the database knows", error=str(error))
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
            "open_alarms": _by_severity(stored.alarms),
            "schedules": schedules,
            "oldest_delivery_seconds": ages,
        }


def _by_severity(alarms: Mapping[str, int]) -> dict[str, float]:
    numbers = dict.fromkeys(get_args(Severity), 0.0)
    for kind, number in alarms.items():
        numbers[kind_of(kind).severity] += number
    return numbers


def _disks(database: Database) -> dict[str, dict[str, float]]:
    """Where uploads are spooled, and the database's file if it is one."""
    places = {"temporary": tempfile.gettempdir()}
    if database.file:
        places["database"] = str(database.file)
    free, ratio = {}, {}
    for place, path in places.items():
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        free[place], ratio[place] = float(usage.free), usage.free / usage.total
    return {"disk_free_bytes": free, "disk_free_ratio": ratio}


class Probes:
    """Answers probes for the event loop; those that come while one looks share what it sees."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._threads = ThreadPoolExecutor(len(PROBES), "probes")
        self._looks: dict[str, asyncio.Future[Response]] = {}
        self._began: dict[str, float] = {}
        self._ready_at = -READY_AGE_SECONDS  # as the last look ended, if it saw that

    async def answer(self, path: str) -> Response:
        """Answer one of PROBES. Raises StoreUnavailable.

        A look at readiness that takes longer goes on, and is answered for by the one before it: a
        database that answers in a second or two would else be away for the half of all probes.
        """
        probe, loop = partial(PROBES[path], self._services), asyncio.get_running_loop()
        if path == HEALTHZ:
            return probe()
        if path not in self._looks:
            self._looks[path] = loop.run_in_executor(self._threads, probe)
            self._began[path] = loop.time()
            self._looks[path].add_done_callback(partial(self._note, path))
        try:
            async with asyncio.timeout(ANSWER_SECONDS if path == READYZ else LOOK_SECONDS):
                return await asyncio.shield(self._looks[path])
        except TimeoutError:
            now = loop.time()
            is_slow = now - self._began[path] < LOOK_SECONDS
            if path == READYZ and is_slow and now - self._ready_at < READY_AGE_SECONDS:
                return READY
            raise StoreUnavailable("the database does not answer") from None

    def _note(self, path: str, look: asyncio.Future[Response]) -> None:
        del self._looks[path]
        failed = look.cancelled() or look.exception() is not None
        if path == READYZ:
            now = asyncio.get_running_loop().time()
            self._ready_at = -READY_AGE_SECONDS if failed else now
