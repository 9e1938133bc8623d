"""What a batch writes, in one transaction: verdicts confirmed, events once, their jobs merged.

The verdict belongs to the transaction: the version of the keys is read in it, and what was judged
by another is judged again, so that a rotation is seen at once by every node. Rows are touched in a
fixed order, jobs before events before counts and each sorted by key, or two nodes with the same
batch in another order would deadlock.
"""

import os
import socket
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from operator import itemgetter
from typing import NamedTuple, TypeVar, cast

import msgspec
import structlog
from sqlalchemy import Connection, func, or_, select, update

from receiver import metrics
from receiver.callbacks import statements as sql
from receiver.callbacks.deliveries import (
    AddressCount,
    Failed,
    Identity,
    Item,
    JobKey,
    Judged,
    NewRejection,
    Receipt,
    Rejected,
    Result,
    identity_of,
    job_key_of,
    judge,
    rejection_of,
)
from receiver.callbacks.rejections import record_rejections
from receiver.callbacks.statements import Row, Start, Statements, statements
from receiver.database.engine import Database, database_time
from receiver.database.models import Facet, StoredKey
from receiver.errors import (
    KeyUnusable,
    LostRace,
    StatementRefused,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from receiver.instances.keys import KEY_PREFIX, Keys
from receiver.jobs.first_callback import FirstCallback
from receiver.jobs.projection import (
    FacetKey,
    Forward,
    JobState,
    JobValues,
    NewAbsence,
    NewObservation,
    tally,
)
from receiver.lib.clock import MINUTE_MS
from receiver.openconnectors.notifications import Notification
from receiver.subscriptions.changes import messages_of, queue_forwards
from receiver.subscriptions.registry import Subscriptions

MAX_FACETS = 10_000  # of an instance; all beyond share one for each outcome
MAX_REMEMBERED = 50_000  # facets, in one process
TRIES = 5  # of a batch that lost races with other nodes
# Of a transaction before it commits, or its events might become visible too late for `feed`.
MAX_WRITING_SECONDS = 8
SLOTS = 16  # of counts: processes with a slot of their own do not wait for each other

T = TypeVar("T")

log = structlog.get_logger()


def retry_lost_races(work: Callable[[], T]) -> T:
    """Do work; again, up to TRIES times, while another node is faster. Raises LostRace."""
    for _ in range(TRIES - 1):
        with suppress(LostRace):
            return work()
    return work()


class Store:
    """Writes batches, for whoever is the only writer of its process.

    clock -- ms since the epoch; PostgreSQL's own is used where there is one.
    """

    def __init__(self, database: Database, keys: Keys, clock: Callable[[], int]) -> None:
        self._database, self._keys, self._clock = database, keys, clock
        process = zlib.crc32(socket.gethostname().encode()) + os.getpid()
        self._slot = 0 if database.is_sqlite else process % SLOTS
        self._facets: dict[FacetKey, int] = {}  # that are committed
        self._used: dict[str, int] = {}  # when a key's use was last noted, ms
        self._rejections: list[NewRejection] = []
        self._subscriptions = Subscriptions()

    def write(self, batch: Sequence[Item]) -> list[Result]:
        """Write a batch of at most MAX_BATCH; return each item's result in its place.

        An item that the database refuses for good does not fail its neighbours: a callback is then
        stored as `unreadable`. Whatever else goes wrong gives Failed, and nothing is stored.
        """
        try:
            began = time.perf_counter()
            results = self._commit(batch)
        except (StatementRefused, StoreRefused) as error:
            if len(batch) > 1:
                return [result for item in batch for result in self.write([item])]
            if isinstance(error, StatementRefused):
                return [Failed(str(error))]
            return [self._store_unreadable(batch[0])]
        except StoreError as error:
            return [Failed(str(error))] * len(batch)
        metrics.BATCH_SIZE.observe(len(batch))
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - began)
        return results

    def write_rejections(self) -> list[AddressCount]:
        """Count and quarantine what was rejected; return how often its addresses were by now.

        In a transaction of its own, since nobody waits for it: what cannot be written is dropped.
        """
        rejections, self._rejections = self._rejections, []
        if not rejections:
            return []
        try:
            with self._database.write(timeout=None) as session:
                now = database_time(session, self._clock)
                return record_rejections(session, rejections, now)
        except StoreError as error:
            log.warning("rejections are not recorded", count=len(rejections), error=str(error))
            return []

    def _commit(self, batch: Sequence[Item]) -> list[Result]:
        written = retry_lost_races(lambda: self._write(batch))
        self._rejections += written.rejections
        if len(self._facets) > MAX_REMEMBERED:
            self._facets.clear()
        self._facets |= written.facets
        self._used |= written.used
        return written.results

    def _write(self, batch: Sequence[Item]) -> "Written":
        with self._database.batch() as connection:
            began = time.monotonic()
            written = self.write_in(connection, batch)
            if time.monotonic() - began > MAX_WRITING_SECONDS:
                raise StoreUnavailable("it took too long to write")
            return written

    def _store_unreadable(self, item: Item) -> Result:
        """Store a verified body whose reading the database refuses, without a job."""
        if not isinstance(item, Judged):
            return Failed("the database rejects this")
        # By the keys of now, or the body would be read again with the next verdict.
        judged = judge(self._keys.current, item.delivery, unrecorded=item.unrecorded)
        unreadable = msgspec.structs.replace(judged, notification=Notification("unreadable"))
        try:
            return self._commit([unreadable])[0]
        except StoreError as error:
            return Failed(str(error))

    def write_in(
        self, connection: Connection, batch: Sequence[Item], start: Start | None = None
    ) -> "Written":
        """Write a batch in a transaction. start -- instead of the transaction's own."""
        run = statements(connection)
        began, rows = run.start(self._clock, _job_keys(batch))
        start = start or began
        now = start.now
        items = self._rejudge(connection, batch, start.version)
        if items is not batch:
            rows = run.select(sql.JOBS, _job_keys(items))
        merge = _Merge(start, *_find(run, items, rows, now))
        results = merge.apply(items)
        merged: list[JobState | FirstCallback] = [
            *merge.first_callbacks,
            *(state for state in merge.states.values() if state.needs_write),
        ]
        jobs = [(job, job.facet()) for job in merged]
        facets = self._find_facets(connection, run, {key for _, key in jobs})
        changes = [(job, key, job.values(facets[key], now)) for job, key in jobs]
        subscriptions = self._subscriptions.at(connection, start.version)
        messages = [
            message.row(now)
            for change in changes
            for message in messages_of(subscriptions, *change, now)
        ]
        run.write(
            (sql.NEW_JOBS, sorted(row for job, _, row in changes if job.counted is None)),
            (sql.CHANGED_JOBS, [row for job, _, row in changes if job.counted is not None]),
            (sql.NEW_EVENTS, merge.events + sorted(merge.jobless, key=itemgetter(1, 3))),
            (sql.REPEATED_EVENTS, [(more, now, n) for n, more in merge.repeated.items()]),
            (sql.NEW_ENTRIES, merge.entries),
            (sql.COUNTS, tally(((job.counted, row) for job, _, row in changes), self._slot)),
            (sql.NEW_DELIVERIES, messages),
        )
        used = self._note_use(connection, items, now)
        queue_forwards(connection, merge.states.values(), now)
        return Written(results, merge.rejections, facets, used)

    def _rejudge(
        self, connection: Connection, batch: Sequence[Item], version: int
    ) -> Sequence[Item]:
        """Judge again what was judged by other keys than those of now."""
        if all(_is_judged(item, version) for item in batch):
            return batch
        keys = self._keys.load(connection)
        return [
            judge(keys, item.delivery, unrecorded=item.unrecorded)
            if isinstance(item, Judged)
            else item
            for item in batch
        ]

    def _find_facets(
        self, connection: Connection, run: Statements, keys: set[FacetKey]
    ) -> dict[FacetKey, int]:
        """Return the facets' numbers; insert those that this process has not seen before."""
        numbers = {key: self._facets[key] for key in keys if key in self._facets}
        for key in sorted(keys - numbers.keys(), key=FacetKey.number):
            used = key
            of_instance = select(func.count()).where(Facet.instance == key.instance)
            # Not locked: nodes that add at once may go beyond the bound by a few.
            if (connection.scalar(of_instance) or 0) >= MAX_FACETS and not run.select(
                sql.FACETS, [(key.number(),)]
            ):
                used = key.as_other()
            run.write((sql.NEW_FACETS, [(used.number(), *used)]))
            numbers[key] = used.number()
        return numbers

    def _note_use(self, connection: Connection, items: Sequence[Item], now: int) -> dict[str, int]:
        """Note when keys last matched, to the minute: more would be a write a callback."""
        matched = {item.key for item in items if isinstance(item, Judged)}
        used = [
            key
            for key in sorted(matched)
            if key.startswith(KEY_PREFIX) and self._used.get(key, 0) <= now - MINUTE_MS
        ]
        for key in used:
            last = StoredKey.last_used_at
            unnoted = or_(last.is_(None), last <= now - MINUTE_MS)
            note = update(StoredKey).where(StoredKey.id == key, unnoted)
            connection.execute(note.values(last_used_at=now))
        return dict.fromkeys(used, now)


class Written(NamedTuple):
    """What is to be remembered of a batch once it is committed. used -- keys, and when, ms."""

    results: list[Result]
    rejections: list[NewRejection]
    facets: dict[FacetKey, int]
    used: dict[str, int]


class _Merge:
    """Merges a batch's items into jobs, in memory; collects the rows that are to be written.

    states -- of jobs. receipts -- of events that are there already. Both as `_find` returns them.
    """

    def __init__(
        self, start: Start, states: dict[JobKey, JobState], receipts: dict[Identity, Receipt]
    ) -> None:
        self._now, self._numbers = start.now, count(start.n)
        self.states, self._receipts = states, receipts
        self.first_callbacks: list[FirstCallback] = []  # of new jobs, each of one item alone
        self.events: list[Row] = []
        self.jobless: list[Row] = []  # events that are not about a job
        self.repeated: Counter[int] = Counter()  # by the event's number
        self.entries: list[Row] = []  # of timelines
        self.rejections: list[NewRejection] = []

    def apply(self, items: Sequence[Item]) -> list[Result]:
        """Apply callbacks first: a submission looks for those that came before it."""
        results = [
            self._apply_delivery(item) if isinstance(item, Judged) else None for item in items
        ]
        for item in items:
            if isinstance(item, NewObservation):
                self._apply_observation(item)
            elif isinstance(item, NewAbsence):
                self._apply_absence(item)
            elif isinstance(item, NewRejection):
                self.rejections.append(item)
        return results

    def _apply_delivery(self, item: Judged) -> Receipt | Rejected | Failed:
        if item.key:
            return self._apply_callback(item)
        if item.reason == KeyUnusable.reason:
            return Failed("a key of this instance cannot be decrypted")
        if not item.unrecorded:
            self.rejections.append(rejection_of(item))
        return Rejected(item.reason)

    def _apply_callback(self, item: Judged) -> Receipt:
        identity = identity_of(item)
        receipt = self._receipts.get(identity)
        if receipt is not None:
            self.repeated[receipt.n] += 1
            return receipt
        delivery, notification = item.delivery, cast("Notification", item.notification)
        n = next(self._numbers)
        body: bytes | None = delivery.body
        changed: str | None = None
        note: str | None = None
        if state := self.states.get(identity[:2]):
            forward = Forward(delivery.body, delivery.webhook_id)
            changed, note = state.apply_callback(notification, forward, self._now)
            if state.job.erased_at is not None:
                body = None  # it came after its job was erased
        elif notification.job:
            first = FirstCallback(delivery.instance, notification, self._now)
            self.first_callbacks.append(first)
            changed = first.changes
        (self.events if notification.job else self.jobless).append(
            (
                *(n, *identity, notification.kind, 1, self._now, item.key, len(delivery.body)),
                *(delivery.webhook_id, delivery.headers, delivery.peer),
                *(notification.status, changed, note, body),
            )
        )
        self._receipts[identity] = Receipt(n, duplicate=True)
        return Receipt(n)

    def _apply_observation(self, item: NewObservation) -> None:
        key = item.instance, str(item.notification.job)
        state = self.states.setdefault(key, JobState(*key, self._now, self._now))
        changes = state.apply_observation(item, self._now)
        self._record(state, item.notification.source, item.notification.status, changes)

    def _apply_absence(self, item: NewAbsence) -> None:
        state = self.states.get((item.instance, item.job))
        if state and state.job.status is not None:  # an absence creates no job
            source = "operator" if item.closed_by else "poll"
            self._record(state, source, None, state.apply_absence(item, self._now))

    def _record(
        self, state: JobState, source: str, status: str | None, changes: tuple[str, str | None]
    ) -> None:
        row = next(self._numbers), state.instance, state.id, source, status, *changes
        self.entries.append(row)


def _find(
    run: Statements, items: Sequence[Item], rows: Sequence[Row], now: int
) -> tuple[dict[JobKey, JobState], dict[Identity, Receipt]]:
    """Return the jobs to merge into, and the events that are there. rows -- of the jobs.

    Of new jobs only those of several items are among them. A job that is not there has no event
    either: nothing ever deletes one.
    """
    stored = {(row[0], row[1]): JobState.from_row(JobValues._make(row)) for row in rows}
    about = Counter(key for item in items if (key := job_key_of(item)))
    states = {
        key: stored.get(key) or JobState(*key, now, now)
        for key in sorted(about)
        if about[key] > 1 or key in stored
    }
    identities = {
        identity_of(item)
        for item in items
        if isinstance(item, Judged) and item.key
        if (key := job_key_of(item)) is None or key in stored
    }
    events = run.select(sql.EVENTS, sorted(identities))
    receipts = {
        (instance, job, sha256): Receipt(n, duplicate=True, forgotten=bool(forgotten))
        for instance, job, sha256, n, forgotten in events
    }
    return states, receipts


def _job_keys(items: Iterable[Item]) -> list[JobKey]:
    """Return the jobs that items are about, in the order in which rows are touched."""
    return sorted({key for item in items if (key := job_key_of(item))})


def _is_judged(item: Item, version: int) -> bool:
    # A key that could not be decrypted may have been put right since, without a new version.
    return not isinstance(item, Judged) or (
        item.version == version and item.reason != KeyUnusable.reason
    )
