"""What a batch writes: events once, their jobs merged, the timeline, and what was refused.

Functions take a Session and never commit. Rows are touched in a fixed order, events before jobs and
each sorted by key, or two nodes with the same batch in another order would deadlock.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from receiver.callbacks.rejections import AddressCount, NewRefusal, keep_refusals
from receiver.callbacks.statements import statements
from receiver.database.models import KeyVersion
from receiver.errors import KeysChanged
from receiver.jobs.projection import NewObservation, Update, follow_up, merge_jobs
from receiver.jobs.rows import Changes, EventRow, KeptEvents
from receiver.jobs.tally import LAST_CALLBACK, Tally, counts
from receiver.openconnectors.notifications import Notification

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


def record(
    store: Connection | Session, batch: Sequence[Item], clock: Callable[[], int]
) -> list[Result]:
    """Write a batch; give each item's result in its place.

    An event gives a Receipt, or KeysChanged if its keys are out of date; a refusal an AddressCount.
    """
    connection = store.connection() if isinstance(store, Session) else store
    run = statements(connection)
    events = [item for item in batch if isinstance(item, NewEvent)]
    kept = run.keep_events(_event_rows(events), clock) if events else None
    now = kept.now if kept else run.now(clock)
    new = [item for item in events if kept and kept.ids.get(_identity(item)) == item.id]
    updates = [
        Update(item.instance, item.notification, event=item.id, body=item.body)
        for item in new
        if item.notification.kind == "bulk_job"
    ]
    # After the events: a submission looks for those that came before it.
    updates += [
        Update(item.instance, item.notification, observation=item)
        for item in batch
        if isinstance(item, NewObservation)
    ]
    tally: Tally = defaultdict(int)
    if kept:
        run.note_keys(kept.keys, now)
        tally.update({(LAST_CALLBACK, 0, instance): now for instance, _ in kept.ids})
    states, changed = merge_jobs(run, updates, now, tally)
    if events or updates:
        entries = [entry for state in states for entry in state.entries]
        # A body that comes after its job was erased is not kept; instances may share a job's id.
        erased = {(state.id, state.instance) for state in states if state.job.erased_at is not None}
        bodies = [
            (item.id, item.body)
            for item in new
            if (item.notification.job, item.instance) not in erased
        ]
        run.write(Changes(bodies, changed, entries, counts(tally)))
    follow_up(connection, states, now)
    refusals = [item for item in batch if isinstance(item, NewRefusal)]
    addresses = keep_refusals(Session(connection), refusals, now) if refusals else {}
    return [_result(item, kept, addresses) for item in batch]


def keep_unmerged(session: Session, item: NewEvent, clock: Callable[[], int]) -> Receipt:
    """Keep a verified body whose reading the database refuses, as an event of kind `unreadable`."""
    unread = replace(
        item, notification=Notification("unreadable"), key_version=key_version(session)
    )
    (receipt,) = record(session, [unread], clock)
    return cast("Receipt", receipt)


def key_version(session: Session) -> int:
    """How often instances and keys were changed."""
    return session.scalar(select(KeyVersion.version)) or 0


def _result(item: Item, kept: KeptEvents | None, addresses: Mapping[str, AddressCount]) -> Result:
    if isinstance(item, NewRefusal):
        return addresses[item.peer]
    if isinstance(item, NewObservation):
        return None
    # Its twin may have been kept, but this delivery was not counted.
    if kept is None or item.key_version != kept.version:
        return KeysChanged("signature keys were changed meanwhile")
    kept_as = kept.ids[_identity(item)]
    kind = StaleReplay if _identity(item) in kept.forgotten else Receipt
    return kind(kept_as, kept_as != item.id)


def _identity(item: NewEvent) -> tuple[str, bytes]:
    return item.instance, item.sha256


def _event_rows(items: Sequence[NewEvent]) -> list[EventRow]:
    """One row for equal deliveries: twins in one statement would conflict with each other."""
    twins: dict[tuple[str, bytes, int], list[NewEvent]] = {}
    for item in items:
        twins.setdefault((item.instance, item.sha256, item.key_version), []).append(item)
    rows = []
    for place in sorted(twins):
        first = twins[place][0]
        rows.append(
            EventRow(
                id=first.id,
                instance=first.instance,
                sha256=first.sha256,
                kind=first.notification.kind,
                job=first.notification.job,
                deliveries=len(twins[place]),
                key=first.key,
                size=len(first.body),
                webhook_id=first.webhook_id,
                key_version=first.key_version,
            )
        )
    return rows
