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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import TypeAlias, TypeVar, cast

import msgspec
import structlog
from sqlalchemy import Connection, func, or_, select, update

from receiver import metrics
from receiver.callbacks import statements as sql
from receiver.callbacks.deliveries import (
    AddressCount,
    Failed,
    Item,
    Judged,
    NewRejection,
    Receipt,
    Rejected,
    Result,
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
    Tally,
    update_tally,
)
from receiver.lib.clock import MINUTE_MS
from receiver.openconnectors.notifications import Notification
from receiver.outbound.queue import Message
from receiver.subscriptions.changes import messages_of, queue_forwards
from receiver.subscriptions.registry import Subscription, Subscriptions

MAX_FACETS = 10_000  # of an instance; all beyond share one for each outcome
MAX_REMEMBERED = 50_000  # facets, in one process
TRIES = 5  # of a batch that lost races with other nodes
# Of a transaction before it commits, or its events might become visible too late for `feed`.
MAX_WRITING_SECONDS = 8
SLOTS = 16  # of counts: processes with a slot of their own do not wait for each other

T = TypeVar("T")
JobKey: TypeAlias = tuple[str, str]  # (instance, id)
Identity: TypeAlias = tuple[str, str, bytes]  # of an event: (instance, job or '', sha256)

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
        self._slot = 0 if database.is_sqlite else _slot()
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
        writing = retry_lost_races(lambda: self._write(batch))
        self._rejections += writing.rejections
        if len(self._facets) > MAX_REMEMBERED:
            self._facets.clear()
        self._facets |= writing.facets
        self._used |= writing.noted
        return writing.results

    def _write(self, batch: Sequence[Item]) -> "_Writing":
        with self._database.batch() as connection:
            began = time.monotonic()
            writing = self.write_in(connection, batch)
            if time.monotonic() - began > MAX_WRITING_SECONDS:
                raise StoreUnavailable("it took too long to write")
            return writing

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
    ) -> "_Writing":
        """Write a batch in a transaction. start -- instead of the transaction's own."""
        run = statements(connection)
        job_keys = _job_keys(batch)
        began, jobs = run.start(self._clock, job_keys)
        start = start or began
        items = self._rejudge(connection, batch, start.version)
        if items is not batch and (others := _job_keys(items)) != job_keys:
            jobs = run.select(sql.JOBS, others)
        writing = _Writing(run, start, items)
        writing.read(jobs)
        writing.merge()
        self._add_facets(connection, writing)
        subscriptions = self._subscriptions.at(connection, start.version)
        writing.write(self._facets, self._slot, subscriptions)
        self._note_use(connection, writing)
        queue_forwards(connection, writing.states.values(), start.now)
        return writing

    def _rejudge(
        self, connection: Connection, batch: Sequence[Item], version: int
    ) -> Sequence[Item]:
        """Judge again what was judged by other keys than those of now."""
        if all(_is_judged(item, version) for item in batch):
            return batch
        keys = self._keys.load(connection)
        return [
            item
            if _is_judged(item, version) or not isinstance(item, Judged)
            else judge(keys, item.delivery, unrecorded=item.unrecorded)
            for item in batch
        ]

    def _add_facets(self, connection: Connection, writing: "_Writing") -> None:
        """Insert those facets of a batch's jobs that this process has not seen before."""
        unseen = {key for _, key in writing.changed_jobs} - self._facets.keys()
        for key in sorted(unseen, key=FacetKey.number):
            used = key
            of_instance = select(func.count()).where(Facet.instance == key.instance)
            # Not locked: nodes that add at once may go beyond the bound by a few.
            if (connection.scalar(of_instance) or 0) >= MAX_FACETS and not writing.run.select(
                sql.FACETS, [(key.number(),)]
            ):
                used = key.as_other()
            writing.run.write([(sql.NEW_FACETS, [(used.number(), *used)])])
            writing.facets[key] = used.number()

    def _note_use(self, connection: Connection, writing: "_Writing") -> None:
        """Note when keys last matched, to the minute: more would be a write a callback."""
        now = writing.now
        for key in sorted(writing.keys):
            if key.startswith(KEY_PREFIX) and self._used.get(key, 0) <= now - MINUTE_MS:
                last = StoredKey.last_used_at
                unnoted = or_(last.is_(None), last <= now - MINUTE_MS)
                note = update(StoredKey).where(StoredKey.id == key, unnoted)
                connection.execute(note.values(last_used_at=now))
                writing.noted[key] = now


class _Writing:
    """A batch while it is written."""

    def __init__(self, run: Statements, start: Start, items: Sequence[Item]) -> None:
        self.run, self.now, self._n, self._items = run, start.now, start.n, items
        self.results: list[Result] = [None] * len(items)
        self.states: dict[JobKey, JobState] = {}
        self.changed_jobs: list[tuple[JobState | FirstCallback, FacetKey]] = []
        self.facets: dict[FacetKey, int] = {}  # those that are new to this process
        self.keys: set[str] = set()
        self.noted: dict[str, int] = {}
        self.rejections: list[NewRejection] = []
        self._receipts: dict[Identity, Receipt] = {}
        self._alone: set[JobKey] = set()  # new jobs, each of one item alone
        self._events: list[Row] = []
        self._jobless: list[Row] = []
        self._repeated: dict[int, int] = {}
        self._entries: list[Row] = []

    def read(self, rows: Sequence[Row]) -> None:
        """Take up the jobs that are there, and find the events that are. rows -- of the jobs.

        A job that is not there has no event either: nothing ever deletes one.
        """
        about = Counter(key for item in self._items if (key := _job_key(item)))
        job_keys = sorted(about)
        stored = {(row[0], row[1]): JobState.from_row(JobValues._make(row)) for row in rows}
        self._alone = {key for key in job_keys if about[key] == 1 and key not in stored}
        self.states = {
            key: stored.get(key) or JobState(*key, self.now, self.now)
            for key in job_keys
            if key not in self._alone
        }
        identities = sorted(
            {
                _identity(item)
                for item in self._items
                if isinstance(item, Judged) and item.key
                if (key := _job_key(item)) is None or key in stored
            }
        )
        for *identity, n, forgotten in self.run.select(sql.EVENTS, identities):
            self._receipts[tuple(identity)] = Receipt(n, duplicate=True, forgotten=bool(forgotten))

    def merge(self) -> None:
        """Merge callbacks first: a submission looks for those that came before it."""
        for index, item in enumerate(self._items):
            if isinstance(item, Judged):
                self.results[index] = self._apply_callback(item) if item.key else self._reject(item)
            elif isinstance(item, NewRejection):
                self.rejections.append(item)
        for item in self._items:
            if isinstance(item, NewObservation):
                self._apply_observation(item)
            elif isinstance(item, NewAbsence):
                self._apply_absence(item)
        self.changed_jobs += [
            (state, state.facet()) for state in self.states.values() if state.needs_write
        ]

    def write(
        self, facets: Mapping[FacetKey, int], slot: int, subscriptions: Sequence[Subscription]
    ) -> None:
        """Write all of it, and what subscriptions are to be sent of it."""
        tally: Tally = defaultdict(int)
        new: list[JobValues] = []
        changed: list[JobValues] = []
        messages: list[Message] = []
        for state, key in self.changed_jobs:
            number = facets.get(key)
            values = state.values(self.facets[key] if number is None else number, self.now)
            update_tally(tally, state.counted, values)
            (new if state.counted is None else changed).append(values)
            messages += messages_of(subscriptions, state, key, values, self.now)
        counts = [(facet, hour, slot, n) for (facet, hour), n in sorted(tally.items()) if n]
        self.run.write(
            (
                (sql.NEW_JOBS, sorted(new)),
                (sql.CHANGED_JOBS, changed),
                (sql.NEW_EVENTS, self._events + sorted(self._jobless, key=itemgetter(1, 3))),
                (sql.REPEATED_EVENTS, [(more, self.now, n) for n, more in self._repeated.items()]),
                (sql.NEW_ENTRIES, self._entries),
                (sql.COUNTS, counts),
                (sql.NEW_DELIVERIES, [message.row(self.now) for message in messages]),
            )
        )

    def _reject(self, item: Judged) -> Rejected | Failed:
        if item.reason == KeyUnusable.reason:
            return Failed("a key of this instance cannot be decrypted")
        if not item.unrecorded:
            self.rejections.append(rejection_of(item))
        return Rejected(item.reason)

    def _apply_callback(self, item: Judged) -> Receipt:
        self.keys.add(item.key)
        identity = _identity(item)
        receipt = self._receipts.get(identity)
        if receipt is not None:
            self._repeated[receipt.n] = self._repeated.get(receipt.n, 0) + 1
            return receipt
        delivery, notification = item.delivery, cast("Notification", item.notification)
        n = self._next()
        body: bytes | None = delivery.body
        key = identity[:2]
        changed: str | None = None
        note: str | None = None
        if key in self._alone:
            first = FirstCallback(delivery.instance, notification, self.now)
            self.changed_jobs.append((first, first.facet()))
            changed = first.changes
        elif key in self.states:
            state = self.states[key]
            changed, note = state.apply_callback(
                notification, Forward(delivery.body, delivery.webhook_id), self.now
            )
            if state.job.erased_at is not None:
                body = None  # it came after its job was erased
        (self._events if notification.job else self._jobless).append(
            (
                *(n, *identity, notification.kind, 1, self.now, item.key, len(delivery.body)),
                *(delivery.webhook_id, delivery.headers, delivery.peer),
                *(notification.status, changed, note, body),
            )
        )
        self._receipts[identity] = Receipt(n, duplicate=True)
        return Receipt(n)

    def _apply_observation(self, item: NewObservation) -> None:
        key = cast("JobKey", _job_key(item))
        state = self.states.get(key) or JobState(*key, self.now, self.now)
        self.states[key] = state
        changes = state.apply_observation(item, self.now)
        self._record(state, item.notification.source, item.notification.status, changes)

    def _apply_absence(self, item: NewAbsence) -> None:
        state = self.states.get((item.instance, item.job))
        if state and state.job.status is not None:  # an absence creates no job
            source = "operator" if item.closed_by else "poll"
            self._record(state, source, None, state.apply_absence(item, self.now))

    def _record(
        self, state: JobState, source: str, status: str | None, changes: tuple[str, str | None]
    ) -> None:
        self._entries.append((self._next(), state.instance, state.id, source, status, *changes))

    def _next(self) -> int:
        self._n += 1
        return self._n - 1


def _job_keys(items: Iterable[Item]) -> list[JobKey]:
    """Return the jobs that items are about, in the order in which rows are touched."""
    return sorted({key for item in items if (key := _job_key(item))})


def _job_key(item: Item) -> JobKey | None:
    """Return the job that an item is about: (instance, id)."""
    if isinstance(item, Judged):
        job = item.notification and item.notification.job
        return (item.delivery.instance, job) if job else None
    if isinstance(item, NewObservation):
        return item.instance, str(item.notification.job)
    if isinstance(item, NewAbsence):
        return item.instance, item.job
    return None


def _identity(item: Judged) -> Identity:
    job = (item.notification and item.notification.job) or ""
    return item.delivery.instance, job, item.sha256


def _is_judged(item: Item, version: int) -> bool:
    # A key that could not be decrypted may have been put right since, without a new version.
    return not isinstance(item, Judged) or (
        item.version == version and item.reason != KeyUnusable.reason
    )


def _slot() -> int:
    """Return which counts this process adds to."""
    return (zlib.crc32(socket.gethostname().encode()) + os.getpid()) % SLOTS
