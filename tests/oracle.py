"""The law of jobs by its own words, for tests to hold the product against.

It computes each fact from the whole set of notifications; the code joins one after another.
"""

import json
from typing import Any

from receiver.lib.clock import iso
from receiver.openconnectors.notifications import Notification

RANKS = ("CREATED", "STARTED", "RUNNING", "any unknown word", "CANCELLATION_PENDING", "an ending")
PRECEDENCES = ("CANCELLED", "ABORTED", "ERROR", "COMPLETED")  # the greatest last
SPELT = {"COMPLETE": "COMPLETED", "SUCCESS": "COMPLETED", "CANCELED": "CANCELLED"}
TEXTS = ("message", "object", "direction", "file", "callback_payload")
DAY = 24 * 3600 * 1000


class Said(Notification, frozen=True, array_like=True):
    """A notification and when it was first stored, ms."""

    received_at: int = 0


def word(said: Notification) -> str:
    upper = str(said.status).upper()
    return SPELT.get(upper, upper)


def is_end(said: Notification) -> bool:
    return word(said) in PRECEDENCES


def key(said: Notification) -> tuple[int, int, int, int, str]:
    """A notification's key: (attempt, rank, time, precedence, word)."""
    told = word(said)
    if is_end(said):
        rank, time, precedence = (
            RANKS.index("an ending"),
            said.completed_at,
            PRECEDENCES.index(told),
        )
    else:
        rank, time, precedence = RANKS.index(told if told in RANKS else "any unknown word"), 0, 0
    return said.attempt, rank, time or 0, precedence, str(said.status)


def shows_with(of: tuple[int, int, int, int, str]) -> tuple[int, int, int]:
    """(attempt, rank, precedence) of a key."""
    return of[0], of[1], of[3]


def register(told: list[Said], value: Any) -> Any:
    """Give, of the values seen, that with the greatest (key, value), and its key."""
    seen = [(key(said), value(said)) for said in told if value(said) is not None]
    return max(seen, default=(None, None))


def pair(said: Notification) -> tuple[int, int] | None:
    # The law does not order null within the pair: here it is less than any number.
    if said.failed is None and said.reported is None:
        return None
    return tuple(-1 if count is None else count for count in (said.failed, said.reported))


def latest_poll(told: list[Said], attempt: int) -> Said | None:
    """The latest poll, by when it was asked for, of those that told an ending at that attempt.

    Of two that were asked for in the same ms the law names none: here the greater counts.
    """
    polls = [said for said in told if said.source == "poll" and is_end(said)]
    return max(
        (said for said in polls if said.attempt == attempt),
        key=lambda said: (
            # No answer was asked for after it was received.
            min(said.asked_at if said.asked_at is not None else said.received_at, said.received_at),
            key(said),
            -said.received_at,
            pair(said) or (-1, -1),
        ),
        default=None,
    )


def loaded_of(failed: int | None, reported: int | None, submitted: int | None) -> int | None:
    if reported is None:
        return None
    if failed in (None, 0):
        return reported
    if submitted is None:
        return 0 if reported == failed else reported
    if reported + failed <= submitted:
        return reported
    return max(0, reported - failed)


def how_well(failed: int | None, loaded: int | None, submitted: int | None) -> str:
    """What COMPLETED is; unknown counts prove nothing."""
    some_failed = failed is not None and failed > 0
    if some_failed and loaded == 0:
        return "failed"
    if some_failed and submitted is not None and failed >= submitted:
        return "failed"
    if loaded == 0 and submitted is not None and submitted > 0:
        return "failed"
    if some_failed or (loaded is not None and submitted is not None and loaded < submitted):
        return "partial"
    return "succeeded"


def by_law(told: list[Said]) -> dict[str, Any]:
    """Everything a job shows, by the words of the law."""
    status_key, status = register(told, lambda said: said.status)
    attempt = status_key[0] if status_key else 0
    ends = [said for said in told if is_end(said) and said.attempt == attempt]
    conflict = len({word(said) for said in ends}) > 1
    # The law does not say which of the equal winners' receipts counts: here the earliest.
    receipt = min((said.received_at for said in told if key(said) == status_key), default=None)
    decides = latest_poll(told, attempt) if conflict else None
    if decides:
        status_key, status, receipt = key(decides), decides.status, decides.received_at

    counts_key, counts = register(told, pair)
    if counts and shows_with(counts_key) != shows_with(status_key):
        counts = None
    if decides:
        counts = pair(decides) or counts
    failed, reported = (None if count == -1 else count for count in counts or (-1, -1))
    submitted = max((said.submitted for said in told if said.submitted is not None), default=None)
    loaded = loaded_of(failed, reported, submitted)
    times = [said.submitted_at for said in told if said.submitted_at is not None]

    ended_at, outcome = None, "pending"
    if status_key and status_key[1] == RANKS.index("an ending"):
        ended_at = status_key[2] or receipt
        ending = PRECEDENCES[status_key[3]]
        outcome = {"CANCELLED": "cancelled", "ABORTED": "failed", "ERROR": "failed"}.get(ending)
        outcome = outcome or how_well(failed, loaded, submitted)
    elif status_key and status_key[1] == RANKS.index("any unknown word"):
        outcome = "unknown"

    # Nor does it say whom of those received in the same ms: here a callback.
    first = min(ends, key=lambda said: (said.received_at, said.source != "callback"), default=None)
    return {
        "status": status,
        "attempt": attempt,
        "ended": bool(ends),
        "outcome": outcome,
        "failed": failed,
        "reported": reported,
        "loaded": loaded,
        "submitted": submitted,
        "submitted_at": min(times, default=None),
        "created_at": register(told, lambda said: said.created_at)[1],
        "ended_at": ended_at,
        "files_expire_at": None if ended_at is None else ended_at + 3 * DAY,
        "conflict": conflict,
        "learnt_by": first and ("callback" if first.source == "callback" else "poll"),
        "erased_at": None,
        "called_back": any(said.source == "callback" for said in ends),
        **{name: register(told, lambda said, n=name: getattr(said, n))[1] for name in TEXTS},
    }


def as_shown(law: dict[str, Any], events: int) -> dict[str, Any]:
    """What the law says of a job of so many events, as the API shows it."""
    same = ("status", "outcome", "message", "object", "direction", "conflict", "learnt_by", "file")
    counts = ("submitted", "loaded", "failed", "reported")
    payload = law["callback_payload"]
    return {
        **{name: law[name] for name in same},
        **{name: iso(law[name]) for name in ("created_at", "ended_at", "files_expire_at")},
        "records": {name: law[name] for name in counts},
        "callback_payload": None if payload is None else json.loads(payload),
        "events": events,
    }
