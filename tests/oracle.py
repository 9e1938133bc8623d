"""The law of jobs by its own words, for tests to hold the product against.

It computes each fact from the whole set of notifications; the code joins one after another.
"""

from typing import Any

from receiver.openconnectors.notifications import Notification

UNDER_WAY = ("CREATED", "STARTED", "RUNNING", "an unknown word", "CANCELLATION_PENDING")
ENDINGS = ("CANCELLED", "ABORTED", "ERROR", "COMPLETED")  # the greatest precedence last
SPELT = {"COMPLETE": "COMPLETED", "CANCELED": "CANCELLED"}
TEXTS = ("message", "object", "direction", "file", "callback_payload")
DAY = 24 * 3600 * 1000


def word(said: Notification) -> str:
    upper = str(said.status).upper()
    return SPELT.get(upper, upper)


def is_end(said: Notification) -> bool:
    return word(said) in ENDINGS


def key(said: Notification) -> tuple[int, int, int, int, str]:
    """A notification's key: (rank, attempt, time, precedence, word)."""
    told = word(said)
    if is_end(said):
        time = said.completed_at or 0
        return len(UNDER_WAY), said.attempt, time, ENDINGS.index(told), str(said.status)
    rank = UNDER_WAY.index(told if told in UNDER_WAY else "an unknown word")
    return rank, 0, 0, 0, str(said.status)


def register(told: list[Notification], value: Any) -> Any:
    """Give, of the values seen, that with the greatest (key, value), and its key."""
    seen = [(key(said), value(said)) for said in told if value(said) is not None]
    return max(seen, default=(None, None))


def counts_of(said: Notification) -> tuple[int, int] | None:
    # The law does not order null within the pair: here it is less than any number.
    if said.failed is None and said.loaded is None:
        return None
    return tuple(-1 if count is None else count for count in (said.failed, said.loaded))


def how_well(failed: int | None, loaded: int | None, submitted: int | None) -> str:
    all_failed = failed is not None and submitted is not None and failed >= submitted
    if failed is not None and failed > 0 and (loaded == 0 or all_failed):
        return "failed"
    if failed is not None and failed > 0:
        return "partial"
    if loaded is not None and submitted is not None and loaded < submitted:
        return "partial"
    return "succeeded"


def by_law(told: list[Notification]) -> dict[str, Any]:
    """Everything a job shows, by the words of the law."""
    ends = [said for said in told if is_end(said)]
    status_key, status = register(told, lambda said: said.status)
    counts_key, counts = register(told, counts_of)
    failed, loaded = (None, None)
    if counts and counts_key[:2] == status_key[:2]:
        failed, loaded = (None if count == -1 else count for count in counts)
    submitted = max((said.submitted for said in told if said.submitted is not None), default=None)
    times = [said.submitted_at for said in told if said.submitted_at is not None]

    ended_at, outcome = None, "pending"
    if status and word(Notification("bulk_job", status=status)) in ENDINGS:
        # The law does not say which of the equal winners' receipts counts: here the earliest.
        receipts = [said.received_at for said in told if key(said) == status_key]
        ended_at = status_key[2] or min(receipts)
        won = ENDINGS[status_key[3]]
        outcome = {"CANCELLED": "cancelled", "ABORTED": "failed", "ERROR": "failed"}.get(won)
        outcome = outcome or how_well(failed, loaded, submitted)
    elif status_key and UNDER_WAY[status_key[0]] == "an unknown word":
        outcome = "unknown"

    last_attempt = max((said.attempt for said in ends), default=None)
    # Nor does it say whom of those received in the same ms: here a callback.
    first = min(ends, key=lambda said: (said.received_at, said.source != "callback"), default=None)
    return {
        "status": status,
        "ended": bool(ends),
        "outcome": outcome,
        "failed": failed,
        "loaded": loaded,
        "submitted": submitted,
        "submitted_at": min(times, default=None),
        "created_at": register(told, lambda said: said.created_at)[1],
        "ended_at": ended_at,
        "files_expire_at": None if ended_at is None else ended_at + 3 * DAY,
        "conflict": len({word(said) for said in ends if said.attempt == last_attempt}) > 1,
        "learnt_by": first and ("callback" if first.source == "callback" else "poll"),
        "erased_at": None,
        "called_back": any(said.source == "callback" for said in ends),
        **{name: register(told, lambda said, n=name: getattr(said, n))[1] for name in TEXTS},
    }
