"""Running ours: memory of its workers, time to start, and callbacks while `prune` runs."""

import random
import subprocess
import time
from statistics import median
from typing import Self

from bench import Bench, Row, Started
from bodies import FIRST_JOB, STYLES
from callbacks import check
from contenders import Contender, serve
from machine import environment, resident_mb
from processes import PYTHON, ToolError, children, free_port, is_writer
from reading import Filled
from seeding import FIRST, seed
from wrk import Load, post

from receiver.database.engine import Database
from receiver.jobs.queries import Filters, find_jobs, list_jobs

CONNECTIONS = 32


def memory(bench: Bench, contender: Contender) -> None:
    """Note the largest worker's resident memory half way and at the end, and the writer's."""
    base = bench.databases.migrated(str(contender.database))
    kind, port = contender.database, free_port()
    loads: list[Load] = []
    wanted = bench.options.memory_callbacks
    with bench.started(serve(port, base), port, "/readyz", 200) as server:
        for part in (wanted // 2, wanted):
            while sum(load.acknowledged for load in loads) < part:
                loads.append(_chunk(bench, contender, port, loads))
            bench.results.note(f"memory-{kind}-after-{part}", _largest(server, writers=False))
        bench.results.note(f"memory-{kind}-writer", _largest(server, writers=True))
    check(bench, contender, base, loads)
    bench.databases.drop(base)


def lookups(bench: Bench, contender: Contender) -> None:
    """Note how many ms a job and a page by filter take of many jobs, without HTTP."""
    jobs, kind = bench.options.lookup_jobs, contender.database
    base = seed(bench, contender, jobs, ("jobs",))
    database, chance = Database(base.url()), random.Random(1)
    filters = Filters(instances=["i7"], statuses=["COMPLETED"])
    times: dict[str, list[float]] = {"job": [], "page": []}
    for _ in range(1_000):
        id_ = str(FIRST_JOB + chance.randrange(jobs // FIRST * FIRST))
        for name, found in (
            ("job", lambda id_=id_: find_jobs(database, id_)),
            ("page", lambda: list_jobs(database, filters, 50)),
        ):
            began = time.perf_counter()
            if not found():
                raise ToolError(f"nothing was found at {jobs:,} jobs: {name} {id_}")
            times[name].append((time.perf_counter() - began) * 1000)
    for name, each in times.items():
        bench.results.note(f"lookup-{kind}-{name}-of-{jobs}-ms", median(each))
    database.close()
    bench.databases.drop(base)


def startup(bench: Bench, contender: Contender) -> None:
    """Note the seconds from exec to the first 200 of /readyz, on a database that is up to date."""
    base = bench.databases.migrated(str(contender.database))
    for name in ("first", "again"):
        port = free_port()
        with bench.started(serve(port, base), port, "/readyz", 200) as server:
            bench.results.note(f"startup-{contender.database}-{name}", server.seconds)
    bench.databases.drop(base)


def prune(bench: Bench, filled: Filled, start: int, number: int) -> int:
    """Load ours without and with `receiver prune` beside it; give where bodies go on.

    Rounds alternate in which comes first, so that neither is always the one with more rows.
    """
    kind, port = filled.contender.database, free_port()
    with bench.started(serve(port, filled.base), port, "/readyz", 200):
        start = _post(bench, filled.contender, port, start, 1).position
        for pruned in (True, False) if number % 2 else (False, True):
            with _Pruning(filled, running=pruned) as pruning:
                load = _post(bench, filled.contender, port, start, bench.options.seconds)
                idle = pruning.was_idle()
            start = load.position
            name, title = ("while", "while prune runs") if pruned else ("without", "no prune")
            row = Row(
                f"prune-{kind}-{name}",
                f"callbacks at {filled.jobs:,} jobs, {title}, {kind}",
                "prune",
                CONNECTIONS,
            )
            if load.wrapped:
                raise ToolError(f"{row.name}: bodies were sent twice: make more of them")
            if idle:
                bench.results.notes.append(f"{row.name}: left out, {idle}")
            else:
                bench.results.add(row, load)
    return start


class _Pruning:
    """`receiver prune` of all that was seeded, ended when the load is over; or nothing."""

    def __init__(self, filled: Filled, *, running: bool) -> None:
        self._base, self._running = filled.base, running
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Self:
        if self._running:
            before = self._progress()
            self._process = subprocess.Popen(
                [PYTHON, "-m", "receiver", "prune", "--older-than", "1h", "--yes"],
                env=environment({"RECEIVER_DATABASE_URL": self._base.url()}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            deadline = time.monotonic() + 30
            while self._progress() == before and time.monotonic() < deadline:
                time.sleep(0.05)
            self._began = self._progress()
        return self

    def was_idle(self) -> str | None:
        """Why this does not count: prune ended early, or did nothing. Raises ToolError."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            return None if self._progress() != self._began else "prune deleted nothing meanwhile"
        if self._process.returncode:
            told = self._process.stderr.read().decode() if self._process.stderr else ""
            raise ToolError(f"prune failed: {told[-300:]}")
        return "prune ended before the load did"

    def _progress(self) -> tuple[int, ...]:
        """What moves while prune deletes, each found by an index."""
        marks = (
            "SELECT bodies_before, events_before, errors_before, (SELECT min(n) FROM timeline),"
            " (SELECT count(*) FROM events WHERE body IS NULL) FROM retention"
        )
        return tuple(self._base.rows(marks)[0])

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()


def _largest(server: Started, *, writers: bool) -> float:
    return max(resident_mb(pid) for pid in children(server.pid) if is_writer(pid) == writers)


def _chunk(bench: Bench, contender: Contender, port: int, loads: list[Load]) -> Load:
    start = loads[-1].position if loads else 0
    load = _post(bench, contender, port, start, max(1, bench.options.seconds // 2))
    if not load.acknowledged:
        raise ToolError(f"{contender.name} acknowledged nothing")
    return load


def _post(bench: Bench, contender: Contender, port: int, start: int, seconds: int) -> Load:
    bodies, header = bench.bodies.file(contender.style), STYLES[contender.style].header
    return post(
        port, contender.path, bodies, header, connections=CONNECTIONS, seconds=seconds, start=start
    )
