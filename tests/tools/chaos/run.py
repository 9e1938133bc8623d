"""The fault harness: receivers behind the real nginx, a sender that never gives up, and faults.

    make chaos SIZE=small                  what CI runs, about four minutes
    make chaos                             20,000 callbacks, 3 nodes; 20,000 more in deploys, and
                                           20,000 jobs that end, sent on to two subscriptions
    make chaos ARGS="--seeds 5"            the same with five seeds
    make chaos ARGS="--only 'failed over' --kind postgresql --seed 7"
    make chaos ARGS="--deliveries-only"    only what is sent on
    make chaos-controls                    only the broken builds, each of which must be caught

Each fault strikes while the sender sends; the next one follows when the service has recovered. A
line tells when a fault struck, how long it held, after how long the first 503 came, the slowest
answer, and how long after the fault's end the service accepted again and all nodes were well. At
the end all that was sent must be accepted, and what was acknowledged, what is stored and what the
law of jobs says must agree. A violation ends the run with 1, and the seed to repeat it is printed.

Probes are promised within a second on two processors that do nothing else; SIZE=small, which runs
on whatever CI has, takes three for a fault. What took half a second is told with where it spent
that: a machine that others use starves probe, node and database alike. As root the prober goes
before the load that the run makes itself.

It needs nginx; as root it fills a disk of its own, and with PgBouncer one node goes through that.
What cannot be had is left out by name. Everything listens on the loopback alone.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

# For what other tests have, too.
sys.path.extend(str(Path(__file__).resolve().parents[2] / room) for room in ("", "system"))

import report
from checker import check
from controls import run_controls
from deliveries import deliver
from deploys import roll
from faults import FAULTS, schedule
from processes import ToolError, end_all, say
from report import Account
from stage import Layout, Stage
from storm import Storm

KINDS = ("postgresql", "sqlite")


@dataclass(frozen=True)
class Size:
    """How much is done: nodes, connections, and callbacks, in the storm and in the restarts.

    endings, rounds -- how many jobs end while what is sent of them is disturbed, how many times.
    probe -- seconds that one may take.
    """

    nodes: int
    connections: int
    callbacks: int
    restarts: int
    restart_callbacks: int
    endings: int
    rounds: int
    probe: float = 1.0


SIZES = {
    "small": Size(2, 24, 1500, 4, 1000, 300, 1, probe=3.0),
    "full": Size(3, 48, 20_000, 20, 20_000, 20_000, 3),
}


def main(words: list[str]) -> int:
    """Run what was asked for; 1 if a promise was broken, 2 if the run could not be done."""
    asked = _parser().parse_args(words)
    signal.signal(signal.SIGTERM, _ended)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    folder.chmod(0o755)
    accounts: list[Account] = []
    controls: dict[str, bool] = {}
    try:
        if not asked.controls_only:
            for seed in range(asked.seed, asked.seed + asked.seeds):
                if not asked.deliveries_only:
                    accounts += [
                        _run(asked, folder / f"{seed}-{kind}", kind, seed) for kind in asked.kind
                    ]
            if not asked.only:
                accounts += [_deliver(asked, folder, kind) for kind in asked.kind]
        if asked.controls_only or not (asked.only or asked.deliveries_only):
            controls = run_controls(folder, asked.seed)
    except ToolError as error:
        say(f"chaos: {error}")
        return 2
    except KeyboardInterrupt:
        say("\nstopped")
        return 130
    finally:
        end_all()
        good = all(account.good for account in accounts) and all(controls.values())
        _clean(folder, keep=asked.keep or not good)
    return _verdict(accounts, controls)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="so many runs, seed after seed")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    names = sorted({fault.name for fault in FAULTS})
    parser.add_argument("--only", nargs="+", choices=names, metavar="FAULT", help=", ".join(names))
    parser.add_argument("--deliveries-only", action="store_true")
    parser.add_argument("--controls-only", action="store_true")
    parser.add_argument(
        "--keep", action="store_true", help="the logs; they stay if a run is broken"
    )
    return parser


def _run(asked: argparse.Namespace, folder: Path, kind: str, seed: int) -> Account:
    """One storm on one kind of database."""
    size = SIZES[asked.size]
    account, began = Account(kind, seed), time.monotonic()
    nodes, workers = (size.nodes, 2) if kind == "postgresql" else (1, 4)
    layout = Layout(kind, folder, seed, nodes, workers, size.connections)
    say(f"{kind}, seed {seed}: {nodes} nodes of {workers} workers")
    stage = Stage(layout)
    try:
        faults, account.missing = schedule(stage, asked.size)
        faults = [fault for fault in faults if not asked.only or fault.name in asked.only]
        storm = Storm(stage, max(40, size.callbacks // max(1, len(faults))), size.probe)
        for fault in faults:
            storm.strike(fault)
        storm.settle()
        if kind == "postgresql" and not asked.only:
            account.restarts = size.restarts
            account.restarted = roll(storm, size.restarts, size.restart_callbacks)
        storm.forge()
        account.wrong = check(storm)
        account.take(storm)
    except ToolError as error:
        stage.violations.append(str(error))
        account.take(storm)
    finally:
        stage.close()
    account.seconds = time.monotonic() - began
    report.show(account)
    return account


def _deliver(asked: argparse.Namespace, folder: Path, kind: str) -> Account:
    """Jobs that end, sent on to subscriptions, on one kind of database."""
    size, began = SIZES[asked.size], time.monotonic()
    account = Account(f"{kind}, sent on", asked.seed)
    nodes, workers = (2, 2) if kind == "postgresql" else (1, 4)
    to = folder / f"deliveries-{kind}"
    say(f"{account.kind}, seed {asked.seed}: {nodes} nodes of {workers} workers")
    stage = Stage(Layout(kind, to, asked.seed, nodes, workers, size.connections))
    storm = Storm(stage, 0, timed=False)  # the other storm is, by the same faults
    try:
        account.wrong = deliver(storm, size.endings, size.rounds)
    except ToolError as error:
        stage.violations.append(str(error))
    finally:
        account.take(storm)
        stage.close()
    account.seconds = time.monotonic() - began
    report.show(account)
    return account


def _verdict(accounts: list[Account], controls: dict[str, bool]) -> int:
    bad = sorted({account.seed for account in accounts if not account.good})
    missed = [name for name, caught in controls.items() if not caught]
    if bad:
        say(f"\nBROKEN with seed {', '.join(map(str, bad))}: repeat it with --seed")
    if missed:
        say(f"\nNOT CAUGHT: {', '.join(missed)}")
    if not bad and not missed:
        say("\nno promise was broken" + (", every broken build was caught" if controls else ""))
    return 1 if bad or missed else 0


def _clean(folder: Path, *, keep: bool) -> None:
    if keep:
        say(f"the logs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _ended(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(sys.argv[1:]))
