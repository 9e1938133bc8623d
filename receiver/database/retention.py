"""Retention: delete expired rows in small batches, each followed by a rest.

| what                            | how long                | counted from              |
|---------------------------------|-------------------------|---------------------------|
| bodies of events                | RECEIVER_KEEP_BODIES    | the event's receipt       |
| failed records                  | RECEIVER_KEEP_BODIES    | the job's last change     |
| deliveries to others            | RECEIVER_KEEP_BODIES    | their enqueuing, once done |
| rejected deliveries             | RECEIVER_KEEP_BODIES, and the quarantine's bounds | arrival |
| counts of refusals              | RECEIVER_KEEP_BODIES    | their minute              |
| addresses of refusals           | an hour                 | the start of their minute |
| events, but id, hash, count     | RECEIVER_KEEP_EVENTS    | receipt                   |
| timelines                       | RECEIVER_KEEP_EVENTS    | the entry                 |
| submissions                     | RECEIVER_KEEP_EVENTS    | the sending               |
| counts of what ended in an hour | 31 days                 | when the files expired    |
| ids, hashes and counts of events; jobs and outcomes; instances, keys, tokens | ever | |

A body never outlives its event. An event that is forgotten stays a row of `events`: the one unique
index goes on recognising its body, at no cost to the writing of new ones.

Batches lock the one row of `retention`, so that of all nodes one deletes at a time, and another
continues what one began.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import structlog
from sqlalchemy import ColumnElement, delete, exists, func, inspect, select, text, tuple_, update
from sqlalchemy.orm import Session

from receiver.database import audit, models
from receiver.database.engine import Database, affected, database_time
from receiver.database.leases import claim, is_due, is_steady
from receiver.database.models import (
    FORGOTTEN,
    NUMBER_BITS,
    Base,
    Count,
    Event,
    JobRow,
    RecordError,
    RejectedAddress,
    Rejection,
    RejectionCount,
    Submission,
    TimelineEntry,
)
from receiver.database.models.outbound import OutboundDelivery
from receiver.errors import ClockStepped
from receiver.lib.clock import DAY_MS, HOUR_MS, MINUTE_MS
from receiver.settings import Settings

BATCH = 500  # rows
REST = 3  # seconds for callbacks alone, for each second of deleting
MIN_REST_SECONDS = 0.02
LOOK_SECONDS = 60  # between looks whether a pass is due
PERIOD_MS = HOUR_MS
LEASE_MS = MINUTE_MS  # until a pass that a node left may be continued by another
SETTLED_MS = 5 * MINUTE_MS  # what was received longer ago than that is committed, if ever
MAX_ADDRESS_AGE_MS = HOUR_MS
MAX_COUNT_HOURS = 31 * DAY_MS // HOUR_MS  # the chart of outcomes goes back so far
SUBMISSION_STATES = ("sending", "taken", "refused", "unclear", "dismissed")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """What is older is expired, ms. settled -- what is older is committed by now, if ever."""

    bodies: int
    events: int
    errors: int
    addresses: int
    settled: int

    @staticmethod
    def at(now: int, keep_bodies: int, keep_events: int) -> "Cutoffs":
        """Return the cutoffs at a time (ms), for times to keep (ms)."""
        events, settled = max(0, now - keep_events), now - SETTLED_MS
        bodies = max(now - keep_bodies, events)
        return Cutoffs(bodies, events, min(bodies, settled), now - MAX_ADDRESS_AGE_MS, settled)


class Batch(NamedTuple):
    """How many rows were deleted, and whether there may be more."""

    rows: int
    more: bool


Condition: TypeAlias = ColumnElement[bool]
Step: TypeAlias = Callable[[Session, models.Retention, Cutoffs, Condition], Batch]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of rows. expired -- the condition. step -- deletes a batch, if a DELETE will not do.

    A step never commits. It begins at the state's `…_before`, up to which nothing is left to do.
    """

    table: type[Base]
    expired: Callable[[Cutoffs], Condition]
    step: Step | None = None

    def count(self, session: Session, old: Cutoffs) -> int:
        """Count the rows that are expired."""
        rows = select(func.count()).select_from(self.table).where(self.expired(old))
        return session.scalar(rows) or 0

    def delete(self, session: Session, state: models.Retention, old: Cutoffs) -> Batch:
        """Delete a batch of them."""
        if self.step is not None:
            return self.step(session, state, old, self.expired(old))
        key = tuple_(*inspect(self.table).primary_key)
        expired = select(*inspect(self.table).primary_key).where(self.expired(old)).limit(BATCH)
        gone = affected(session, delete(self.table).where(key.in_(expired)))
        return Batch(gone, gone == BATCH)


class Retention:
    """Deletes what is expired.

    clock -- ms since the epoch; PostgreSQL's own is used if there. actor -- as the audit names it.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        clock: Callable[[], int],
        sleep: Callable[[float], None] = time.sleep,
        *,
        actor: str = "retention",
    ) -> None:
        self._settings, self._database = settings, database
        self._clock, self._sleep, self._actor = clock, sleep, actor
        self._pass: Iterator[tuple[str, int]] | None = None

    def step(self) -> bool:
        """Do one batch of this node's pass, or begin one that is due; return whether there is more.

        Of all nodes one makes the pass. Nothing is deleted while the clock is doubted. Raises
        StoreError; the pass is due again after LEASE_MS.
        """
        if self._pass is None and self._claim_pass():
            self._pass = self.run(claimed=True)
        if self._pass is None or next(self._pass, None) is None:
            self._pass = None
        return self._pass is not None

    def run(
        self, older_than: int | None = None, *, claimed: bool = False
    ) -> Iterator[tuple[str, int]]:
        """Make a whole pass; yield after each batch its kind and how many rows were deleted.

        older_than -- ms, instead of both settings. claimed -- whether this is the pass that is due.
        Passes of several nodes at once share the work. Raises StoreError; what went is gone.
        """
        began, old = self._cutoffs(older_than)
        deleted = dict.fromkeys(KINDS, 0)
        for kind in KINDS:
            while True:
                batch, seconds = self._delete_batch(kind, old, claimed=claimed)
                deleted[kind] += batch.rows
                yield kind, batch.rows
                if not batch.more:
                    break
                self._sleep(max(MIN_REST_SECONDS, REST * seconds))
        self._end_pass(began, deleted, claimed=claimed)

    def count_expired(self, older_than: int | None = None) -> dict[str, int]:
        """Count what a pass would delete now, by kind."""
        _, old = self._cutoffs(older_than)
        with self._database.read() as session:
            if not self._database.is_sqlite:
                session.execute(text("SET LOCAL statement_timeout = 0"))
            return {name: kind.count(session, old) for name, kind in KINDS.items()}

    def _cutoffs(self, older_than: int | None) -> tuple[int, Cutoffs]:
        bodies = older_than or self._settings.keep_bodies
        events = older_than or self._settings.keep_events
        with self._database.read() as session:
            now = database_time(session, self._clock)
        return now, Cutoffs.at(now, bodies, events)

    def _delete_batch(self, kind: str, old: Cutoffs, *, claimed: bool) -> tuple[Batch, float]:
        """Delete in one transaction; return also its seconds, waiting for others not counted."""
        with self._database.write(timeout=None) as session:
            began = time.perf_counter()
            if not self._database.is_sqlite:
                # What a crash brings back is deleted again: the marks come back with it.
                session.execute(text("SET LOCAL synchronous_commit = off"))
            state = lock_retention(session)
            if claimed:
                now = database_time(session, self._clock)
                if not is_steady(session, now):
                    raise ClockStepped("the clock jumped by over a day, so nothing is deleted")
                state.next_at = now + LEASE_MS
            batch = KINDS[kind].delete(session, state, old)
        return batch, time.perf_counter() - began

    def _claim_pass(self) -> bool:
        """Claim the pass that is due; False if none is, or another node has it."""
        with self._database.read() as session:
            if not is_steady(session, database_time(session, self._clock)):
                return False
        with self._database.write(timeout=None) as session:
            now = database_time(session, self._clock)
            due = is_due(models.Retention.next_at, now, PERIOD_MS)
            return claim(session, models.Retention, {}, {}, {"next_at": now + LEASE_MS}, due)

    def _end_pass(self, began: int, deleted: Mapping[str, int], *, claimed: bool) -> None:
        counts = {kind: rows for kind, rows in deleted.items() if rows}
        with self._database.write(timeout=None) as session:
            now = database_time(session, self._clock)
            if counts or not claimed:
                subject = ", ".join(f"{rows} {kind}" for kind, rows in counts.items()) or "nothing"
                audit.record(session, at=now, actor=self._actor, action="prune", subject=subject)
            state = lock_retention(session)
            if claimed:
                state.next_at = began + PERIOD_MS
            delete_old_counts(session, now)
        if claimed and counts:
            log.info("too old, and deleted", **deleted)


def lock_retention(session: Session) -> models.Retention:
    """Lock and return the state of retention: until the commit, nobody else deletes."""
    return session.scalars(select(models.Retention).with_for_update()).one()


def delete_old_counts(session: Session, now: int) -> None:
    """Delete the counts of hours that are over: nobody asks for them any more."""
    key = Count.facet, Count.hour, Count.slot
    oldest = now // HOUR_MS - MAX_COUNT_HOURS
    # Whoever counts in one of them just now is not waited for.
    old = select(*key).where(Count.hour > 0, Count.hour < oldest).with_for_update(skip_locked=True)
    affected(session, delete(Count).where(tuple_(*key).in_(old)))


def _strip_events(
    session: Session,
    state: models.Retention,
    old: Cutoffs,
    expired: Condition,
    *,
    mark: str,
    values: Mapping[str, object],
) -> Batch:
    since, before = getattr(state, f"{mark}_before"), getattr(old, mark)
    left = (Event.n >= since << NUMBER_BITS) & expired
    free = select(Event.n).where(left).order_by(Event.n).limit(BATCH)
    # Whatever a repeated delivery locks just now is left for the next pass.
    numbers = session.scalars(free.with_for_update(skip_locked=True)).all()
    affected(session, update(Event).where(Event.n.in_(numbers)).values(**values))
    first = session.scalar(select(func.min(Event.n)).where(left))
    done = before if first is None else first >> NUMBER_BITS
    setattr(state, f"{mark}_before", max(since, min(done, old.settled)))
    return Batch(len(numbers), len(numbers) == BATCH)


def _delete_errors(
    session: Session, state: models.Retention, old: Cutoffs, _expired: Condition
) -> Batch:
    """Delete failed records of the next BATCH jobs, in the order of their last change."""
    since = JobRow.updated_at >= state.errors_before
    times = select(JobRow.updated_at).where(since, JobRow.updated_at < old.errors)
    last = session.scalar(times.order_by(JobRow.updated_at).offset(BATCH - 1).limit(1))
    until = old.errors - 1 if last is None else last
    jobs = select(JobRow.id, JobRow.instance).where(since, JobRow.updated_at <= until)
    key = RecordError.job, RecordError.instance, RecordError.position
    of_jobs = tuple_(*key[:2]).in_(session.execute(jobs).all())
    records = select(*key).where(of_jobs).limit(BATCH)
    gone = affected(session, delete(RecordError).where(tuple_(*key).in_(records)))
    if gone < BATCH:
        state.errors_before = max(state.errors_before, until + 1)
    return Batch(gone, gone == BATCH or last is not None)


def _delete_outbound(
    session: Session, _state: models.Retention, _old: Cutoffs, expired: Condition
) -> Batch:
    # They are numbered about in the order of their time, which has no index.
    oldest = select(OutboundDelivery.id).where(_DONE).order_by(OutboundDelivery.id).limit(BATCH)
    first = OutboundDelivery.id.in_(oldest)
    gone = affected(session, delete(OutboundDelivery).where(expired, first))
    return Batch(gone, gone == BATCH)


_DONE = OutboundDelivery.next_at.is_(None)
_FORGET: Mapping[str, object] = {
    **dict.fromkeys(("webhook_id", "headers", "peer", "status", "changed", "note", "body")),
    "key": FORGOTTEN,
    "size": 0,
}

KINDS: Mapping[str, Kind] = {
    "bodies": Kind(
        Event,
        lambda old: (Event.n < old.bodies << NUMBER_BITS) & Event.body.is_not(None),
        partial(_strip_events, mark="bodies", values={"body": None}),
    ),
    "errors": Kind(
        RecordError,
        lambda old: exists().where(
            JobRow.id == RecordError.job,
            JobRow.instance == RecordError.instance,
            JobRow.updated_at < old.errors,
        ),
        _delete_errors,
    ),
    "outbound": Kind(
        OutboundDelivery, lambda old: (OutboundDelivery.at < old.bodies) & _DONE, _delete_outbound
    ),
    "rejections": Kind(Rejection, lambda old: Rejection.at < old.bodies),
    "counts": Kind(RejectionCount, lambda old: RejectionCount.minute < old.bodies // MINUTE_MS),
    "addresses": Kind(RejectedAddress, lambda old: RejectedAddress.since < old.addresses),
    "events": Kind(
        Event,
        lambda old: (Event.n < old.events << NUMBER_BITS) & (Event.key != FORGOTTEN),
        partial(_strip_events, mark="events", values=_FORGET),
    ),
    "timeline": Kind(TimelineEntry, lambda old: TimelineEntry.n < old.events << NUMBER_BITS),
    "submissions": Kind(
        Submission,
        # The states, because they lead the index.
        lambda old: Submission.state.in_(SUBMISSION_STATES) & (Submission.at < old.events),
    ),
}
