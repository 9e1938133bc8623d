"""A new job after its only callback, without the general merge: most jobs are like that.

The result is the one of `projection.JobState`; a test compares the two.
"""

from functools import lru_cache

import msgspec

from receiver.jobs.job import (
    ENDINGS,
    FACTS,
    FILES_MS,
    UNDER_WAY,
    UNKNOWN_RANK,
    Job,
    Outcome,
    Registers,
    encode,
    registers_of,
)
from receiver.jobs.projection import Counted, FacetKey, JobValues, truncate
from receiver.openconnectors.notifications import MAX_TIME_MS, Notification


class FirstCallback:
    """A job of which nothing is known but a callback, received `now`, ms.

    changes -- what that changed: JSON array of the names of facts.
    """

    counted: Counted | None = None  # under nothing yet
    before: Job | None = None
    was_closed = False
    __slots__ = ("_callback", "_expires_at", "_key", "_now", "_outcome", "_registers", "changes")

    def __init__(self, instance: str, callback: Notification, now: int) -> None:
        self._callback, self._now = callback, now
        self._registers = registers = registers_of(callback, now)
        ended = registers.best is not None
        self._outcome = outcome = _outcome(registers, callback)
        at = (callback.completed_at or now) + FILES_MS
        self._expires_at = min(at, MAX_TIME_MS) if ended else None
        words = (
            truncate(callback.status),
            outcome,
            truncate(callback.object),
            truncate(callback.direction),
        )
        self._key = FacetKey(instance, *words, callback_lost=False)
        self.changes = _changes(
            outcome != "pending",
            registers.counts is not None,
            callback.message is not None,
            callback.object is not None,
            callback.direction is not None,
            callback.created_at is not None,
            ended,
            callback.callback_payload is not None,
        )

    @property
    def job(self) -> Job:
        """What is known of it by now."""
        return Job(self._registers)

    def facet(self) -> FacetKey:
        """As `JobState.facet`."""
        return self._key

    def values(self, facet: int, now: int) -> JobValues:
        """As `JobState.values`."""
        ended = self._expires_at is not None
        return JobValues(
            instance=self._key.instance,
            id=str(self._callback.job),
            facet=facet,
            updated_at=now,
            revision=1,
            events=1,
            first_seen_at=now,
            files_expire_at=self._expires_at,
            callback_due=True,
            learnt_by="callback" if ended else None,
            under_way=self._outcome in UNDER_WAY,
            errors_at=now if ended and self._callback.failed else None,
            registers=encode(self._registers),
        )


def _outcome(registers: Registers, callback: Notification) -> Outcome:
    if registers.status is None or registers.best is None:
        return "unknown" if _rank(registers) == UNKNOWN_RANK else "pending"
    if (precedence := registers.best[1]) != ENDINGS["COMPLETED"]:
        return "cancelled" if precedence == ENDINGS["CANCELLED"] else "failed"
    if not callback.failed:
        return "succeeded"
    # Nothing is known of how many were sent.
    return "failed" if callback.reported in (0, callback.failed) else "partial"


def _rank(registers: Registers) -> int | None:
    return registers.status and registers.status[0][1]


@lru_cache
def _changes(*facts: bool) -> str:
    names = ("outcome", "records", "message", "object", "direction", "created_at", "ended")
    there = {
        "status",
        *(name for name, is_ in zip((*names, "callback_payload"), facts, strict=True) if is_),
    }
    if "ended" in there:
        there |= {"ended_at", "learnt_by"}
    return msgspec.json.encode([name for name in FACTS if name in there]).decode()
