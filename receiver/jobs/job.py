"""What became of a job: a join over everything that was ever said of it.

A job is a handful of registers, each a list that compares from left to right and only ever grows:
merging keeps the greater of two. That makes merging commutative, associative and idempotent, so
neither the order nor the number nor the grouping of deliveries can change an outcome, and two nodes
that saw different halves agree as soon as they meet.

The rules are "The law of jobs"; every order is data below, not code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeAlias

from receiver.openconnectors.notifications import MAX_TIME_MS, Notification

Outcome: TypeAlias = Literal["pending", "succeeded", "partial", "failed", "cancelled", "unknown"]
OUTCOMES: tuple[Outcome, ...] = (
    "pending",
    "succeeded",
    "partial",
    "failed",
    "cancelled",
    "unknown",
)

SPELLINGS = {"COMPLETE": "COMPLETED", "CANCELED": "CANCELLED"}
RANKS = {"CREATED": 0, "STARTED": 1, "RUNNING": 2, "CANCELLATION_PENDING": 4}
UNKNOWN_RANK = 3
ENDED_RANK = 5
ENDINGS = {"CANCELLED": 1, "ABORTED": 2, "ERROR": 3, "COMPLETED": 4}  # word: precedence

# What may be about people, and what stands in its place once it was erased: above every key, so
# that nothing said later takes the place again, and harmless to who reads the register as it is.
_ERASED: Mapping[str, str] = {"message": "", "file": "", "callback_payload": "null"}
_ERASED_RANK = ENDED_RANK + 1

# The vendor keeps results and uploaded files for at most three days ("assumed": no page promises
# them for as long).
FILES_KEPT_MS = 3 * 24 * 3600 * 1000

# Flat lists that compare position by position; the first five items are mostly a status key.
Register: TypeAlias = list[int | str]
Registers: TypeAlias = Mapping[str, Register]

_SOURCES: tuple[Literal["poll", "callback"], ...] = ("poll", "callback")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as far as it is known: `Job()` is one of which nothing was said yet."""

    registers: Registers = field(default_factory=dict)

    @property
    def status(self) -> str | None:
        """The vendor's word, as it came."""
        register = self.registers.get("status")
        return str(register[4]) if register else None

    @property
    def ended(self) -> bool:
        """Whether the vendor said that the job is over."""
        register = self.registers.get("status")
        return register is not None and register[0] == ENDED_RANK

    @property
    def ended_at(self) -> int | None:
        """When it ended, ms: as the vendor says, else when we first heard of that ending."""
        if not self.ended:
            return None
        status = self.registers["status"]
        return int(status[2]) or -int(status[5])

    @property
    def files_expire_at(self) -> int | None:
        """When the vendor may drop the job's files, ms."""
        ended_at = self.ended_at
        return None if ended_at is None else min(ended_at + FILES_KEPT_MS, MAX_TIME_MS)

    @property
    def outcome(self) -> Outcome:
        """What became of it, in one word of ours."""
        word = canonical(self.status or "CREATED")
        if word == "COMPLETED":
            return self._how_well()
        if word == "CANCELLED":
            return "cancelled"
        if word in ENDINGS:
            return "failed"
        return "pending" if word in RANKS else "unknown"

    @property
    def failed(self) -> int | None:
        """How many records the vendor could not load."""
        return self._count(5)

    @property
    def loaded(self) -> int | None:
        """How many records the vendor loaded."""
        return self._count(6)

    @property
    def submitted(self) -> int | None:
        """How many records were sent to the vendor."""
        register = self.registers.get("submitted")
        return int(register[0]) if register else None

    @property
    def submitted_at(self) -> int | None:
        """When they were sent, ms."""
        register = self.registers.get("submitted_at")
        return -int(register[0]) if register else None

    @property
    def created_at(self) -> int | None:
        """When the vendor says the job was made, ms."""
        register = self.registers.get("created_at")
        return int(register[5]) if register else None

    @property
    def conflict(self) -> bool:
        """Whether two different endings were told for the last attempt that ended."""
        registers = self.registers
        return "best" in registers and registers["best"][1] != -int(registers["worst"][1])

    @property
    def learnt_by(self) -> Literal["callback", "poll"] | None:
        """What told of an ending first."""
        register = self.registers.get("learnt")
        return _SOURCES[int(register[1])] if register else None

    @property
    def called_back(self) -> bool:
        """Whether a callback told of an ending, first or not."""
        return "called" in self.registers

    def text(self, name: str) -> str | None:
        """The text register `name`: message, object, direction, file or callback_payload."""
        register = self.registers.get(name)
        return str(register[5]) if register and register[0] != _ERASED_RANK else None

    @property
    def erased_at(self) -> int | None:
        """When what may be about people was taken from it, ms; it does not come back."""
        register = self.registers.get("erased")
        return -int(register[0]) if register else None

    def _count(self, position: int) -> int | None:
        counts, status = self.registers.get("counts"), self.registers.get("status")
        if not counts or not status or counts[0] != status[0] or counts[1] != status[1]:
            return None  # counts of an earlier rank or attempt say nothing of this one
        return None if counts[position] == -1 else int(counts[position])

    def _how_well(self) -> Outcome:
        failed, loaded, submitted = self.failed or 0, self.loaded, self.submitted
        if failed and (loaded == 0 or (submitted is not None and failed >= submitted)):
            return "failed"
        short = loaded is not None and submitted is not None and loaded < submitted
        return "partial" if failed or short else "succeeded"


def is_ending(status: str | None) -> bool:
    """Whether a status word says that a job is over."""
    return canonical(status or "") in ENDINGS


def canonical(status: str) -> str:
    """Give the one spelling of a status word."""
    word = status.upper() if status.isascii() else status
    return SPELLINGS.get(word, word)


def merge(job: Job, notification: Notification) -> Job:
    """Give the job as it is known once `notification`, of kind bulk_job, is known too."""
    return join(job, Job(registers(notification, notification.received_at)))


def join(one: Job, other: Job) -> Job:
    """Give what both know together."""
    if not one.registers:
        return other
    greater = dict(one.registers)
    for name, register in other.registers.items():
        if name not in greater or register > greater[name]:
            greater[name] = register
    return Job(greater)


def erase(job: Job, at: int) -> Job:
    """Give the job without what may be about people: message, file and callback payload.

    An erasure is merged like anything said of a job, so the order of the two does not matter.
    """
    gone: dict[str, Register] = {
        name: [_ERASED_RANK, 0, 0, 0, "", nothing] for name, nothing in _ERASED.items()
    }
    return join(job, Job({"erased": [-at], **gone}))


def registers(notification: Notification, received_at: int) -> dict[str, Register]:
    """Write a notification of kind bulk_job as the job that knows nothing else.

    received_at -- when it was first received, ms.
    """
    key = _key(notification)
    told: dict[str, Register] = {"status": [*key, -received_at]}
    if notification.failed is not None or notification.loaded is not None:
        told["counts"] = [*key, _or_none(notification.failed), _or_none(notification.loaded)]
    for name in ("message", "object", "direction", "file", "created_at", "callback_payload"):
        value = getattr(notification, name)
        if value is not None:
            told[name] = [*key, value]
    if notification.submitted is not None:
        told["submitted"] = [notification.submitted]
    if notification.submitted_at is not None:
        told["submitted_at"] = [-notification.submitted_at]
    if key[0] == ENDED_RANK:
        _, attempt, _, precedence, _ = key
        told["best"] = [attempt, precedence]
        told["worst"] = [attempt, -precedence]
        told["learnt"] = [-received_at, int(notification.source == "callback")]
        if notification.source == "callback":
            told["called"] = [-received_at]
    return told


def changes(before: Job, after: Job, notification: Notification) -> tuple[list[str], str | None]:
    """Tell what a notification changed, or why it changed nothing: (names of facts, note)."""
    was = before.registers
    # Joining keeps the very list that was not outdone.
    outdone = [name for name, register in after.registers.items() if was.get(name) is not register]
    changed = [
        name
        for name, fact, nothing in _suspects(frozenset(outdone))
        if fact(after) != (fact(before) if was else nothing)
    ]
    if after.conflict and not before.conflict:
        return changed, f"contradicts another ending of this job ({before.status})"
    if changed:
        return changed, None
    key: Register = [*_key(notification)]
    if key < was["status"][:5]:
        return changed, f"stale: the job was already {before.status}"
    return changed, "nothing new"


@lru_cache
def _suspects(outdone: frozenset[str]) -> list[tuple[str, Callable[[Job], object], object]]:
    """Facts that may have changed with these registers, each as it is while nothing is known."""
    names = set().union(*(_TOLD_BY[name] for name in outdone))
    return [(name, fact, fact(Job())) for name, fact in _FACTS.items() if name in names]


def _key(notification: Notification) -> tuple[int, int, int, int, str]:
    word = notification.status or ""
    precedence = ENDINGS.get(canonical(word))
    if precedence is None:
        return RANKS.get(canonical(word), UNKNOWN_RANK), 0, 0, 0, word
    return ENDED_RANK, notification.attempt, notification.completed_at or 0, precedence, word


def _or_none(count: int | None) -> int:
    return -1 if count is None else count


# What the timeline speaks of.
_FACTS: Mapping[str, Callable[[Job], object]] = {
    "status": lambda job: job.status,
    "outcome": lambda job: job.outcome,
    "records": lambda job: (job.submitted, job.loaded, job.failed),
    "message": lambda job: job.text("message"),
    "object": lambda job: job.text("object"),
    "direction": lambda job: job.text("direction"),
    "file": lambda job: job.text("file"),
    "created_at": lambda job: job.created_at,
    "submitted_at": lambda job: job.submitted_at,
    "ended_at": lambda job: job.ended_at,
    "callback_payload": lambda job: job.text("callback_payload"),
    "conflict": lambda job: job.conflict,
    "learnt_by": lambda job: job.learnt_by,
}
# Which of these a register has a say in; of the registers not named here, the fact of its name.
_TOLD_BY: Mapping[str, frozenset[str]] = {
    **{name: frozenset({name}) for name in _FACTS},
    "status": frozenset({"status", "outcome", "records", "ended_at"}),
    "counts": frozenset({"outcome", "records"}),
    "submitted": frozenset({"outcome", "records"}),
    "best": frozenset({"conflict"}),
    "worst": frozenset({"conflict"}),
    "learnt": frozenset({"learnt_by"}),
    "called": frozenset(),
}
