"""What all measurements share: options, folders, databases, bodies, and where results go."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import median

from bodies import Bodies
from contenders import Start
from databases import Databases
from machine import until_answering
from wrk import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for on the command line. jobs -- sizes of the tables that are read."""

    rounds: int
    seconds: int
    warm_up: int
    jobs: tuple[int, ...]
    memory_callbacks: int
    lookup_jobs: int
    only: tuple[str, ...]


@dataclass(slots=True)
class Row:
    """One line of the table, with what each round saw. Rates are successes a second."""

    name: str
    title: str
    group: str
    connections: int
    loads: list[Load] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)  # µs an answer, of all the server's processes

    @property
    def cpu(self) -> float | None:
        """The median of the processor time of an answer, µs, its database's included."""
        return median(self.cpus) if self.cpus else None

    @property
    def rate(self) -> float:
        """The median."""
        return median(load.rate for load in self.loads)

    @property
    def p50(self) -> float:
        """The median of the rounds' medians, ms; infinite if nothing was answered."""
        return median(load.p50 if load.answered else inf for load in self.loads)

    @property
    def p99(self) -> float:
        """The median of the rounds' 99th percentiles, ms; infinite if nothing was answered."""
        return median(load.p99 if load.answered else inf for load in self.loads)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest rate."""
        rates = [load.rate for load in self.loads]
        return min(rates), max(rates)


@dataclass(slots=True)
class Results:
    """Everything that was measured. Figures besides rows are single numbers, a list for rounds."""

    rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, row: Row, load: Load, cpu: float | None = None) -> Row:
        """Add what a round saw. cpu -- seconds of all the server's processes meanwhile."""
        kept = self.rows.setdefault((row.name, row.connections), row)
        kept.loads.append(load)
        if cpu is not None and load.answered:
            kept.cpus.append(cpu / load.answered * 1e6)
        return kept

    def note(self, name: str, value: float) -> None:
        """Add a figure of a round."""
        self.figures.setdefault(name, []).append(value)

    def row(self, name: str, connections: int = 32) -> Row | None:
        """A row, if it was measured."""
        return self.rows.get((name, connections))

    def of(self, *groups: str) -> list[Row]:
        """The rows of some groups, group by group."""
        rows = [row for row in self.rows.values() if row.group in groups]
        return sorted(rows, key=lambda row: groups.index(row.group))

    def figure(self, name: str) -> float | None:
        """The median of a figure, if it was measured."""
        return median(self.figures[name]) if name in self.figures else None


@dataclass(slots=True)
class Bench:
    """A run of the bench."""

    options: Options
    folder: Path
    databases: Databases
    bodies: Bodies
    results: Results = field(default_factory=Results)

    @contextmanager
    def started(
        self, start: Start, port: int, ready: str, status: int | None = None
    ) -> Iterator["Started"]:
        """A server that answers; what it writes goes into a file of its own."""
        log = self.folder / f"server-{port}.log"
        began = time.perf_counter()
        with start.serving(log) as process:
            until_answering(process, port, ready, log, wanted=status)
            yield Started(process.pid, time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Started:
    """A server: its process and the seconds from its start to its first answer."""

    pid: int
    seconds: float
