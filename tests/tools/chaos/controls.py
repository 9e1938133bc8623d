"""Whether the harness can see at all: broken builds and a tampered database must be noticed."""

import json
import shutil
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import broken
from checker import check
from deliveries import kill_the_sender, subscribed, verdict
from faults import FAULTS, file_locked
from processes import PYTHON, ROOT, ToolError, children, run, say, tell
from stage import Layout, Stage
from storm import Storm

# A little of everything that the checker looks for, done to a database behind everyone's back.
TAMPER = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
ids = [n for n, in c.execute("SELECT n FROM events WHERE kind = 'bulk_job' ORDER BY n")]
c.execute("UPDATE events SET body = CAST(body || ' ' AS BLOB) WHERE n = ?", ids[:1])
c.execute("UPDATE events SET changed = NULL WHERE n = ?", ids[1:2])
c.execute("UPDATE events SET deliveries = 1000 WHERE n = ?", ids[2:3])
c.execute("UPDATE events SET kind = 'other' WHERE n = ?", ids[3:4])
c.execute("UPDATE events SET sha256 = x'00' WHERE n = ?", ids[4:5])
c.execute("UPDATE jobs SET registers = '[]' WHERE id = (SELECT min(id) FROM jobs)")
c.commit()
"""
TAMPERED = {
    "acknowledged, not stored": 1,
    "stored, never sent": 1,
    "stored with other bytes": 1,
    "deliveries miscounted": 2,
    "of a wrong kind": 1,
    "merged not once": 2,
}
FORGED = {
    "delivered, not committed": 1,
    "delivered unlike its job": 1,
    "not verified": 1,
    "of another webhook-id": 1,
    "of another body": 2,
}
CALM = 20.0  # seconds; longer than a lease, so what does not come then was dropped


def run_controls(folder: Path, seed: int) -> dict[str, bool]:
    """Run each broken build; tell whether it was caught."""
    say("\nbroken builds")
    if not shutil.which("strace"):
        raise ToolError("strace is not installed")
    if not broken.is_traced(ROOT, folder / "traced"):
        raise ToolError("the fsync trace fails without anything being broken")
    caught = {
        "tampered with": _is_tampering_noticed(folder / "tampered", seed),
        "deliveries tampered with": _are_forgeries_noticed(folder / "forged", seed),
    }
    for number, build in enumerate(broken.BUILDS):
        tree = broken.make(build, folder / f"broken-{number}")
        caught[build.name] = _is_caught(build, tree, folder / f"control-{number}", seed)
    for name, noticed in caught.items():
        say(f"  {name:<28} {'caught' if noticed else 'NOT CAUGHT'}")
    return caught


def _is_tampering_noticed(folder: Path, seed: int) -> bool:
    """Change the database behind everyone's back; the checker must count just that."""
    stage = Stage(Layout("sqlite", folder, seed, 1, 2, 24))
    try:
        storm = Storm(stage, 150)
        stage.sender.send(stage.plan.portion(300))
        storm.settle()
        before = check(storm)
        run([*stage.disk.inside, PYTHON, "-c", TAMPER, str(stage.sqlite)])
        after = check(storm)
        changed = {name: after[name] for name in after if name != "jobs not as the law says"}
        return (
            not any(before.values())
            and after["jobs not as the law says"] > 0
            and changed == {**dict.fromkeys(changed, 0), **TAMPERED}
        )
    finally:
        stage.close()


def _are_forgeries_noticed(folder: Path, seed: int) -> bool:
    """Note deliveries that never came beside one that did; the check must count just those."""
    stage = Stage(Layout("sqlite", folder, seed, 1, 2, 24))
    try:
        storm = Storm(stage, 0)
        with subscribed(stage) as targets:
            kill_the_sender(storm, targets)
            before = verdict(storm, targets)
            one = targets[0].seen()[0]
            forged = json.dumps({**json.loads(one.body), "data": {**one.data, "file": "forged"}})
            stranger = json.dumps({"data": {**one.data, "id": "forged"}})
            targets[0].note(
                replace(one, id="another"),
                replace(one, body=f"{one.body} "),
                replace(one, body=forged),
                replace(one, id="stranger", body=stranger),
                replace(one, verified=False),
            )
            return not any(before.values()) and verdict(storm, targets) == {**before, **FORGED}
    finally:
        stage.close()


def _is_caught(build: broken.Build, tree: Path, folder: Path, seed: int) -> bool:
    if build.caught_by == broken.TRACE:
        return not broken.is_traced(tree, folder)
    fault = next((each for each in FAULTS if each.name == build.fault), None)
    kind = fault.kinds[0] if fault else "sqlite"
    stage = Stage(Layout(kind, folder, seed, 1, 2, 24, tree))
    try:
        storm = Storm(stage, 150)
        if build.sent_on:
            with subscribed(stage) as targets:
                kill_the_sender(storm, targets)
                return verdict(storm, targets, CALM)[build.caught_by] > 0
        stage.sender.send(stage.plan.portion(300))
        if build.killed:
            _kill_uncommitted(stage)
        with ExitStack() as ongoing:
            if fault:
                stage.sender.settle(30)
                ongoing.enter_context(fault.strike(stage))
                stage.sender.send(stage.plan.portion(50))
                stage.sender.settle(3)
            if build.restarted:
                stage.nodes[0].restart()
                stage.until_ready(stage.nodes[0])
            else:
                ongoing.close()
            storm.settle()
            return check(storm)[build.caught_by] > 0
    finally:
        stage.close()


def _kill_uncommitted(stage: Stage) -> None:
    """Kill all processes but the master while nothing can be committed: what they held is lost."""
    stage.sender.settle(30)
    with file_locked(stage):
        stage.sender.send(stage.plan.portion(50))
        time.sleep(1)
        tell(children(stage.nodes[0].master), signal.SIGKILL)
