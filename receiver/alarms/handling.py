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
from receiver.jobs.public import Time, from_record
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
    return from_record(
        row,
        Alarm,
        id="" if row.id is None else str(row.id),
        subject=subject,
        severity=kind.severity,
        state=state_of(row),
        title=kind.title if row.cleared_at is None else kind.resolved,
        meaning=kind.meaning,
        action=kind.advice(subject),
        runbook=kind.link,
        detail=printable(row.detail),
        examples=[printable(example)[:MAX_EXAMPLE] for example in json.loads(row.examples)],
        handled_by=row.handled_by and printable(row.handled_by),
        note=row.note and printable(row.note),
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


def handle(
    session: Session,
    id_: str,
    visible: Instances,
    *,
    by: str,
    now: int,
    note: str | None,
    ms: int | None = None,
) -> Alarm:
    """Say that somebody works on an open alarm, or snooze it for `ms`. by -- who.

    Raises NotFound, BadParameter.
    """
    row = get_open_alarm(session, id_, visible)
    if ms is not None and not MINUTE_MS <= ms <= MAX_SNOOZE_MS:
        raise BadParameter("an alarm is snoozed for 1 minute at least, and 30 days at most")
    if note is not None and len(note) > MAX_NOTE:
        raise BadParameter(f"the note is longer than {MAX_NOTE} characters")
    row.handled_at, row.handled_by, row.note = now, by, note or None
    if ms is None:
        row.snoozed_until, row.news_newest = None, row.newest
        action, detail = "alarm.acknowledge", ""
    else:
        row.snoozed_until = now + ms
        action, detail = "alarm.snooze", f"until {iso(now + ms)}"
    # Not the note: it may name people, and the audit is for ever.
    subject = f"{row.kind}/{row.subject}"
    audit.record(session, at=now, actor=by, action=action, subject=subject, detail=detail)
    return public_alarm(row)


def reopen(row: AlarmRow) -> None:
    """End a snooze."""
    row.handled_at = row.handled_by = row.note = row.snoozed_until = None


def _visible(visible: Instances) -> Select[AlarmRow]:
    return (
        select(AlarmRow)
        if visible is None
        else select(AlarmRow).where(AlarmRow.instance.in_(visible))
    )
