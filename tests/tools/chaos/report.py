"""What is told after a run: tables for people, JSON for machines."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from processes import say
from storm import RECOVERY, Storm, Stroke

SHOWN = 5  # of the slowest probes; the JSON has all from `SLOW` on


@dataclass
class Account:
    """One stage's run. wrong -- what the checker counted. missing -- faults that cannot be had."""

    kind: str
    seed: int
    callbacks: int = 0
    seconds: float = 0.0
    answers: dict[int, int] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    strokes: list[Stroke] = field(default_factory=list)
    deploys: dict[str, dict[int, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    injected: dict[str, int] = field(default_factory=dict)
    probes: int = 0
    worst_probe: float = 0.0  # seconds, of those answered 200
    slow_probes: list[dict[str, Any]] = field(default_factory=list)

    def take(self, storm: Storm) -> None:
        """Note what a storm has seen so far."""
        stage = storm.stage
        self.callbacks = len(stage.plan.sent)
        self.answers = dict(Counter(each.status for each in stage.sender.log.tries))
        self.violations, self.strokes = stage.violations, storm.strokes
        seen = stage.prober.seen
        self.probes, self.worst_probe = (
            len(seen),
            max((one.seconds for one in seen if one.status == 200), default=0.0),
        )
        self.slow_probes = [
            {"during": during, "after": probe.began - storm.began, "shown": str(probe)}
            | probe._asdict()
            for during, probe in sorted(storm.slow, key=lambda one: -one[1].seconds)
        ]
        happened = stage.faults / "happened"
        if happened.exists():
            self.injected = dict(Counter(happened.read_text().split()))

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return bool(self.wrong) and not any(self.wrong.values()) and not self.violations


def show(account: Account) -> None:
    """Print the table of a stage's run."""
    say(f"\n{account.kind}, seed {account.seed}: {account.seconds:.0f} s")
    answers = ", ".join(f"{code or 'none'}: {n:,}" for code, n in sorted(account.answers.items()))
    say(f"  {account.callbacks:,} callbacks; tries by answer {answers}")
    say(f"  {account.probes:,} probes, the slowest good one {account.worst_probe:.2f} s")
    for one in account.slow_probes[:SHOWN]:
        say(f"    {one['during']}, {one['shown']}")
    for what, codes in account.deploys.items():
        told = ", ".join(f"{code or 'none'}: {n:,}" for code, n in sorted(codes.items()))
        say(f"  {what}: {told}")
    by_name: dict[str, list[Stroke]] = defaultdict(list)
    for stroke in account.strokes:
        by_name[stroke.name].append(stroke)
    if by_name:
        heads = ("times", "first 503", "worst answer", "accepted again", "all well")
        say("  " + f"{'fault':<24}" + "".join(f"{head:>16}" for head in heads))
    for name, strokes in sorted(by_name.items()):
        refusals = [each.first_refusal for each in strokes if each.first_refusal is not None]
        figures = [
            str(len(strokes)),
            f"{max(refusals):.1f} s" if refusals else "-",
            *(
                f"{max(getattr(each, fact) for each in strokes):.1f} s"
                for fact in ("worst", "accepted", "recovered")
            ),
        ]
        say(f"  {name:<24}" + "".join(f"{figure:>16}" for figure in figures))
    for what, count in account.wrong.items():
        say(f"  {what:<28}{count:>8}")
    for name in account.missing:
        say(f"  left out: {name}")
    for violation in account.violations:
        say(f"  VIOLATED: {violation}")
    say(f"  {'kept every promise' if account.good else 'BROKEN'}")


def document(accounts: list[Account], controls: dict[str, bool]) -> dict[str, Any]:
    """Everything that was found, for JSON."""
    return {
        "recovery_seconds_allowed": RECOVERY,
        "runs": [{**asdict(account), "good": account.good} for account in accounts],
        "broken_builds_caught": controls,
    }


def write(path: Path, accounts: list[Account], controls: dict[str, bool]) -> None:
    """Write everything that was found as JSON."""
    path.write_text(json.dumps(document(accounts, controls), indent=1) + "\n")
