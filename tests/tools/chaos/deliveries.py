"""Outcomes sent on while receivers, database and targets die: each ending at least once.

Two subscriptions, each with a target of its own that is killed, answers 500 and hangs for a while.
Each job has one ending and nothing else is said of it, so what a delivery says of its job is what
the API says of it afterwards, to the millisecond. One ending in ten is sent once, whatever becomes
of it: those that were never committed must never be delivered. That the same delivery comes twice
is no fault; that it comes with another `webhook-id` or another body is.
"""

import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from checker import list_jobs
from faults import (
    BOTH,
    LITE,
    PG,
    Fault,
    killed_between,
    master_killed,
    node_restarted,
    stopped,
    worker_killed,
    writer_fails,
    writer_killed,
)
from http_client import Request
from plan import Plan
from processes import HOST, say, tell, until
from stage import Stage
from storm import Storm
from target import Target

from receiver.openconnectors.signatures import HEADER, sign

Job: TypeAlias = tuple[str, str]  # (id, instance)

CALM = 60.0  # seconds in which nothing more arrives; then whatever is missing is lost
MAX_PORTION = 150  # endings that are sent while a fault strikes; others of it are sent before
ONCE = 10  # each how many-th ending is sent once
RECEIVER_FAULTS = (
    Fault("worker killed", worker_killed),
    Fault("writer killed", writer_killed, LITE),
    Fault("master killed", master_killed),
    Fault("killed after commit", killed_between),
    Fault("writer fails", writer_fails, BOTH, (1, 2)),
    Fault("node restarted", node_restarted),
    Fault("database killed", stopped("kill"), PG, (0, 2), outage=True),
)


class Endings(Plan):
    """Jobs of which one ending is said, and nothing else."""

    max_words = 1
    ended = 1.0


@contextmanager
def subscribed(stage: Stage) -> Iterator[list[Target]]:
    """Two targets, each with a subscription; from now on only endings are sent."""
    stage.plan = Endings(random.Random(stage.layout.seed), [node.name for node in stage.nodes])
    hosts = {"first": HOST, "second": "localhost"}
    targets = [Target(name, stage.layout.folder / name, host) for name, host in hosts.items()]
    try:
        for target in targets:
            _subscribe(stage, target)
        yield targets
    finally:
        for target in targets:
            target.kill()


def deliver(storm: Storm, endings: int, rounds: int) -> dict[str, int]:
    """Have jobs end in so many rounds of faults; count what is wrong with what is sent of them."""
    with subscribed(storm.stage) as targets:
        faults = _faults(storm.stage, targets, rounds)
        of_fault = -(-endings // len(faults))
        once = of_fault // ONCE
        storm.portion = min(MAX_PORTION, of_fault - once)
        for fault in faults:
            storm.stage.sender.send(storm.stage.plan.portion(of_fault - once - storm.portion))
            storm.settle()
            _send_once(storm.stage, once)
            storm.strike(fault)
        return verdict(storm, targets)


def kill_the_sender(storm: Storm, targets: list[Target]) -> None:
    """Kill the workers of a receiver, which send, while targets hang: an attempt has just begun."""
    stage = storm.stage
    for target in targets:
        target.behave("hangs")
    stage.sender.send(stage.plan.portion(30))
    storm.settle()
    before = len(targets[0].seen())
    until(lambda: len(targets[0].seen()) > before, "an attempt")
    tell(stage.nodes[0].worker_pids, signal.SIGKILL)
    for target in targets:
        target.behave("")


def verdict(storm: Storm, targets: list[Target], calm: float = CALM) -> dict[str, int]:
    """Wait until all is delivered, and count what is wrong, by what it is."""
    storm.settle()
    stage = storm.stage
    stage.until_ready(stage.nodes[0])
    ended = {(job["id"], job["instance"]): job for job in list_jobs(storm)}
    _await_all(ended, targets, calm)
    seen = [one for target in targets for one in target.seen()]
    again = len(seen) - len({(one.id, one.job) for one in seen})
    say(f"  {len(ended):,} jobs ended; {len(seen):,} deliveries, {again:,} of them again")
    return check(ended, targets)


def _subscribe(stage: Stage, target: Target) -> None:
    secret = stage.command("subscriptions", "add", target.name, "--url", target.url)
    (target.folder / "secret").write_text(secret)
    target.start()


def _send_once(stage: Stage, count: int) -> None:
    """Send endings that nobody sends again."""
    for _ in range(count):
        new = stage.plan.fresh()
        headers = {HEADER: sign(new.body, stage.sender.keys[new.instance])}
        asked = Request("POST", f"/callbacks/{new.instance}", headers, new.body)
        stage.sender.begin(new.to, asked)


def _await_all(ended: Collection[Job], targets: list[Target], calm: float) -> None:
    """Wait until all is delivered, as long as anything more arrives."""
    wanted, arrived, since = set(ended), -1, time.monotonic()
    while time.monotonic() - since < calm:
        seen = [target.seen() for target in targets]
        if all(wanted <= {one.job for one in each if one.accepted} for each in seen):
            return
        if (now := sum(map(len, seen))) != arrived:
            arrived, since = now, time.monotonic()
        time.sleep(0.5)


def check(ended: dict[Job, dict[str, Any]], targets: list[Target]) -> dict[str, int]:
    """Count what is wrong with what arrived. ended -- jobs, as the API shows them."""
    wrong = dict.fromkeys(
        (
            "ended, not delivered",
            "delivered, not committed",
            "delivered unlike its job",
            "not verified",
            "of another webhook-id",
            "of another body",
        ),
        0,
    )
    for target in targets:
        ids: dict[Job, set[str]] = defaultdict(set)
        bodies: dict[str, set[str]] = defaultdict(set)
        accepted: set[Job] = set()
        for one in target.seen():
            ids[one.job].add(one.id)
            bodies[one.id].add(one.body)
            accepted |= {one.job} if one.accepted else set()
            wrong["not verified"] += not one.verified
            wrong["delivered unlike its job"] += one.data != ended.get(one.job, one.data)
        wrong["ended, not delivered"] += len(ended.keys() - accepted)
        wrong["delivered, not committed"] += len(ids.keys() - ended.keys())
        wrong["of another webhook-id"] += sum(len(each) - 1 for each in ids.values())
        wrong["of another body"] += sum(len(each) - 1 for each in bodies.values())
    return wrong


def _faults(stage: Stage, targets: list[Target], rounds: int) -> list[Fault]:
    every = (*RECEIVER_FAULTS, *_target_faults(targets))
    faults = [fault for fault in every if stage.layout.kind in fault.kinds] * rounds
    stage.chance.shuffle(faults)
    return faults


def _target_faults(targets: list[Target]) -> tuple[Fault, ...]:
    def behaves(mode: str) -> Callable[[Stage], Any]:
        @contextmanager
        def strike(stage: Stage) -> Iterator[None]:
            target = stage.chance.choice(targets)
            target.behave(mode)
            yield
            target.behave("")

        return strike

    @contextmanager
    def killed(stage: Stage) -> Iterator[None]:
        target = stage.chance.choice(targets)
        target.kill()
        yield
        target.start()

    return (
        Fault("target killed", killed, BOTH, (1, 3)),
        Fault("target fails", behaves("fails"), BOTH, (1, 3)),
        Fault("target hangs", behaves("hangs"), BOTH, (2, 4)),
    )
