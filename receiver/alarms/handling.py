"""Alarms as people handle them: listed, acknowledged, snoozed.

Acknowledged: what is affected by now is no news any more; what comes later is. Snoozed: nothing is
news until then, and it is told again if it is still open. Each takes the other's place; both end
with the alarm, and its end is told in any case.
"""

from collections.abc import Sequence

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from receiver.database import audit
from receiver.database.models.alarms import Alarm
from receiver.errors import BadParameter, NotFound
from receiver.lib.clock import DAY_MS, MINUTE_MS, iso

MAX_SNOOZE_MS = 30 * DAY_MS
MAX_NOTE = 500  # characters

Visible = frozenset[str] | None  # instances whose alarms are reached; None is all alarms


def list_alarms(
    session: Session,
    visible: Visible,
    *,
    only_open: bool,
    limit: int = 50,
    after: tuple[int, int] | None = None,
) -> Sequence[Alarm]:
    """Return alarms, newest first. after -- time raised and number of the last one of before."""
    statement = _reached(visible).order_by(Alarm.raised_at.desc(), Alarm.id.desc()).limit(limit)
    if only_open:
        statement = statement.where(Alarm.cleared_at.is_(None))
    if after is not None:
        statement = statement.where(tuple_(Alarm.raised_at, Alarm.id) < after)
    return session.scalars(statement).all()


def get_open_alarm(session: Session, id_: str, visible: Visible) -> Alarm:
    """Return an open alarm, locked until the end of the transaction. Raises NotFound."""
    if id_.isascii() and id_.isdecimal() and int(id_) < 2**63:
        is_it = Alarm.id == int(id_), Alarm.cleared_at.is_(None)
        if row := session.scalar(_reached(visible).where(*is_it).with_for_update()):
            return row
    raise NotFound(f"there is no open alarm {id_}")


def acknowledge(session: Session, row: Alarm, by: str, now: int, note: str | None = None) -> None:
    """Say that somebody works on an alarm. by -- who. Raises BadParameter for a long note."""
    _handle(row, by, now, note, None)
    row.news_newest = row.newest
    _record(session, row, "alarm.acknowledge", "")


def snooze(
    session: Session, row: Alarm, by: str, now: int, *, ms: int, note: str | None = None
) -> None:
    """Tell nothing of an alarm for so long. Raises BadParameter."""
    if not MINUTE_MS <= ms <= MAX_SNOOZE_MS:
        raise BadParameter("an alarm is snoozed for 1 minute at least, and 30 days at most")
    _handle(row, by, now, note, now + ms)
    _record(session, row, "alarm.snooze", f"until {iso(row.snoozed_until)}")


def reopen(row: Alarm) -> None:
    """End a snooze."""
    row.handled_at = row.handled_by = row.note = row.snoozed_until = None


def _handle(row: Alarm, by: str, now: int, note: str | None, until: int | None) -> None:
    if note is not None and len(note) > MAX_NOTE:
        raise BadParameter(f"the note is longer than {MAX_NOTE} characters")
    row.handled_at, row.handled_by, row.note, row.snoozed_until = now, by, note or None, until


def _record(session: Session, row: Alarm, action: str, detail: str) -> None:
    # Not the note: it may name people, and the audit is for ever.
    at, actor, subject = row.handled_at or 0, row.handled_by or "", f"{row.kind}/{row.subject}"
    audit.record(session, at=at, actor=actor, action=action, subject=subject, detail=detail)


def _reached(visible: Visible) -> Select[Alarm]:
    return select(Alarm) if visible is None else select(Alarm).where(Alarm.instance.in_(visible))
