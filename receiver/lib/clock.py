"""Time as it is stored, ms since the epoch, and as it is shown, ISO 8601 in UTC."""

import re
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
_MS = timedelta(milliseconds=1)


def now_ms() -> int:
    """This machine's time."""
    return time.time_ns() // 1_000_000


def iso(ms: int | None) -> str | None:
    """Write a time as `2026-11-22T05:49:00.000Z`; None stays None."""
    return None if ms is None else f"{_second(ms // 1000)}.{ms % 1000:03}Z"


@lru_cache(maxsize=1024)  # jobs whose callbacks come together began and ended within few seconds
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


def to_ms(text: str) -> int:
    """Read an ISO 8601 time of any precision; one without a zone is UTC. Raises ValueError."""
    match = _MOMENT.fullmatch(text)
    if not match:
        raise ValueError("not a time")
    if (match[1] or "").startswith(":60"):  # a leap second, which RFC 3339 has and Python has not
        return to_ms(text[: match.start(1)] + ":59" + text[match.start(1) + 3 :]) + 1000
    moment = datetime.fromisoformat(text.upper())
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MS
