"""An alarm as everybody is shown it: by messages, the API and the command line."""

import json
from typing import Literal, TypeAlias

from msgspec import Struct

from receiver.alarms.kinds import Severity, kind_of
from receiver.database.models.alarms import Alarm as AlarmRow
from receiver.jobs.shown import Time
from receiver.lib.clock import iso

MAX_EXAMPLE = 80  # characters

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


def shown(row: AlarmRow) -> Alarm:
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
