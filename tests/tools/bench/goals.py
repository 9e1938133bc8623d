"""The goals of speed, each against what this run measured."""

from collections.abc import Callable
from dataclasses import dataclass

from bench import Options, Results
from reading import ALONE, PAGES

FULL_SIZE, SMALL_SIZE = 1_000_000, 1_000
MEMORY_CALLBACKS = 100_000


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and its figure. measured -- None if what it needs was not measured in this run."""

    title: str
    wanted: str
    measured: float | None
    met: bool | None


def goals(results: Results, options: Options) -> list[Goal]:
    """All goals, in the order in which they are printed."""
    return [*_rates(results), *_latencies(results), *_reads(results), *_running(results, options)]


def _rates(results: Results) -> list[Goal]:
    compared = [
        ("SQLite FULL against the do-nothing Flask view", "sqlite", "reference", 2.4),
        ("PostgreSQL against the do-nothing Flask view", "postgresql", "reference", 2.4),
        ("SQLite against Node + better-sqlite3", "sqlite", "node", 3),
        ("SQLite against FastAPI", "sqlite", "fastapi-sqlite", 20),
        ("PostgreSQL against FastAPI", "postgresql", "fastapi-postgresql", 5),
        ("SQLite against dj-stripe", "sqlite", "djstripe-sqlite", 60),
        ("PostgreSQL against dj-stripe", "postgresql", "djstripe-postgresql", 10),
    ]
    found = [
        _least(f"callbacks/s, {title}", _ratio(results, f"ours-{kind}", other), goal)
        for title, kind, other, goal in compared
    ]
    for kind, most in (("sqlite", 85), ("postgresql", 90)):
        ours = f"ours-{kind}"
        row = results.row(ours)
        found.append(_most(f"CPU µs a callback, all processes, {kind}", row and row.cpu, most))
        many, reference = results.row(ours, 256), results.row("reference")
        at_256 = _quotient(many and many.rate, reference and reference.rate)
        found.append(_least(f"callbacks/s at 256 connections, {kind}", at_256, 3.5))
        for name, least in (("later", 0.6), ("uuid", 0.6), ("duplicates", 0.9)):
            part = _ratio(results, f"{ours}-{name}", ours)
            found.append(_least(f"callbacks/s, {name} against new jobs, {kind}", part, least))
    return found


def _latencies(results: Results) -> list[Goal]:
    found = []
    for kind, each in (
        ("sqlite", ("node", "fastapi-sqlite")),
        ("postgresql", ("fastapi-postgresql",)),
    ):
        ours = f"ours-{kind}"
        against = _quotient(_p99(results, ours), _p99(results, "reference"))
        found.append(_most(f"p99 at 32 connections against the reference's, {kind}", against, 1))
        others = [p99 for name in each if (p99 := _p99(results, name, 1)) is not None]
        alone = _quotient(_p99(results, ours, 1), min(others, default=None))
        title = f"p99 at 1 connection against the best of a transaction each, {kind}"
        found.append(_most(title, alone, 1.2))
        found.append(_most(f"p99 at 256 connections, ms, {kind}", _p99(results, ours, 256), 50))
    return found


def _reads(results: Results) -> list[Goal]:
    found = []
    for kind in ("sqlite", "postgresql"):
        big, small = (f"read-{kind}-job-{jobs}" for jobs in (FULL_SIZE, SMALL_SIZE))
        against = _ratio(results, big, "read-reference")
        found.append(_least(f"GET /jobs/{{id}} against the do-nothing view, {kind}", against, 1.2))
        grown = _ratio(results, big, small)
        title = f"GET /jobs/{{id}} at 1,000,000 jobs against 1,000, {kind}"
        found.append(_least(title, grown, 0.95))
        for name in ("partial", "instance"):
            page = _p99(results, f"read-{kind}-{name}-{FULL_SIZE}")
            slower = _quotient(page, _p99(results, big))
            title = f"p99 of a page ({name}) at 1,000,000 jobs against GET /jobs/{{id}}, {kind}"
            found.append(_most(title, slower, 5))
        found += _pages(results, kind)
    return found


def _pages(results: Results, kind: str) -> list[Goal]:
    """The dashboard's pages at one connection, like the job that they are held against."""
    job = results.row(f"read-{kind}-{ALONE}job-{FULL_SIZE}", 1)
    found = []
    for name in PAGES:
        page = results.row(f"read-{kind}-{ALONE}{name}-{FULL_SIZE}", 1)
        for part in ("p50", "p99"):
            slower = _quotient(page and getattr(page, part), job and getattr(job, part))
            title = f"{part} of the dashboard ({name}) against GET /jobs/{{id}}, {kind}"
            found.append(_most(title, slower, 5))
    return found


def _running(results: Results, options: Options) -> list[Goal]:
    found = []
    for kind in ("sqlite", "postgresql"):
        pair = [_p99(results, f"prune-{kind}-{name}") for name in ("while", "without")]
        size = "" if FULL_SIZE in options.jobs else f" (at {max(options.jobs):,} jobs only)"
        found.append(_most(f"p99 while prune runs, {kind}{size}", _quotient(*pair), 2))
        count = options.memory_callbacks
        half, end = (results.figure(f"memory-{kind}-after-{n}") for n in (count // 2, count))
        title = f"resident MB of a worker after {count:,} callbacks, {kind}"
        found.append(_most(title, end, 90))
        writer = results.figure(f"memory-{kind}-writer")
        found.append(_most(f"resident MB of the process that writes, {kind}", writer, 50))
        found.append(
            _most(f"the same of a worker against half as many, {kind}", _quotient(end, half), 1.05)
        )
    return found


def _least(title: str, measured: float | None, goal: float) -> Goal:
    return _goal(title, measured, f"≥ {goal:g}", lambda value: value >= goal)


def _most(title: str, measured: float | None, goal: float) -> Goal:
    return _goal(title, measured, f"≤ {goal:g}", lambda value: value <= goal)


def _goal(title: str, value: float | None, wanted: str, test: Callable[[float], bool]) -> Goal:
    return Goal(title, wanted, value, None if value is None else test(value))


def _ratio(results: Results, ours: str, other: str) -> float | None:
    one, two = results.row(ours), results.row(other)
    return _quotient(one and one.rate, two and two.rate)


def _p99(results: Results, name: str, connections: int = 32) -> float | None:
    row = results.row(name, connections)
    return row and row.p99


def _quotient(one: float | None, two: float | None) -> float | None:
    return one / two if one is not None and two else None
