"""Claims on shared work, and the clocks that leases go by.

Work is claimed by compare-and-set on its row: whoever moves it on from what was seen has it, so any
number of nodes may look at once. A lease is short and given back when the work ends; what a dead
process held is free again by itself. Stored times are the database's; waits within a process go by
the monotonic clock, which nobody sets.
"""

import time
from collections.abc import Callable, Mapping

from sqlalchemy import BindParameter, ColumnElement, ColumnExpressionArgument, or_, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import affected
from receiver.database.models import Base, Heartbeat
from receiver.database.page import Column
from receiver.lib.clock import DAY_MS

MAX_STEP_MS = DAY_MS
_PROBATION_SECONDS = DAY_MS / 1000


def claim(
    session: Session,
    table: type[Base],
    key: Mapping[str, object],
    seen: Mapping[str, object],
    lease: Mapping[str, object],
    *conditions: ColumnExpressionArgument[bool],
) -> bool:
    """Move the row at `key` on from what was `seen` of it to `lease`; False if another did."""
    unchanged = update(table).filter_by(**key, **seen).where(*conditions)
    return affected(session, unchanged.values(**lease)) == 1


def is_due(at: Column, now: int | BindParameter[int], longest: int) -> ColumnElement[bool]:
    """Whether a stored turn has come.

    One further ahead than `longest` ms was written by a clock that was wrong, and counts as come.
    """
    return or_(at <= now, at > now + longest)


def is_steady(session: Session, now: int) -> bool:
    """Whether no step of the clock of over a day is unexplained, as `ClockGuard` sees it."""
    trusted = session.scalar(select(Heartbeat.steady_at)) or 0
    return trusted == 0 or abs(now - trusted) <= MAX_STEP_MS


class ClockGuard:
    """Notices when the database's clock steps by over a day. timer -- monotonic, seconds.

    The time that is trusted stands in the database and only moves on in small steps, so processes
    that start under a wrong clock are not taken in. A step that nobody undid for a day is believed:
    perhaps no node ran for that long.
    """

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._stepped_at: float | None = None

    def check(self, session: Session, now: int) -> bool:
        """Move the trusted time on to `now`, ms; False, and it stays, while a step is doubted."""
        if is_steady(session, now):
            self._stepped_at = None
        else:
            self._stepped_at = self._stepped_at or self._timer()
            if self._timer() - self._stepped_at < _PROBATION_SECONDS:
                return False
        session.execute(update(Heartbeat).values(steady_at=now))
        return True
