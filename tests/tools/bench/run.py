"""Measures ours, the reference and peers, and prints and writes what was found.

All rows are interleaved: a round measures each of them once, and only ratios within a run count.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for what other tests have, too

import callbacks
import operation
import reading
import report
import wrk
from bench import Bench, Options
from bodies import Bodies
from contenders import CONTENDERS, Contender
from databases import Databases
from goals import goals
from machine import description, fdatasync_ms
from processes import ToolError, say

RESULTS = Path(__file__).parents[3] / "docs" / "bench" / "results.md"
MOST = 25_000  # bodies a second that a storing contender may take
OURS = 12_000  # that ours may take


def main(words: list[str]) -> int:
    """Run the bench; 1 if it cannot be done or a contender lost a callback."""
    asked = _parser().parse_args(words)
    options = _options(asked)
    began = time.monotonic()
    try:
        wrk.require()
        with _bench(options) as bench:
            machine = description()
            _measure(bench)
    except ToolError as error:
        say(f"bench: {error}")
        return 1
    text = report.tables(bench.results, goals(bench.results, options), options, machine)
    asked.output.write_text(text, encoding="utf-8")
    say(f"\n{text}\n{time.monotonic() - began:.0f} s; this is in {asked.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="of load for each row in a round")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="may hold *")
    parser.add_argument("--small", action="store_true", help="prove that it works, quickly")
    parser.add_argument("--jobs", help="sizes of the tables that are read, e.g. 1000,100000")
    parser.add_argument("--output", type=Path, default=RESULTS, help="a file for the results")
    return parser


def _options(asked: argparse.Namespace) -> Options:
    rounds, seconds, jobs, memory, lookup = (
        (1, 1, "1000,20000", 8_000, 50_000)
        if asked.small
        else (3, 5, "1000,100000,1000000", 100_000, 10_000_000)
    )
    return Options(
        rounds=asked.rounds or rounds,
        seconds=asked.seconds or seconds,
        warm_up=1,
        jobs=tuple(int(size) for size in (asked.jobs or jobs).split(",")),
        memory_callbacks=memory,
        lookup_jobs=lookup,
        only=tuple(asked.only),
    )


@contextmanager
def _bench(options: Options) -> Iterator[Bench]:
    once = options.seconds + options.warm_up
    pruning = options.rounds * (2 * options.seconds + options.warm_up) + 1  # on one database
    counts = {
        **dict.fromkeys(("vendor", "later", "uuid", "hex"), MOST * once),
        "new": max(MOST * once, OURS * pruning, 2 * options.memory_callbacks),
        "stripe": MOST * once // 10,
    }
    folder = Path(tempfile.mkdtemp(prefix="receiver-bench-"))
    databases = Databases(folder)
    try:
        yield Bench(options, folder, databases, Bodies(folder, counts))
    finally:
        databases.close()
        shutil.rmtree(folder, ignore_errors=True)


def _measure(bench: Bench) -> None:
    rows = [
        (each, connections)
        for each in CONTENDERS
        if _wanted(bench, each.name)
        for connections in each.connections
    ]
    filled = _filled(bench)
    starts = {(each.base.url()): 0 for each in filled}
    for number in range(bench.options.rounds):
        bench.results.note("fdatasync-ms", fdatasync_ms(bench.folder))
        for contender, connections in rows:
            if contender.name not in bench.results.missing:
                _tell(bench, number, f"{contender.name}, {connections} connections")
                callbacks.measure(bench, contender, connections)
        _operate(bench, number, filled, starts)
    for contender in _chosen(bench, "memory"):
        _tell(bench, 0, f"memory of {contender.name}")
        operation.memory(bench, contender)
    for contender in _chosen(bench, "lookup"):
        _tell(bench, 0, f"lookups of {contender.name}")
        operation.lookups(bench, contender)


def _operate(
    bench: Bench, number: int, filled: list[reading.Filled], starts: dict[str, int]
) -> None:
    """Measure what is asked of ours besides callbacks: starting, reads, and `prune` last."""
    for contender in _chosen(bench, "startup"):
        _tell(bench, number, f"start-up of {contender.name}")
        operation.startup(bench, contender)
    read = [each for each in filled if _wanted(bench, f"read-{each.contender.database}")]
    if read:
        _tell(bench, number, "reads of the reference")
        reading.reference(bench)
    for each in read:
        _tell(bench, number, f"reads of {each.contender.name}, {each.jobs:,} jobs")
        reading.measure(bench, each)
    for each in filled:
        biggest = each.jobs == max(bench.options.jobs) // 100 * 100
        if biggest and _wanted(bench, f"prune-{each.contender.database}"):
            _tell(bench, number, f"prune of {each.contender.name}")
            url = each.base.url()
            starts[url] = operation.prune(bench, each, starts[url], number)


def _filled(bench: Bench) -> list[reading.Filled]:
    """Databases for reads and `prune`, which needs the biggest only."""
    found = []
    for contender in _chosen(bench, "read", "prune"):
        sizes = bench.options.jobs
        if not _wanted(bench, f"read-{contender.database}"):
            sizes = (max(sizes),)
        for jobs in sizes:
            began = time.monotonic()
            found.append(reading.fill(bench, contender, jobs))
            say(f"seeded {jobs:,} jobs, {contender.name}: {time.monotonic() - began:.0f} s")
    return found


def _chosen(bench: Bench, *sections: str) -> list[Contender]:
    """Our two contenders, as far as one of these sections was asked for."""
    return [
        contender
        for contender in CONTENDERS
        if contender.name == f"ours-{contender.database}"
        if any(_wanted(bench, f"{section}-{contender.database}") for section in sections)
    ]


def _wanted(bench: Bench, name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in bench.options.only)


def _tell(bench: Bench, number: int, what: str) -> None:
    say(f"round {number + 1} of {bench.options.rounds}: {what}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
