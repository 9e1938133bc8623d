"""What became of a job: a join over everything that was ever said of it.

A job is a fixed set of registers, each a tuple that compares from left to right and only ever
grows: merging keeps the greater of two. That makes merging commutative, associative and idempotent,
so neither the order nor the number nor the grouping of deliveries can change an outcome, and two
nodes that saw different halves agree as soon as they meet.

The rules are "The law of jobs"; every order is data below, not code.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import msgspec
from msgspec.structs import astuple, replace

from receiver.openconnectors.notifications import MAX_TIME_MS, Notification

# `lost` is no part of the law: it is what a stored job under way is closed as, and goes with the
# next word that is merged into it, whatever that says.
Outcome: TypeAlias = Literal[
    "pending", "succeeded", "partial", "failed", "cancelled", "unknown", "lost"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
UNDER_WAY: tuple[Outcome, ...] = ("pending", "unknown")

SPELLINGS = {"COMPLETE": "COMPLETED", "SUCCESS": "COMPLETED", "CANCELED": "CANCELLED"}
RANKS = {"CREATED": 0, "STARTED": 1, "RUNNING": 2, "CANCELLATION_PENDING": 4}
UNKNOWN_RANK = 3
ENDED_RANK = 5
ENDINGS = {"CANCELLED": 1, "ABORTED": 2, "ERROR": 3, "COMPLETED": 4}  # word: precedence

_USUAL = RANKS.keys() | ENDINGS.keys()

# The vendor keeps results and uploaded files for at most three days ("assumed": no page promises
# them for as long).
FILES_MS = 3 * 24 * 3600 * 1000

Key: TypeAlias = tuple[int, int, int, int, str]  # (attempt, rank, time, precedence, word)
Status: TypeAlias = tuple[Key, int]  # and minus the time of receipt: of equal keys the earliest
Counts: TypeAlias = tuple[int, int]  # (failed, reported), each -1 where it is null
Text: TypeAlias = tuple[Key, str] | None
TextName: TypeAlias = Literal["message", "object", "direction", "file", "callback_payload"]

_NO_COUNTS: Counts = (-1, -1)
_SOURCES: tuple[Literal["poll", "callback"], ...] = ("poll", "callback")


class Registers(msgspec.Struct, frozen=True, array_like=True):
    """All that is stored of a job; None is less than any value. Times are ms.

    submitted_at, erased -- negative, so that the earliest is the greatest.
    best, worst -- (attempt, precedence) and (attempt, -precedence) of endings.
    learnt -- (attempt, minus the time of receipt, index in _SOURCES) of endings.
    called -- the attempt of which a callback reported an ending.
    polled -- of polls that reported an ending: (attempt, when they were sent, status, counts).
    """

    status: Status | None = None
    counts: tuple[Key, Counts] | None = None
    message: Text = None
    object: Text = None
    direction: Text = None
    file: Text = None
    callback_payload: Text = None
    created_at: tuple[Key, int] | None = None
    submitted: int | None = None
    submitted_at: int | None = None
    best: tuple[int, int] | None = None
    worst: tuple[int, int] | None = None
    learnt: tuple[int, int, int] | None = None
    called: int | None = None
    polled: tuple[int, int, Status, Counts] | None = None
    erased: int | None = None


_NOTHING = Registers()
_decode = msgspec.json.Decoder(Registers).decode
_encoder = msgspec.json.Encoder()


@dataclass(slots=True)
class Job:
    """A job as far as it is known: `Job()` is one of which nothing was said yet.

    attempt -- how often it was reset. conflict -- whether two endings of this attempt differ.
    """

    registers: Registers = _NOTHING
    attempt: int = field(init=False, compare=False)
    conflict: bool = field(init=False, compare=False)
    _status: Status | None = field(init=False, compare=False, repr=False)
    _counts: Counts = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # All other facts follow from these, so they are worked out once.
        status, best, worst = self.registers.status, self.registers.best, self.registers.worst
        self.attempt = status[0][0] if status else 0
        self.conflict = bool(best and worst and best[0] == self.attempt and best[1] != -worst[1])
        contested = self.attempt if self.conflict else None
        self._status, self._counts = _deciding_status(self.registers, contested)

    @staticmethod
    def of(notification: Notification, received_at: int) -> "Job":
        """Return the job of which nothing but a notification of kind bulk_job is known.

        received_at -- when it was first received, ms.
        """
        return Job(registers_of(notification, received_at))

    @staticmethod
    def decode(registers: str | bytes) -> "Job":
        """Read a job as it was stored."""
        return Job(_decode(registers))

    @property
    def status(self) -> str | None:
        """The vendor's word, as it came."""
        return self._status[0][4] if self._status else None

    @property
    def ended(self) -> bool:
        """Whether the vendor said that the job is over."""
        return self._status is not None and self._status[0][1] == ENDED_RANK

    @property
    def ended_at(self) -> int | None:
        """When it ended, ms: as the vendor says, else when we first heard of that ending."""
        if self._status is None or not self.ended:
            return None
        key, received_at = self._status
        return key[2] or -received_at

    @property
    def files_expire_at(self) -> int | None:
        """When the vendor may drop the job's files, ms."""
        ended_at = self.ended_at
        return None if ended_at is None else min(ended_at + FILES_MS, MAX_TIME_MS)

    @property
    def outcome(self) -> Outcome:
        """What became of it, in one word of ours."""
        word = canonical(self.status or "CREATED")
        if word == "COMPLETED":
            return self._completed_outcome()
        if word == "CANCELLED":
            return "cancelled"
        if word in ENDINGS:
            return "failed"
        return "pending" if word in RANKS else "unknown"

    @property
    def failed(self) -> int | None:
        """How many records the vendor could not load."""
        return _or_none(self._counts[0])

    @property
    def reported(self) -> int | None:
        """How many records the vendor counted: those loaded or all, which is documented nowhere."""
        return _or_none(self._counts[1])

    @property
    def loaded(self) -> int | None:
        """How many records the vendor loaded, worked out from what it counted."""
        failed, reported, submitted = self.failed, self.reported, self.submitted
        if not failed or reported is None:
            return reported
        if submitted is None:
            return 0 if reported == failed else reported
        return reported if reported + failed <= submitted else max(0, reported - failed)

    @property
    def submitted(self) -> int | None:
        """How many records were sent to the vendor."""
        return self.registers.submitted

    @property
    def submitted_at(self) -> int | None:
        """When they were sent, ms."""
        at = self.registers.submitted_at
        return None if at is None else -at

    @property
    def created_at(self) -> int | None:
        """When the vendor says the job was made, ms."""
        register = self.registers.created_at
        return register[1] if register else None

    @property
    def learnt_by(self) -> Literal["callback", "poll"] | None:
        """The source that first reported the present attempt's ending."""
        learnt = self.registers.learnt
        return _SOURCES[learnt[2]] if learnt and learnt[0] == self.attempt else None

    @property
    def called_back(self) -> bool:
        """Whether a callback reported the present attempt's ending, first or not."""
        return self.registers.called == self.attempt

    def text(self, name: TextName) -> str | None:
        """Return a register that is text."""
        register: Text = getattr(self.registers, name)
        return register[1] if register else None

    @property
    def erased_at(self) -> int | None:
        """When what may be about people was taken from it, ms; it does not come back."""
        at = self.registers.erased
        return None if at is None else -at

    def _completed_outcome(self) -> Outcome:
        failed, loaded, submitted = self.failed or 0, self.loaded, self.submitted
        if failed and (loaded == 0 or (submitted is not None and failed >= submitted)):
            return "failed"
        if loaded == 0 and submitted:
            return "failed"
        short = loaded is not None and submitted is not None and loaded < submitted
        return "partial" if failed or short else "succeeded"


def encode(registers: Registers) -> str:
    """Write registers as they are stored: JSON."""
    return _encoder.encode(registers).decode()


def is_ending(status: str | None) -> bool:
    """Whether a status word says that a job is over."""
    return canonical(status or "") in ENDINGS


def canonical(status: str) -> str:
    """Return the one spelling of a status word."""
    if status in _USUAL:
        return status
    word = status.upper() if status.isascii() else status
    return SPELLINGS.get(word, word)


def join(one: Job, other: Job) -> Job:
    """Return what both know together."""
    if one.registers is _NOTHING:
        return other
    pairs = zip(astuple(one.registers), astuple(other.registers), strict=True)
    greater = Registers(
        *[b if a is None or (b is not None and b > a) else a for a, b in pairs]  # None is least
    )
    if greater.erased is None:
        return Job(greater)
    return Job(replace(greater, message=None, file=None, callback_payload=None))


def erase(job: Job, at: int) -> Job:
    """Return the job without what may be about people: message, file and callback payload.

    An erasure is merged like anything said of a job, so the order of the two does not matter.
    """
    return join(job, Job(Registers(erased=-at)))


def must_poll(before: Job, after: Job, notification: Notification) -> bool | None:
    """Whether the vendor must be asked about endings that contradict each other.

    True: a callback contradicts, or the first poll that does. False: a poll has answered, or the
    job runs again. None: the notification is not about that.
    """
    if not after.conflict:
        return False if before.conflict else None
    if notification.attempt != after.attempt or not is_ending(notification.status):
        return None
    return notification.source != "poll" or not before.conflict


def is_news(notification: Notification, job: Job | None, received_at: int) -> bool:
    """Whether a poll says of a job anything that none of what is known of it said.

    That the vendor confirms an ending is news once: it decides if another ending is reported later.
    """
    if job is None:
        return True
    after = join(job, Job.of(notification.replace(source="poll"), received_at))
    # Registers, not what shows: a value that does not show may outlast one that comes later.
    return _without_poll_times(after.registers) != _without_poll_times(job.registers)


def _without_poll_times(registers: Registers) -> tuple[Registers, object]:
    polled = registers.polled
    said = polled and (polled[0], polled[2][0], polled[3])
    return replace(registers, polled=None), said


def changes(before: Job, after: Job, notification: Notification) -> tuple[list[str], str | None]:
    """Return what a notification changed, or why it changed nothing: (names of facts, note)."""
    facts = zip(FACTS, _facts(before), _facts(after), strict=True)
    changed = [name for name, was, is_ in facts if was != is_]
    if after.conflict and not before.conflict:
        return changed, f"contradicts another ending of this job ({before.status})"
    if changed:
        return changed, None
    status = before.registers.status
    if status and _key(notification) < status[0]:
        return changed, f"stale: the job was already {before.status}"
    return changed, "nothing new"


def _deciding_status(registers: Registers, contested: int | None) -> tuple[Status | None, Counts]:
    """Return the status that holds, and the counts that belong to it.

    contested -- the attempt of which different endings were reported: the latest poll decides.
    """
    status, counts, polled = registers.status, registers.counts, registers.polled
    if polled and polled[0] == contested:
        status = polled[2]
        if polled[3] != _NO_COUNTS:
            return status, polled[3]
    # Counts of another attempt, rank or ending say nothing of this one.
    shows = status and counts and _ending(counts[0]) == _ending(status[0])
    return status, counts[1] if counts and shows else _NO_COUNTS


def _facts(job: Job) -> tuple[object, ...]:
    return (
        job.status,
        job.outcome,
        (job.submitted, job.loaded, job.failed, job.reported),
        job.text("message"),
        job.text("object"),
        job.text("direction"),
        job.text("file"),
        job.created_at,
        job.submitted_at,
        job.ended_at,
        job.text("callback_payload"),
        job.conflict,
        job.learnt_by,
    )


# What the timeline speaks of, in the order of `_facts`.
FACTS = (
    *("status", "outcome", "records", "message", "object", "direction", "file"),
    *("created_at", "submitted_at", "ended_at", "callback_payload", "conflict", "learnt_by"),
)


def registers_of(notification: Notification, received_at: int) -> Registers:
    """Return the registers of a job of which nothing but a notification is known."""
    key = _key(notification)
    attempt, rank, _, precedence, _ = key
    status: Status = key, -received_at
    counts: Counts = _or_less(notification.failed), _or_less(notification.reported)
    ended, by_callback = rank == ENDED_RANK, notification.source == "callback"
    # The receipt bounds the word of a node whose clock is ahead.
    asked_at = notification.asked_at
    asked_at = received_at if asked_at is None else min(asked_at, received_at)
    return Registers(
        status,
        None if counts == _NO_COUNTS else (key, counts),
        None if notification.message is None else (key, notification.message),
        None if notification.object is None else (key, notification.object),
        None if notification.direction is None else (key, notification.direction),
        None if notification.file is None else (key, notification.file),
        None if notification.callback_payload is None else (key, notification.callback_payload),
        None if notification.created_at is None else (key, notification.created_at),
        notification.submitted,
        None if notification.submitted_at is None else -notification.submitted_at,
        (attempt, precedence) if ended else None,
        (attempt, -precedence) if ended else None,
        (attempt, -received_at, int(by_callback)) if ended else None,
        attempt if ended and by_callback else None,
        (attempt, asked_at, status, counts) if ended and notification.source == "poll" else None,
    )


def _key(notification: Notification) -> Key:
    word = notification.status or ""
    precedence = ENDINGS.get(canonical(word))
    if precedence is None:
        return notification.attempt, RANKS.get(canonical(word), UNKNOWN_RANK), 0, 0, word
    return notification.attempt, ENDED_RANK, notification.completed_at or 0, precedence, word


def _ending(key: Key) -> tuple[int, int, int]:
    attempt, rank, _, precedence, _ = key
    return attempt, rank, precedence


def _or_less(count: int | None) -> int:
    return -1 if count is None else count


def _or_none(count: int) -> int | None:
    return None if count == -1 else count
