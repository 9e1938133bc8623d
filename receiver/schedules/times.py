"""Due times of a cron expression in a time zone, as Debian's cron has them.

A fixed time in the hour that does not exist is due when that hour would have begun, and one in the
hour that comes twice is due in the first of them. Times are ms since the epoch. What an expression
or a zone is needed for raises BadParameter if it is none, also one that was when it was added: an
update of the system may take a zone away.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from receiver.errors import BadParameter
from receiver.lib.clock import DAY_MS, MINUTE_MS

MAX_CRON = 100  # characters
_FIELDS = ("minute", "hour", "day of month", "month", "day of week")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# What is searched for the shortest time between two due times.
_MAX_SEARCHED, _MAX_SEARCHED_MS = 400, 3 * 366 * DAY_MS
_MAX_WAIT_YEARS = 8  # until the next due time: 29 February may take as long
# More than any clock is put back by.
_MAX_REPEATED_MS = 180 * MINUTE_MS


def local_time(ms: int, tz: str) -> datetime:
    """Return a time as it is in a time zone."""
    try:
        zone = ZoneInfo(tz)
    except (KeyError, ValueError, OSError):
        raise _no_zone(tz) from None
    return (_EPOCH + ms * _MS).astimezone(zone)


def due_times(cron: str, tz: str, after: int) -> Iterator[int]:
    """Yield the due times after a time, earliest first."""
    later = map(_ms, _simulate(cron, local_time(after, tz)))
    return (due for due in later if due > after)


def last_due(cron: str, tz: str, at: int) -> int | None:
    """Return the latest due time that is not after `at`; None if none was within 50 years."""
    # In an hour that comes again, whatever is due in it was due in its first passage.
    start = at + 1000 + _MAX_REPEATED_MS * local_time(at, tz).fold
    earlier = map(_ms, _simulate(cron, local_time(start, tz), reverse=True))
    return next((due for due in earlier if due <= at), None)


def shortest_interval(cron: str, tz: str, now: int) -> int:
    """Return the shortest time between due times to come, as far as they are searched.

    Raises BadParameter if the expression or the zone is none, or if none is due for years.
    """
    _check(cron, tz)
    first = next(due_times(cron, tz, now), None)
    if first is None:
        raise BadParameter(f"cron {cron!r}: it is never due")
    if first > now + _MAX_WAIT_YEARS * 366 * DAY_MS:
        day = local_time(first, tz).date()
        most = f"within {_MAX_WAIT_YEARS} years"
        raise BadParameter(f"cron {cron!r}: it is due next on {day}; a schedule must be due {most}")
    coming = takewhile(lambda due: due < first + _MAX_SEARCHED_MS, due_times(cron, tz, now))
    searched = [due for _, due in zip(range(_MAX_SEARCHED), coming, strict=False)]
    return min((later - due for due, later in pairwise(searched)), default=_MAX_SEARCHED_MS)


def _check(cron: str, tz: str) -> None:
    fields = cron.split()
    if len(fields) != len(_FIELDS) or len(cron) > MAX_CRON:
        names = ", ".join(_FIELDS)
        raise BadParameter(f"cron {cron[:MAX_CRON]!r}: five fields are needed: {names}")
    # Whatever a machine has beside the zones that all have is none of them.
    if tz not in available_timezones() - {"localtime"}:
        raise _no_zone(tz)
    _simulate(cron, _EPOCH)


def _no_zone(tz: str) -> BadParameter:
    return BadParameter(f"tz {tz!r}: there is no such time zone; one is Europe/Berlin")


def _simulate(cron: str, start: datetime, *, reverse: bool = False) -> CronSim:
    try:
        return CronSim(cron, start, reverse)
    except (CronSimError, ValueError) as error:
        never = ", or one that no such month has" if "day-of-month" in str(error) else ""
        raise BadParameter(f"cron {cron!r}: {str(error).lower()}{never}") from None


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS
