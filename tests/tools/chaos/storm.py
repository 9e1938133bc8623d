"""A run: fault after fault while the sender sends, and how long the service takes to recover."""

import secrets
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

from faults import Fault
from http_client import Lost, Request
from probes import Probe
from processes import ToolError, say
from stage import Stage

from receiver.openconnectors.signatures import HEADER, SignatureKey, sign

RECOVERY, FIRST_REFUSAL, ANSWER = 30.0, 5.0, 10.0  # seconds; what is promised
SLOW = 0.5  # seconds; of probes that take longer it is told where the time went
PROBES = 4  # accepted in a row by each node, which has several workers
GIVE_UP = 90.0  # seconds; then the run ends


@dataclass(frozen=True)
class Stroke:
    """What was seen of one fault. Seconds; None is never, or not to be expected."""

    name: str
    began: float
    held: float
    worst: float
    worst_of: str
    first_refusal: float | None
    accepted: float
    recovered: float
    codes: dict[int, int]  # answers of the balancer


@dataclass
class Storm:
    """Strikes a stage and keeps the accounts. timed -- whether it is judged by how fast it is."""

    stage: Stage
    portion: int
    probe: float = 3.0  # seconds that one may take
    timed: bool = True
    began: float = field(default_factory=time.monotonic)
    strokes: list[Stroke] = field(default_factory=list)
    forged: list[tuple[str, bytes]] = field(default_factory=list)
    slow: list[tuple[str, Probe]] = field(default_factory=list)  # and what happened meanwhile
    _judged: int = 0  # probes

    def strike(self, fault: Fault) -> None:
        """Let one fault happen under load, and wait until the service has recovered."""
        stage = self.stage
        stage.sender.send(stage.plan.portion(self.portion), seconds=1.0)
        time.sleep(stage.chance.uniform(0, 0.5))
        began = time.monotonic()
        with fault.strike(stage):
            if fault.outage:  # to each node itself: the balancer asks another before it says no
                stage.sender.send([stage.plan.fresh(node.name) for node in stage.nodes])
            self._hold(began + stage.chance.uniform(*fault.hold))
            ended = time.monotonic()
        # What a fault does as it ends (a database's start) is part of the fault.
        ended = max(ended, time.monotonic())
        accepted, recovered = self._recovery(fault, ended)
        self._note(fault, began, ended, accepted, recovered)

    def settle(self) -> None:
        """Wait until everything that was sent is accepted."""
        if not self.stage.sender.settle(GIVE_UP):
            left = self.stage.sender.unsettled
            self.stage.violations.append(
                f"{left} deliveries were not accepted in {GIVE_UP:.0f} s of calm"
            )

    def forge(self) -> None:
        """Send what the vendor never signed; it must not be accepted, nor kept."""
        stranger = SignatureKey("stranger", b"a key that nobody gave away")
        for key in (stranger, *self.stage.retired[-1:]):
            for node in self.stage.nodes:
                for _ in range(PROBES):
                    self._forge(node.name, key)

    def judge_probes(self, during: str) -> None:
        """Judge the probes since the last time. during -- what happened meanwhile."""
        probes = self.stage.prober.since(self._judged)
        self._judged += len(probes)
        self.slow += [(during, probe) for probe in probes if probe.seconds >= SLOW]
        self.stage.violations += [
            f"{during}: {probe}" for probe in probes if probe.seconds >= self.probe
        ]

    def _forge(self, to: str, key: SignatureKey) -> None:
        body = f'{{"id": "forged", "status": "COMPLETED", "n": "{secrets.token_hex(8)}"}}'.encode()
        self.forged.append(("turning", body))
        with suppress(Lost):
            headers = {HEADER: sign(body, key)}
            asked = Request("POST", "/callbacks/turning", headers, body)
            answer = self.stage.sender.ask(to, asked)
            if answer.status not in (401, 429, 503):
                self.stage.violations.append(f"a delivery signed with {key.id} got {answer.status}")

    def _hold(self, until: float) -> None:
        """Go on sending while a fault holds."""
        stage = self.stage
        while (left := until - time.monotonic()) > 0:
            stage.sender.send([stage.plan.fresh()])
            time.sleep(min(left, 0.1))

    def _recovery(self, fault: Fault, ended: float) -> tuple[float, float]:
        """Seconds until something is accepted again, and until every node takes all it is sent."""
        deadline = ended + GIVE_UP
        self._accepted("balancer", 1, deadline, fault)
        accepted = time.monotonic() - ended
        for node in self.stage.nodes:
            self._accepted(node.name, PROBES, deadline, fault)
            while not self.stage.is_ready(node.name):
                self._give_up(deadline, f"{node.name} is not ready", fault)
        return accepted, time.monotonic() - ended

    def _accepted(self, to: str, times: int, deadline: float, fault: Fault) -> None:
        row = 0
        while row < times:
            ok = 200 <= self.stage.sender.try_once(self.stage.plan.fresh(to)) < 300
            row = row + 1 if ok else 0
            if not ok:
                self._give_up(deadline, f"{to} accepts nothing", fault)

    def _give_up(self, deadline: float, what: str, fault: Fault) -> None:
        if time.monotonic() > deadline:
            raise ToolError(f"{what} {GIVE_UP:.0f} s after: {fault.name}")
        time.sleep(0.05)

    def _note(
        self, fault: Fault, began: float, ended: float, accepted: float, recovered: float
    ) -> None:
        tries = self.stage.sender.log.during(began, ended + recovered)
        refusals = [each.ended - began for each in tries if each.status >= 500]
        worst = max(tries, key=lambda each: each.ended - each.began)
        stroke = Stroke(
            name=fault.name,
            began=began - self.began,
            held=ended - began,
            worst=worst.ended - worst.began,
            worst_of=f"{worst.to}, {worst.status or 'none'}",
            first_refusal=min((each for each in refusals if each > 0), default=None),
            accepted=accepted,
            recovered=recovered,
            codes=dict(Counter(each.status for each in tries if each.to == "balancer")),
        )
        self.strokes.append(stroke)
        self._judge(fault, stroke)
        say(f"  {shown(stroke)}")

    def _judge(self, fault: Fault, stroke: Stroke) -> None:
        if not self.timed:
            return
        told = f"{fault.name} at {stroke.began:.0f} s"
        if stroke.recovered > RECOVERY:
            self.stage.violations.append(f"{told}: recovered only after {stroke.recovered:.1f} s")
        if stroke.worst > ANSWER:
            self.stage.violations.append(f"{told}: an answer took {stroke.worst:.1f} s")
        self.judge_probes(told)
        # Who waits for a shorter outage to pass, and then accepts, has done better than to refuse.
        first = stroke.held if stroke.first_refusal is None else stroke.first_refusal
        if fault.outage and first > FIRST_REFUSAL:
            self.stage.violations.append(f"{told}: no 503 for {first:.1f} s")


def shown(stroke: Stroke) -> str:
    """One line about a fault."""
    first = "-" if stroke.first_refusal is None else f"{stroke.first_refusal:.1f}"
    codes = " ".join(f"{code or 'none'}:{count}" for code, count in sorted(stroke.codes.items()))
    return (
        f"{stroke.began:6.1f} s  {stroke.name:<22} {stroke.held:5.1f} s  first 503 {first:>4}"
        f"  worst answer {stroke.worst:5.2f} ({stroke.worst_of})"
        f"  accepted again {stroke.accepted:5.2f}  all well {stroke.recovered:5.2f}  {codes}"
    )
