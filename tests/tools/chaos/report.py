"""What is told after a run."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from probes import Probe
from processes import say
from storm import Storm, Stroke

SHOWN = 5  # of the slowest probes


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
    restarts: int = 0  # rolling ones, and what was answered meanwhile
    restarted: dict[int, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    probes: int = 0
    worst_probe: float = 0.0  # seconds, of those answered 200
    slow: list[tuple[str, Probe]] = field(default_factory=list)  # and what happened meanwhile

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
        self.slow = sorted(storm.slow, key=lambda one: -one[1].seconds)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return bool(self.wrong) and not any(self.wrong.values()) and not self.violations


def show(account: Account) -> None:
    """Print the table of a stage's run."""
    say(f"\n{account.kind}, seed {account.seed}: {account.seconds:.0f} s")
    say(f"  {account.callbacks:,} callbacks; tries by answer {_by_status(account.answers)}")
    say(f"  {account.probes:,} probes, the slowest good one {account.worst_probe:.2f} s")
    for during, probe in account.slow[:SHOWN]:
        say(f"    {during}, {probe}")
    if account.restarts:
        say(f"  {account.restarts} rolling restarts: {_by_status(account.restarted)}")
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


def _by_status(counts: dict[int, int]) -> str:
    return ", ".join(f"{status or 'none'}: {n:,}" for status, n in sorted(counts.items()))
