"""Alarms as people see and handle them: shown, listed, acknowledged, snoozed.

Acknowledged: what is affected by now is not reported again; what is later is. Snoozed: nothing is
reported until then; if it is still open, it is reported again. The one replaces the other, both end
with the alarm, and its end is reported in any case.
"""

import json
from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec import Struct
from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from receiver.alarms.kinds import Severity, kind_of
from receiver.database import audit
from receiver.database.models.alarms import Alarm as AlarmRow
from receiver.errors import BadParameter, NotFound
from receiver.jobs.public import Time
from receiver.jobs.queries import Instances
from receiver.lib.clock import DAY_MS, MINUTE_MS, iso

MAX_EXAMPLE = 80  # characters
MAX_SNOOZE_MS = 30 * DAY_MS
MAX_NOTE = 500  # characters

State: TypeAlias = Literal["open", "acknowledged", "snoozed", "resolved"]


class Alarm(Struct, kw_only=True):
    """Something that needs a person: what, since when, how severe, what to do, who is on it.

    `id` is empty only while the database cannot store it. `cleared_at` -- when it was resolved.
    """

    id: str
    kind: str
    subject: str
    severity: Severity
    state: State
    title: str
    meaning: str
    action: str
    runbook: str
    detail: str
    count: int
    examples: list[str]
    raised_at: Time
    last_seen_at: Time
    notified_at: Time | None
    cleared_at: Time | None
    handled_at: Time | None
    handled_by: str | None
    note: str | None
    snoozed_until: Time | None


def state_of(row: AlarmRow) -> State:
    """Return where an alarm stands. A snooze ends with the first check after its time."""
    if row.cleared_at is not None:
        return "resolved"
    if row.snoozed_until is not None:
        return "snoozed"
    return "open" if row.handled_at is None else "acknowledged"


def public_alarm(row: AlarmRow) -> Alarm:
    """Show an alarm."""
    kind, subject = kind_of(row.kind), printable(row.subject)
    return Alarm(
        id="" if row.id is None else str(row.id),
        kind=row.kind,
        subject=subject,
        severity=kind.severity,
        state=state_of(row),
        title=kind.title if row.cleared_at is None else kind.resolved,
        meaning=kind.meaning,
        action=kind.advice(subject),
        runbook=kind.link,
        detail=printable(row.detail),
        count=row.count,
        examples=[printable(example)[:MAX_EXAMPLE] for example in json.loads(row.examples)],
        raised_at=iso(row.raised_at) or "",
        last_seen_at=iso(row.last_seen_at) or "",
        notified_at=iso(row.notified_at),
        cleared_at=iso(row.cleared_at),
        handled_at=iso(row.handled_at),
        handled_by=row.handled_by and printable(row.handled_by),
        note=row.note and printable(row.note),
        snoozed_until=iso(row.snoozed_until),
    )


def printable(words: str) -> str:
    """Write without what no header can hold, and what would steer a terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in words)


def list_alarms(
    session: Session,
    visible: Instances,
    *,
    only_open: bool,
    limit: int = 50,
    after: tuple[int, int] | None = None,
) -> Sequence[AlarmRow]:
    """Return alarms, newest first. after -- time raised and number of the last one of before."""
    statement = (
        _visible(visible).order_by(AlarmRow.raised_at.desc(), AlarmRow.id.desc()).limit(limit)
    )
    if only_open:
        statement = statement.where(AlarmRow.cleared_at.is_(None))
    if after is not None:
        statement = statement.where(tuple_(AlarmRow.raised_at, AlarmRow.id) < after)
    return session.scalars(statement).all()


def get_open_alarm(session: Session, id_: str, visible: Instances) -> AlarmRow:
    """Return an open alarm, locked until the end of the transaction. Raises NotFound."""
    if id_.isascii() and id_.isdecimal() and int(id_) < 2**63:
        is_it = AlarmRow.id == int(id_), AlarmRow.cleared_at.is_(None)
        if row := session.scalar(_visible(visible).where(*is_it).with_for_update()):
            return row
    raise NotFound(f"there is no open alarm {id_}")


def acknowledge(
    session: Session, row: AlarmRow, by: str, now: int, note: str | None = None
) -> None:
    """Say that somebody works on an alarm. by -- who. Raises BadParameter for a long note."""
    _handle(row, by, now, note, None)
    row.news_newest = row.newest
    _record(session, row, "alarm.acknowledge", "")


def snooze(
    session: Session, row: AlarmRow, by: str, now: int, *, ms: int, note: str | None = None
) -> None:
    """Report nothing of an alarm for `ms`. Raises BadParameter."""
    if not MINUTE_MS <= ms <= MAX_SNOOZE_MS:
        raise BadParameter("an alarm is snoozed for 1 minute at least, and 30 days at most")
    _handle(row, by, now, note, now + ms)
    _record(session, row, "alarm.snooze", f"until {iso(row.snoozed_until)}")


def reopen(row: AlarmRow) -> None:
    """End a snooze."""
    row.handled_at = row.handled_by = row.note = row.snoozed_until = None


def _handle(row: AlarmRow, by: str, now: int, note: str | None, until: int | None) -> None:
    if note is not None and len(note) > MAX_NOTE:
        raise BadParameter(f"the note is longer than {MAX_NOTE} characters")
    row.handled_at, row.handled_by, row.note, row.snoozed_until = now, by, note or None, until


def _record(session: Session, row: AlarmRow, action: str, detail: str) -> None:
    # Not the note: it may name people, and the audit is for ever.
    at, actor, subject = row.handled_at or 0, row.handled_by or "", f"{row.kind}/{row.subject}"
    audit.record(session, at=at, actor=actor, action=action, subject=subject, detail=detail)


def _visible(visible: Instances) -> Select[AlarmRow]:
    return (
        select(AlarmRow)
        if visible is None
        else select(AlarmRow).where(AlarmRow.instance.in_(visible))
    )
