"""Rolling restarts and a migration under load: nobody outside may notice."""

import subprocess
import time
from collections import Counter
from pathlib import Path

from processes import ROOT, ChaosError, run, say
from storm import Storm

VERSIONS = ROOT / "receiver" / "database" / "migrations" / "versions"


def roll(storm: Storm, restarts: int, callbacks: int) -> dict[int, int]:
    """Restart node after node under load; give what the sender was answered, by status."""
    began = time.monotonic()
    for number in range(restarts):
        share = callbacks * (number + 1) // restarts - callbacks * number // restarts
        storm.stage.sender.send(storm.stage.plan.portion(share, twins=0), seconds=1.5)
        _restart(storm, number)
        say(f"  restart {number + 1} of {restarts}, {storm.stage.sender.unsettled} under way")
    storm.settle()
    return _answers(storm, "rolling restarts", began)


def migrate(storm: Storm, tree: Path, portion: int) -> dict[int, int]:
    """Bring the schema up to date beneath old code, then the code, node by node; give the answers.

    tree -- the new code.
    """
    stage, began = storm.stage, time.monotonic()
    stage.sender.send(stage.plan.portion(portion, twins=0), seconds=2)
    stage.tree = tree
    say(f"  {stage.command('db', 'upgrade')}, and old code goes on")
    for number in range(len(stage.nodes)):
        stage.sender.send(stage.plan.portion(portion, twins=0), seconds=1.5)
        _restart(storm, number, tree)
    storm.settle()
    return _answers(storm, "migration", began)


def old_tree(folder: Path) -> Path | None:
    """The code as it was before the newest migration; None without one, or without history."""
    migrations = sorted(VERSIONS.glob("[0-9]*.py"))
    if len(migrations) < 2:
        return None
    asked = ["log", "-1", "-m", "--first-parent", "--no-renames", "--diff-filter=A", "--format=%H"]
    git = ["git", "-C", str(ROOT)]
    try:
        came_with = run([*git, *asked, "--", str(migrations[-1])]).strip()
        archive = subprocess.run(
            [*git, "archive", f"{came_with}^", "receiver", "docs"],
            check=True,
            capture_output=True,
            timeout=60,
        )
    except (ChaosError, OSError, subprocess.SubprocessError):
        return None
    folder.mkdir()
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True, timeout=60)
    return folder


def _restart(storm: Storm, number: int, tree: Path | None = None) -> None:
    node = storm.stage.nodes[number % len(storm.stage.nodes)]
    node.restart(tree)
    storm.stage.until_ready(node)


def _answers(storm: Storm, what: str, began: float) -> dict[int, int]:
    storm.judge_probes(what)
    tries = storm.stage.sender.log.during(began, time.monotonic())
    codes = Counter(each.status for each in tries if each.to == "balancer")
    others = sum(count for code, count in codes.items() if not 200 <= code < 300)
    if others:
        storm.stage.violations.append(
            f"{what}: {others} tries were not answered 2xx: {dict(codes)}"
        )
    return dict(codes)
