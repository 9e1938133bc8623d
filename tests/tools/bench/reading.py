"""The read side at several sizes of the tables: jobs, pages, the summary, the dashboard."""

import json
from dataclasses import dataclass
from typing import Any

from bench import Bench, Row
from bodies import FIRST_JOB
from contenders import REFERENCES, Contender, serve
from databases import Base, ours
from machine import bearer, cpu_seconds, get_once, sign_in
from processes import ToolError, free_port
from seeding import FIRST, seed
from wrk import Load, get

CONNECTIONS = 32
PAGE = 50
QUERIES = {
    "job": ("GET /jobs/{id}", "/api/v1/jobs/"),
    "partial": ("page of 50, outcome=partial", "/api/v1/jobs?outcome=partial&limit=50"),
    "instance": (
        "page of 50, instance and status",
        "/api/v1/jobs?instance=i7&status=COMPLETED&limit=50",
    ),
    "summary": ("GET /summary", "/api/v1/summary"),
}
# Of the dashboard, one after the other as one person asks, beside a single job asked for likewise.
PAGES = {
    "front": ("the front page", "/"),
    "page": ("page of 25, partial", "/jobs?outcome=partial"),
    "overdue": ("what is overdue", "/jobs?show=overdue"),
}
ALONE = "1-"  # before the names of rows at one connection


@dataclass(frozen=True, slots=True)
class Filled:
    """A database with many jobs, and a token to ask for them."""

    contender: Contender
    base: Base
    jobs: int
    token: str


def fill(bench: Bench, contender: Contender, jobs: int) -> Filled:
    """Seed a database of a contender's kind."""
    base = seed(bench, contender, jobs)
    token = ours(base, "tokens", "create", "bench", "--scope", "read")
    return Filled(contender, base, jobs // FIRST * FIRST, token)


def reference(bench: Bench) -> None:
    """GET the view that does nothing."""
    port = free_port()
    start = REFERENCES[0].start(port, None, CONNECTIONS)
    row = Row("read-reference", "GET of the Flask view doing nothing", "reads", CONNECTIONS)
    with bench.started(start, port, "/"):
        load = _asked(bench, port, "/", bearer("none"))
    bench.results.add(row, load)


def measure(bench: Bench, filled: Filled) -> None:
    """Ask each of QUERIES in turn."""
    port = free_port()
    # The upper half: callbacks of `prune` make some of the lower ids ambiguous.
    half = filled.jobs // 2
    jobs = (FIRST_JOB + half, half)
    with bench.started(serve(port, filled.base), port, "/readyz", 200) as server:
        roots = [server.pid, *bench.databases.processes(filled.base)]
        for name, (title, path) in QUERIES.items():
            _check(port, name, path, filled)
            numbers = jobs if name == "job" else (0, 0)
            before = cpu_seconds(*roots)
            load = _asked(bench, port, path, bearer(filled.token), numbers=numbers)
            _add(bench, filled, (name, title), load, cpu_seconds(*roots) - before)
        who = bearer(filled.token)
        load = _asked(bench, port, QUERIES["job"][1], who, numbers=jobs, connections=1)
        _add(bench, filled, (f"{ALONE}job", "GET /jobs/{id}, asked alone"), load)
        who = f"Cookie: {sign_in(port, filled.token)}"
        for name, (title, path) in PAGES.items():
            load = _asked(bench, port, path, who, connections=1)
            _add(bench, filled, (f"{ALONE}{name}", f"dashboard, {title}"), load)


def _add(
    bench: Bench, filled: Filled, named: tuple[str, str], load: Load, cpu: float | None = None
) -> None:
    name, title = named
    kind = filled.contender.database
    row = Row(
        f"read-{kind}-{name}-{filled.jobs}",
        f"{title}, {filled.jobs:,} jobs, {kind}",
        "reads",
        1 if name.startswith(ALONE) else CONNECTIONS,
    )
    bench.results.add(row, load, cpu)
    if load.refused:
        told = f"{row.name}: {load.refused} of {load.answered} were answered with an error"
        bench.results.notes.append(told)


def _check(port: int, name: str, path: str, filled: Filled) -> None:
    """See that the last job, a full page or a summary is answered. Raises ToolError."""
    last = FIRST_JOB + filled.jobs - 1
    status, body = get_once(port, f"{path}{last if name == 'job' else ''}", filled.token)
    answer = json.loads(body)
    right = {"job": lambda: answer["id"] == str(last), "summary": lambda: bool(answer["jobs"])}.get(
        name, lambda: len(answer["jobs"]) == PAGE
    )
    if status != 200 or not right():
        raise ToolError(f"GET {path} at {filled.jobs:,} jobs: {status} {body[:200]!r}")


def _asked(
    bench: Bench,
    port: int,
    path: str,
    who: str,
    *,
    numbers: tuple[int, int] = (0, 0),
    connections: int = CONNECTIONS,
) -> Load:
    shape: dict[str, Any] = {"connections": connections, "numbers": numbers}
    # Through several connections, so that each worker has what it makes once.
    get(port, path, who, seconds=1, **{**shape, "connections": max(connections, 8)})
    return get(port, path, who, seconds=bench.options.seconds, **shape)
