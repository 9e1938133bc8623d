"""Merging events that an older release stored as `unreadable`, and this one can read."""

from collections.abc import Iterator
from typing import cast

from sqlalchemy import Boolean, Connection, delete, literal, literal_column, select, update

from receiver.callbacks.deliveries import Delivery, Judged, Receipt
from receiver.callbacks.statements import Start, statements
from receiver.callbacks.store import TRIES, Store
from receiver.database.engine import Database
from receiver.database.models import NOT_A_JOB, NUMBER_BITS, Event, JobRow
from receiver.database.page import Column, greatest
from receiver.errors import LostRace, StoreRefused
from receiver.lib.clock import now_ms
from receiver.openconnectors.notifications import parse

BATCH = 100


def find_readable(database: Database) -> Iterator[int]:
    """Yield the numbers of the events of kind `unreadable` that can be read by now."""
    after = -1
    while True:
        of_kind = literal_column(NOT_A_JOB, Boolean()), Event.kind == "unreadable"
        rows = select(Event.n, Event.body).where(*of_kind, Event.n > after)
        with database.read() as session:
            batch = session.execute(rows.order_by(Event.n).limit(BATCH)).all()
        for n, body in batch:
            if body is not None and parse(body).kind != "unreadable":
                yield n
        if len(batch) < BATCH:
            return
        after = batch[-1].n


def reread(database: Database, store: Store, n: int) -> bool:
    """Merge such an event as if it had been read when it came; tell whether that was done.

    It is not where another process was faster, or the database refuses what it says. It keeps its
    number, its time and its count of deliveries, unless the same body came again since and is an
    event of its job: then it becomes deliveries of that one.
    """
    for attempt in range(TRIES, 0, -1):
        try:
            with database.transaction() as connection:
                return _reread(connection, store, n, sqlite=database.is_sqlite)
        except LostRace:
            if attempt == 1:
                raise
        except StoreRefused:
            return False
    return False


def _reread(connection: Connection, store: Store, n: int, *, sqlite: bool) -> bool:
    start, _ = statements(connection).start(now_ms)
    unread = Event.n == n, Event.kind == "unreadable"
    row = connection.execute(select(Event).where(*unread).with_for_update()).one_or_none()
    if row is None:
        return False
    connection.execute(delete(Event).where(*unread))
    notification = parse(row.body)
    delivery = Delivery(
        row.instance, row.body, None, row.webhook_id, row.peer or "", headers=row.headers
    )
    item = Judged(delivery, start.version, row.key, "", row.sha256, notification)
    then = Start(n >> NUMBER_BITS, start.version, n)
    written = store.write_in(connection, [item], then)
    receipt = cast("Receipt", written.results[0])
    last: Column = literal_column("last_received_at")
    updated: Column = literal_column("updated_at")
    repeated = update(Event).where(Event.n == receipt.n, Event.instance == row.instance)
    connection.execute(
        repeated.values(
            deliveries=Event.deliveries + row.deliveries - 1,
            last_received_at=greatest((last, literal(row.last_received_at)), sqlite=sqlite),
        )
    )
    # Whoever asks for what changed lately must not miss it.
    changed = update(JobRow).where(JobRow.instance == row.instance, JobRow.id == notification.job)
    at = greatest((updated, literal(start.now)), sqlite=sqlite)
    connection.execute(changed.values(updated_at=at))
    return True
