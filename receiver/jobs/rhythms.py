"""How long instances with jobs under way usually wait for an event, learnt from pass to pass."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from receiver.database.alarm_models import Rhythm
from receiver.database.models import IS_UNDER_WAY, Event, JobRow
from receiver.lib.clock import MINUTE_MS

OVERLAP_MS = MINUTE_MS  # events are dated before they are committed
LONGEST_LOOK_MS = 24 * 60 * MINUTE_MS  # back, at the first pass and after a long pause
OLD_WEIGHT, NEW_WEIGHT = 4, 1  # of what was usual, and of the latest wait


def learn_rhythms(session: Session, now: int) -> None:
    """Learn from the events since the last pass; who has jobs under way and no event, waits.

    What came in one pass counts as one: a burst says nothing of how long to wait for the next.
    """
    known = {row.instance: row for row in session.scalars(select(Rhythm))}
    newest = max((row.last_at for row in known.values()), default=0)
    came = _last_events(session, max(newest - OVERLAP_MS, now - LONGEST_LOOK_MS))
    oldest = _oldest_under_way(session)
    for instance in sorted(known.keys() | came.keys() | oldest.keys()):
        row = known.get(instance)
        if row is None:
            row = Rhythm(instance=instance, last_at=0, waiting_since=None, usual_gap=None)
            session.add(row)
        _learn(row, came.get(instance, 0), oldest.get(instance))


def _learn(row: Rhythm, last_at: int, oldest: int | None) -> None:
    if last_at > row.last_at:
        if row.waiting_since is not None:
            gap = max(0, last_at - row.waiting_since)
            usual = gap if row.usual_gap is None else row.usual_gap
            row.usual_gap = (OLD_WEIGHT * usual + NEW_WEIGHT * gap) // (OLD_WEIGHT + NEW_WEIGHT)
        row.last_at, row.waiting_since = last_at, None
    if oldest is None:
        row.waiting_since = None
    elif row.waiting_since is None:
        row.waiting_since = max(row.last_at, oldest)


def _last_events(session: Session, after: int) -> dict[str, int]:
    # The instance in a function, or SQLite reads all events in the order of their instances.
    instance = func.coalesce(Event.instance, "")
    latest = (
        select(instance, func.max(Event.received_at))
        .where(Event.received_at > after)
        .group_by(instance)
    )
    return {row[0]: row[1] for row in session.execute(latest)}


def _oldest_under_way(session: Session) -> dict[str, int]:
    oldest = (
        select(JobRow.instance, func.min(JobRow.first_seen_at))
        .where(IS_UNDER_WAY, JobRow.callback_due)
        .group_by(JobRow.instance)
    )
    return {row[0]: row[1] for row in session.execute(oldest)}
