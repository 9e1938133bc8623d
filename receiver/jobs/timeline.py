"""What happened to a job: its events, and the polls and submissions between them."""

import json
from typing import Any

from msgspec import Struct
from sqlalchemy import bindparam, select, union_all
from sqlalchemy import literal_column as literal

from receiver.database.engine import Database
from receiver.database.models import NUMBER_BITS, Event, TimelineEntry
from receiver.database.page import hidden
from receiver.openconnectors.notifications import Source

MAX_TIMELINE = 10_000


class Entry(Struct, frozen=True):
    """What one callback, poll or submission changed in a job, or why it changed nothing.

    event -- the id of a callback's event; what follows is of that too.
    """

    at: int
    source: Source
    status: str | None
    changed: list[str]
    note: str | None
    event: str | None = None
    size: int | None = None
    key: str | None = None
    deliveries: int | None = None
    last_received_at: int | None = None


def timeline(database: Database, job: str, instance: str) -> list[Entry]:
    """Read what happened to a job, in the order we learnt it."""
    rows = database.rows(_TIMELINE, {"job": job, "instance": instance})
    return [
        Entry(
            n >> NUMBER_BITS,
            source,
            status,
            json.loads(changed or "[]"),
            note,
            event_id(n) if source == "callback" else None,
            *of_event,
        )
        for n, source, status, changed, note, *of_event in rows
    ]


def event_id(n: int) -> str:
    """Return an event's id."""
    return f"{n:016x}"


_TIMELINE: Any = (
    union_all(
        # Hidden, or all events of the instance would be read in their order.
        select(
            hidden(Event.n),
            literal("'callback'"),
            Event.status,
            Event.changed,
            Event.note,
            Event.size,
            Event.key,
            Event.deliveries,
            Event.last_received_at,
        ).where(
            Event.instance == bindparam("instance"), Event.job == bindparam("job"), Event.key != ""
        ),
        select(
            TimelineEntry.n,
            TimelineEntry.source,
            TimelineEntry.status,
            TimelineEntry.changed,
            TimelineEntry.note,
            *(literal("NULL"),) * 4,
        ).where(
            TimelineEntry.instance == bindparam("instance"), TimelineEntry.job == bindparam("job")
        ),
    )
    .order_by(literal("1"))
    .limit(literal(str(MAX_TIMELINE)))
)
