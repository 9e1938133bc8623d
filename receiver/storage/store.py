"""What a batch writes: events once, their jobs merged, the timeline, and what was refused.

Functions take a Session and never commit. Rows are touched in a fixed order, events before jobs and
each sorted by key, or two nodes with the same batch in another order would deadlock.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias, cast

from sqlalchemy import Table, func, insert, or_, select, text, update
from sqlalchemy.orm import Session

from receiver.clock import MINUTE_MS
from receiver.errors import KeysChanged
from receiver.notifications import Notification
from receiver.storage.database import upsert
from receiver.storage.merging import NewObservation, Told, merge_jobs
from receiver.storage.models import (
    FORGOTTEN,
    Body,
    Event,
    KeyVersion,
    StoredKey,
)
from receiver.storage.refusals import AddressCount, NewRefusal, keep_refusals

KEY_PREFIX = "key-"  # of the ids of signature keys in the database


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A verified callback to be stored. id -- taken if the body is new. sha256 -- of the body.

    key -- which signature key matched. key_version -- of the keys it was verified with.
    """

    id: str
    instance: str
    body: bytes
    sha256: bytes
    notification: Notification
    key: str
    key_version: int
    webhook_id: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """event -- its id. duplicate -- whether the same body was there before."""

    event: str
    duplicate: bool


class StaleReplay(Receipt):
    """The receipt of a duplicate that came so late that the event was pruned meanwhile."""

    __slots__ = ()


Item: TypeAlias = NewEvent | NewObservation | NewRefusal
Result: TypeAlias = Receipt | AddressCount | KeysChanged | None


# Core, without the ORM's objects: this is the hot path.
_EVENTS = cast("Table", Event.__table__)
_BODIES = cast("Table", Body.__table__)


def record(session: Session, batch: Sequence[Item], clock: Callable[[], int]) -> list[Result]:
    """Write a batch; give each item's result in its place.

    An event gives a Receipt, or KeysChanged if its keys are out of date; a refusal an AddressCount.
    """
    now = database_time(session, clock)
    version = key_version(session)
    fresh = [item for item in batch if isinstance(item, NewEvent) and item.key_version == version]
    kept = _keep_events(session, fresh, now)
    told = [
        Told(item.instance, item.notification, event=item.id, body=item.body)
        for item in fresh
        if kept[_identity(item)].id == item.id and item.notification.kind == "bulk_job"
    ]
    # After the events: a submission looks for those that came before it.
    told += [
        Told(item.instance, item.notification, observation=item)
        for item in batch
        if isinstance(item, NewObservation)
    ]
    merge_jobs(session, told, now)
    refusals = [item for item in batch if isinstance(item, NewRefusal)]
    addresses = keep_refusals(session, refusals, now) if refusals else {}
    return [_result(item, kept, addresses) for item in batch]


def keep_unmerged(session: Session, item: NewEvent, clock: Callable[[], int]) -> Receipt:
    """Keep a verified body whose reading the database refuses, as an event of kind `unreadable`."""
    unread = replace(item, notification=Notification("unreadable"))
    kept = _keep_events(session, [unread], database_time(session, clock))
    return kept[_identity(item)].receipt(item)


def database_time(session: Session, clock: Callable[[], int]) -> int:
    """The time all nodes agree on, ms: PostgreSQL's, or this machine's for SQLite."""
    if session.get_bind().dialect.name == "sqlite":
        return clock()
    return int(
        session.scalar(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"))
    )


def key_version(session: Session) -> int:
    """How often instances and keys were changed."""
    return session.scalar(select(KeyVersion.version)) or 0


def _result(
    item: Item, kept: "dict[tuple[str, bytes], _Kept]", addresses: dict[str, AddressCount]
) -> Result:
    if isinstance(item, NewRefusal):
        return addresses[item.peer]
    if isinstance(item, NewObservation):
        return None
    kept_as = kept.get(_identity(item))
    if kept_as is None:
        return KeysChanged("signature keys were changed meanwhile")
    return kept_as.receipt(item)


class _Kept(NamedTuple):
    """The row of `events` that a delivery met or made."""

    id: str
    received_at: int

    def receipt(self, item: NewEvent) -> Receipt:
        kind = StaleReplay if self.received_at == FORGOTTEN else Receipt
        return kind(self.id, self.id != item.id)


def _identity(item: NewEvent) -> tuple[str, bytes]:
    return item.instance, item.sha256


def _keep_events(
    session: Session, items: Sequence[NewEvent], now: int
) -> dict[tuple[str, bytes], _Kept]:
    """Insert events or count their repetition; give the row that keeps each."""
    if not items:
        return {}
    rows = [
        _event_row(list(twins), now)
        for _, twins in groupby(sorted(items, key=_identity), _identity)
    ]
    new = upsert(session, _EVENTS)
    statement = new.on_conflict_do_update(
        index_elements=[_EVENTS.c.instance, _EVENTS.c.sha256],
        set_={
            "deliveries": _EVENTS.c.deliveries + new.excluded.deliveries,
            "last_received_at": _greatest(
                session, _EVENTS.c.last_received_at, new.excluded.last_received_at
            ),
        },
    ).returning(_EVENTS.c.instance, _EVENTS.c.sha256, _EVENTS.c.id, _EVENTS.c.received_at)
    kept = {
        (instance, sha256): _Kept(id_, received_at)
        for instance, sha256, id_, received_at in session.execute(statement, rows)
    }
    bodies = {item.id: item.body for item in items if kept[_identity(item)].id == item.id}
    if bodies:
        session.execute(
            insert(_BODIES), [{"event": id_, "body": body} for id_, body in bodies.items()]
        )
    _note_key_use(session, {item.key for item in items}, now)
    return kept


def _event_row(twins: list[NewEvent], now: int) -> dict[str, Any]:
    """One row for equal deliveries: twins in one statement would conflict with each other."""
    first = twins[0]
    return {
        "id": first.id,
        "instance": first.instance,
        "sha256": first.sha256,
        "kind": first.notification.kind,
        "job": first.notification.job,
        "received_at": now,
        "last_received_at": now,
        "deliveries": len(twins),
        "key": first.key,
        "size": len(first.body),
        "webhook_id": first.webhook_id,
    }


def _note_key_use(session: Session, keys: Iterable[str], now: int) -> None:
    """Remember when a key last matched, to the minute: more would be a write for each callback."""
    long_ago = or_(StoredKey.last_used_at.is_(None), StoredKey.last_used_at < now - MINUTE_MS)
    # In an order that all nodes keep; those of the environment have no row.
    for key in sorted(key for key in keys if key.startswith(KEY_PREFIX)):
        used = update(StoredKey).where(StoredKey.id == key, long_ago)
        session.execute(used.values(last_used_at=now))


def _greatest(session: Session, one: Any, other: Any) -> Any:  # noqa: ANN401 - SQL expressions
    sqlite_has = session.get_bind().dialect.name == "sqlite"
    return func.max(one, other) if sqlite_has else func.greatest(one, other)
