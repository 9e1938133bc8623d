"""Verified callbacks: listed, read back, and merged anew where this release can read more."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, cast

from msgspec import Struct
from sqlalchemy import (
    Boolean,
    Connection,
    LargeBinary,
    Row,
    bindparam,
    delete,
    exists,
    func,
    literal,
    literal_column,
    select,
    update,
)

from receiver.callbacks.deliveries import Delivery, Judged, Receipt
from receiver.callbacks.statements import Start, statements
from receiver.callbacks.store import Store, retry_lost_races
from receiver.database.engine import Database
from receiver.database.models import NOT_A_JOB, NUMBER_BITS, Event, Facet, JobRow, Retention
from receiver.database.page import (
    LOWER,
    MAX_TIME,
    MIN_TIME,
    Column,
    Selection,
    among,
    contains,
    greatest,
    hidden,
    page,
    page_values,
)
from receiver.errors import StoreRefused
from receiver.jobs.queries import Instances, reachable, register
from receiver.jobs.timeline import event_id
from receiver.lib.clock import now_ms
from receiver.openconnectors.notifications import Kind, parse

BATCH = 100  # of events that are read again

_ID = re.compile("[0-9a-f]{16}")


class EventFilters(Struct, frozen=True, kw_only=True):
    """Which events. An empty sequence or None leaves a filter open; times are ms.

    body, header, file -- parts of those, the file being the job's.
    visible -- the instances that the token reaches.
    """

    instances: Sequence[str] = ()
    kinds: Sequence[str] = ()
    jobs: Sequence[str] = ()
    received_after: int | None = None
    received_before: int | None = None
    body: str | None = None
    header: str | None = None
    file: str | None = None
    visible: Instances = None


class EventRecord(Struct, frozen=True):
    """An event as it is read; times are ms. key -- '' once it is forgotten. sha256 -- hex.

    headers (JSON) and peer -- of the delivery that was stored; not of lists.
    """

    id: str
    instance: str
    kind: Kind
    job: str | None
    received_at: int
    last_received_at: int
    deliveries: int
    key: str
    size: int
    sha256: str
    webhook_id: str | None
    headers: str | None = None
    peer: str | None = None


def list_events(
    database: Database, filters: EventFilters, limit: int, after: str | None = None
) -> list[EventRecord]:
    """Read events that are not forgotten, newest first. after -- the id of the last one seen."""
    instances = reachable(filters.instances, filters.visible)
    if instances == frozenset():
        return []
    last = None if after is None else [event_number(after)]
    lower, upper = _bounds(filters)
    values: dict[str, Any] = {
        "instance": sorted(instances or ()),
        "kind": sorted(set(filters.kinds)),  # each is a range
        "job": list(filters.jobs),
        "body": filters.body and filters.body.encode("utf-8", "surrogatepass"),
        "header": filters.header,
        "file": filters.file,
        **page_values(last, lower=lower, upper=upper),
    }
    active = frozenset(name for name, value in values.items() if value)
    rare = "bulk_job" not in filters.kinds
    rows = database.rows(_events(limit, active, rare, database.is_sqlite), values)
    return [_record(row) for row in rows]


def get_event(database: Database, id_: str, visible: Instances = None) -> EventRecord | None:
    """Read an event; None if there is none that the token sees."""
    rows = database.rows(_ONE, {"n": event_number(id_)})
    found = _record(rows[0]) if rows else None
    return found if found and (visible is None or found.instance in visible) else None


def get_body(database: Database, id_: str) -> bytes | None:
    """Read the exact bytes of an event, or None once they were pruned."""
    return database.rows(_BODY, {"n": event_number(id_)})[0][0]  # type: ignore[no-any-return]


def read_events(
    database: Database, numbers: Sequence[int]
) -> list[tuple[EventRecord, bytes | None]]:
    """Read the events of these numbers in their order, with those bodies that are left."""
    rows = database.rows(_WITH_BODY, {"numbers": numbers}) if numbers else ()
    return [(_record(row), row.body) for row in rows]


def event_number(id_: str) -> int:
    """Return the number of an id, or -1, which no event has."""
    n = int(id_, 16) if _ID.fullmatch(id_) else -1
    return n if n < 2**63 else -1


def _bounds(filters: EventFilters) -> tuple[int, int]:
    """Return the times as numbers of events: those received at `t` begin at `t << NUMBER_BITS`."""
    after, before = filters.received_after, filters.received_before
    lower = MIN_TIME if after is None else _clamp(after + 1 << NUMBER_BITS)
    return lower, MAX_TIME if before is None else _clamp((before << NUMBER_BITS) - 1)


def _clamp(n: int) -> int:
    """Return the nearest number that both databases can compare: no event is past the ends."""
    return max(MIN_TIME, min(n, MAX_TIME))


_COLUMNS = (
    Event.n,
    Event.instance,
    Event.kind,
    Event.job,
    Event.last_received_at,
    Event.deliveries,
    Event.key,
    Event.size,
    Event.sha256,
    Event.webhook_id,
)
_ONE = select(*_COLUMNS, Event.headers, Event.peer).where(Event.n == bindparam("n"))
_BODY = select(Event.body).where(Event.n == bindparam("n"))
_WITH_BODY = (
    select(*_COLUMNS, Event.headers, Event.peer, Event.body)
    .where(Event.n.in_(bindparam("numbers", expanding=True)))
    .order_by(Event.n)
)


def _body_contains(*, sqlite: bool) -> Column:
    part = bindparam("body", type_=LargeBinary)
    if sqlite:
        return func.instr(Event.body, part) > 0
    return func.position(part.op("IN")(Event.body)) > 0


def _file_contains(*, sqlite: bool) -> Column:
    of_event = JobRow.instance == Event.instance, JobRow.id == Event.job
    found = contains(register("file", sqlite=sqlite), "file", sqlite=sqlite)
    return exists().where(*of_event, found).correlate(Event)


_TEXTS: dict[str, Callable[..., Column]] = {
    "header": partial(contains, Event.headers, "header"),
    "body": _body_contains,
    "file": _file_contains,
}


@lru_cache
def _events(limit: int, active: frozenset[str], rare: bool, sqlite: bool) -> Selection:
    """Make the statement of a page. rare -- whether it is only of kinds that few events have."""
    # What is forgotten is older than what is not: nobody reads past all of it.
    kept = select(Retention.events_before * literal_column(str(1 << NUMBER_BITS))).scalar_subquery()
    n: Any = hidden(Event.n).label("n") if "job" in active else Event.n
    where: list[Any] = [Event.key != ""]
    ranges: tuple[Any, str] | None = None
    if "job" in active:  # a job has few events: they are sorted
        where.append(among(Event.job, "job", sqlite=sqlite))
        if "instance" not in active:
            where.append(Event.instance.in_(select(Facet.instance).distinct()))
    elif active & _TEXTS.keys():
        pass  # most rows are read, so in their order, and once
    elif "kind" in active and rare:
        ranges = Event.kind, "kind"
        where.append(literal_column(NOT_A_JOB))
    elif "instance" in active:
        ranges = Event.instance, "instance"
    for name in ("instance", "kind"):
        if name in active and (ranges is None or ranges[1] != name):
            column: Any = getattr(Event, name)
            # Changed, though into the same, or the planner would take the index of this column.
            operand = column if "job" in active else column.concat(literal_column("''"))
            where.append(among(operand, name, sqlite=sqlite))
    where += [_TEXTS[name](sqlite=sqlite) for name in _TEXTS if name in active]
    lower = greatest([LOWER, kept], sqlite=sqlite)
    keys = page(limit, [n], where, ranges, lower=lower, after="after_0" in active, sqlite=sqlite)
    numbers = keys.subquery("page")
    of_page = select(*_COLUMNS).join(numbers, numbers.c.n == Event.n)
    return of_page.order_by(numbers.c.n.desc())


def _record(row: Row[*tuple[Any, ...]]) -> EventRecord:
    return EventRecord(
        event_id(row.n),
        row.instance,
        row.kind,
        row.job or None,
        row.n >> NUMBER_BITS,
        row.last_received_at,
        row.deliveries,
        row.key,
        row.size,
        row.sha256.hex(),
        row.webhook_id,
        *row[len(_COLUMNS) : len(_COLUMNS) + 2],
    )


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
    """Merge such an event as if it had been read when it came; return whether that was done.

    Not if another process has done it, or the database refuses what it says. The event keeps its
    number, its time and its count of deliveries, unless the same body came again since and is an
    event of its job: then it becomes deliveries of that one.
    """

    def merge() -> bool:
        with database.transaction() as connection:
            return _merge(connection, store, n, sqlite=database.is_sqlite)

    with suppress(StoreRefused):
        return retry_lost_races(merge)
    return False


def _merge(connection: Connection, store: Store, n: int, *, sqlite: bool) -> bool:
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
