"""Retention: what is too old goes in small batches, so that nobody waits long for it.

| what                          | is kept for             | counted from              |
|-------------------------------|-------------------------|---------------------------|
| bodies of events              | RECEIVER_KEEP_BODIES    | the event's receipt       |
| failed records                | RECEIVER_KEEP_BODIES    | the job's last change     |
| deliveries to others          | RECEIVER_KEEP_BODIES    | their enqueuing, once done |
| refused deliveries            | RECEIVER_KEEP_BODIES, and the quarantine's bounds | arrival |
| counts of refusals            | RECEIVER_KEEP_BODIES    | their minute              |
| addresses of refusals         | an hour                 | the start of their minute |
| events, but id, hash, count   | RECEIVER_KEEP_EVENTS    | receipt                   |
| timelines                     | RECEIVER_KEEP_EVENTS    | the entry                 |
| submissions                   | RECEIVER_KEEP_EVENTS    | the sending               |
| ids, hashes and counts of events; jobs and outcomes; instances, keys, tokens | ever | |

| counts of what ended in an hour | 31 days               | when the files expired    |

A body never outlives its event. An event that is forgotten stays a row of `events`: the one unique
index goes on recognising its body, at no cost to the writing of new ones.

Functions take a Session and never commit. Batches lock the one row of `retention`, so that of all
nodes one deletes at a time, and what one began another goes on with.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, delete, func, select, text, tuple_, update
from sqlalchemy.orm import Session

from receiver.database.engine import affected
from receiver.database.leases import claim, is_due
from receiver.database.models import (
    FORGOTTEN,
    NUMBER_BITS,
    Count,
    Event,
    JobRow,
    RecordError,
    RefusedAddress,
    Rejection,
    RejectionCount,
    Retention,
    Submission,
    TimelineEntry,
)
from receiver.database.outbound_models import OutboundDelivery
from receiver.lib.clock import HOUR_MS, MINUTE_MS

SETTLED_MS = 5 * MINUTE_MS  # what was received longer ago than that is committed, if ever
ADDRESSES_KEPT_MS = 60 * MINUTE_MS
KEPT_HOURS = 31 * 24  # after the files expired; the chart of outcomes goes back so far
SUBMISSION_STATES = ("sending", "taken", "refused", "unclear", "dismissed")

Place: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """What is older goes, ms. settled -- what is older has been committed by now, if ever."""

    bodies: int
    events: int
    addresses: int
    settled: int


@dataclass(frozen=True, slots=True)
class Batch:
    """How many rows went, and from which place the next batch goes on; None: that was the last."""

    rows: int
    place: Place | None


Step: TypeAlias = Callable[[Session, Retention, Cutoffs, Place | None, int], Batch]


def cutoffs(now: int, keep_bodies: int, keep_events: int) -> Cutoffs:
    """Give what is too old `now` (ms), for times to keep (ms)."""
    events = max(0, now - keep_events)
    bodies = max(now - keep_bodies, events)
    return Cutoffs(bodies, events, now - ADDRESSES_KEPT_MS, now - SETTLED_MS)


def turn(session: Session) -> Retention:
    """Lock and give the state of retention: until the commit, nobody else deletes."""
    return session.scalars(select(Retention).with_for_update()).one()


def claim_pass(session: Session, now: int, lease: int, longest: int) -> bool:
    """Take the pass that is due, for `lease` ms; False if none is, or another node has it.

    longest -- ms ahead of now that a pass is ever due.
    """
    due = is_due(Retention.next_at, now, longest)
    return claim(session, Retention, {}, {}, {"next_at": now + lease}, due)


def batch(session: Session, kind: str, old: Cutoffs, place: Place | None, most: int) -> Batch:
    """Delete at most so many rows of a kind in STEPS, from `place` on."""
    if session.get_bind().dialect.name == "postgresql":
        # What a crash brings back is deleted again; the state of retention comes back with it.
        session.execute(text("SET LOCAL synchronous_commit = off"))
    return STEPS[kind](session, turn(session), old, place, most)


def due(session: Session, old: Cutoffs) -> dict[str, int]:
    """Count what would go, by kind."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL statement_timeout = 0"))
    return {kind: session.scalar(count(old)) or 0 for kind, count in _COUNTS.items()}


def last_pass(session: Session) -> dict[str, Any]:
    """Tell when the last whole pass began and ended, what it deleted, and when the next is due."""
    state = session.scalars(select(Retention)).one()
    return {
        "began_at": state.began_at,
        "ended_at": state.ended_at,
        "deleted": json.loads(state.deleted or "{}"),
        "next_at": state.next_at,
    }


def drop_hours(session: Session, now: int) -> None:
    """Delete the counts of hours that are over: nobody asks for them any more."""
    place = Count.facet, Count.hour, Count.slot
    old = select(*place).where(Count.hour > 0, Count.hour < now // HOUR_MS - KEPT_HOURS)
    # Whoever counts in one of them just now is not waited for.
    free = old.with_for_update(skip_locked=True)
    affected(session, delete(Count).where(tuple_(*place).in_(free)))


def note_pass(session: Session, began: int, ended: int, deleted: Mapping[str, int]) -> Retention:
    """Write down what a whole pass deleted; give the state."""
    state = turn(session)
    state.began_at, state.ended_at, state.deleted = began, ended, json.dumps(dict(deleted))
    return state


def _bodies(
    session: Session, state: Retention, old: Cutoffs, place: Place | None, most: int
) -> Batch:
    numbers, following, reached = _events(session, state.bodies_before, old.bodies, place, most)
    held = update(Event).where(Event.n.in_(numbers), Event.body.is_not(None))
    gone = affected(session, held.values(body=None))
    state.bodies_before = max(state.bodies_before, min(reached, old.settled))
    return Batch(gone, following)


def _forget(
    session: Session, state: Retention, old: Cutoffs, place: Place | None, most: int
) -> Batch:
    """Reduce events to what recognises their bodies."""
    numbers, following, reached = _events(session, state.events_before, old.events, place, most)
    little = dict.fromkeys(("webhook_id", "headers", "peer", "status", "changed", "note", "body"))
    whole = update(Event).where(Event.n.in_(numbers), Event.key != FORGOTTEN)
    gone = affected(session, whole.values(key=FORGOTTEN, size=0, **little))
    state.events_before = max(state.events_before, min(reached, old.settled))
    return Batch(gone, following)


def _events(
    session: Session, since: int, before: int, place: Place | None, most: int
) -> tuple[Sequence[int], Place | None, int]:
    """Lock events that were received in a span of time, ms.

    Returns their numbers, where to go on, and up to when none was left out: whatever a repeated
    delivery locks just now is for the next pass.
    """
    start, left_out = place or ((since << NUMBER_BITS) - 1, None)
    span = select(Event.n).where(Event.n > start, Event.n < before << NUMBER_BITS)
    numbers = session.scalars(span.order_by(Event.n).limit(most)).all()
    lock = select(Event.n).where(Event.n.in_(numbers)).with_for_update(skip_locked=True)
    free = session.scalars(lock).all()
    if left_out is None and len(free) < len(numbers):
        left_out = min(set(numbers).difference(free))
    following = (numbers[-1], left_out) if len(numbers) == most else None
    reached = numbers[-1] if following else before << NUMBER_BITS
    return free, following, (reached if left_out is None else left_out) >> NUMBER_BITS


def _errors(
    session: Session, state: Retention, old: Cutoffs, place: Place | None, most: int
) -> Batch:
    place = place or (state.errors_before, "", "")
    order = (JobRow.updated_at, JobRow.instance, JobRow.id)
    behind = select(*order).where(tuple_(*order) > tuple_(*place), JobRow.updated_at < old.bodies)
    jobs = session.execute(behind.order_by(*order).limit(most)).all()
    key = (RecordError.job, RecordError.instance, RecordError.position)
    theirs = tuple_(*key[:2]).in_([(id_, instance) for _, instance, id_ in jobs])
    found = session.execute(select(*key).where(theirs).limit(most)).all()
    gone = affected(session, delete(RecordError).where(tuple_(*key).in_(found)))
    if gone == most:
        return Batch(gone, place)  # there may be more of the same jobs
    following = _following(jobs, most)
    reached = following[0] if following else old.bodies
    state.errors_before = max(state.errors_before, min(reached, old.settled))
    return Batch(gone, following)


def _numbered(table: Any, age: str, *also: ColumnElement[bool]) -> Step:  # noqa: ANN401
    """Delete rows that are numbered about in the order of their time, until all are young."""

    def step(session: Session, _: Retention, old: Cutoffs, place: Place | None, most: int) -> Batch:
        behind = select(table.id, table.at).where(table.id > (place or (0,))[0])
        found = session.execute(behind.order_by(table.id).limit(most)).all()
        ids = [id_ for id_, at in found if at < getattr(old, age)]
        gone = affected(session, delete(table).where(table.id.in_(ids), *also))
        return Batch(gone, _following(found, most) if ids else None)

    return step


def _entries(session: Session, _: Retention, old: Cutoffs, __: Place | None, most: int) -> Batch:
    first = select(TimelineEntry.n).where(TimelineEntry.n < old.events << NUMBER_BITS)
    numbers = session.scalars(first.order_by(TimelineEntry.n).limit(most)).all()
    gone = affected(session, delete(TimelineEntry).where(TimelineEntry.n.in_(numbers)))
    return Batch(gone, () if len(numbers) == most else None)


def _keyed(column: Any, condition: Callable[[Cutoffs], ColumnElement[bool]]) -> Step:  # noqa: ANN401
    """Delete rows that a condition finds, all those of one key together."""

    def step(session: Session, _: Retention, old: Cutoffs, __: Place | None, most: int) -> Batch:
        keys = session.scalars(select(column).where(condition(old)).distinct().limit(most)).all()
        gone = affected(session, delete(column.class_).where(column.in_(keys), condition(old)))
        return Batch(gone, () if len(keys) == most else None)

    return step


def _following(found: Sequence[Place], most: int) -> Place | None:
    return tuple(found[-1]) if len(found) == most else None


_done = OutboundDelivery.next_at.is_(None)


def _old_submissions(old: Cutoffs) -> ColumnElement[bool]:
    # The states, because they lead the index.
    return Submission.state.in_(SUBMISSION_STATES) & (Submission.at < old.events)


def _old_counts(old: Cutoffs) -> ColumnElement[bool]:
    return RejectionCount.minute < old.bodies // MINUTE_MS


def _old_addresses(old: Cutoffs) -> ColumnElement[bool]:
    return RefusedAddress.since < old.addresses


STEPS: Mapping[str, Step] = {
    "bodies": _bodies,
    "errors": _errors,
    "outbound": _numbered(OutboundDelivery, "bodies", _done),
    "rejections": _numbered(Rejection, "bodies"),
    "counts": _keyed(RejectionCount.minute, _old_counts),
    "addresses": _keyed(RefusedAddress.peer, _old_addresses),
    "events": _forget,
    "timeline": _entries,
    "submissions": _keyed(Submission.id, _old_submissions),
}


def _count(table: Any, *conditions: Any) -> Any:  # noqa: ANN401 - SQL expressions
    return select(func.count()).select_from(table).where(*conditions)


def _old_events(before: int) -> ColumnElement[bool]:
    return Event.n < before << NUMBER_BITS


_COUNTS: Mapping[str, Callable[[Cutoffs], Any]] = {
    "bodies": lambda old: _count(Event, Event.body.is_not(None), _old_events(old.bodies)),
    "errors": lambda old: _count(
        RecordError,
        JobRow.id == RecordError.job,
        JobRow.instance == RecordError.instance,
        JobRow.updated_at < old.bodies,
    ),
    "outbound": lambda old: _count(OutboundDelivery, OutboundDelivery.at < old.bodies, _done),
    "rejections": lambda old: _count(Rejection, Rejection.at < old.bodies),
    "counts": lambda old: _count(RejectionCount, _old_counts(old)),
    "addresses": lambda old: _count(RefusedAddress, _old_addresses(old)),
    "events": lambda old: _count(Event, Event.key != FORGOTTEN, _old_events(old.events)),
    "timeline": lambda old: _count(TimelineEntry, TimelineEntry.n < old.events << NUMBER_BITS),
    "submissions": lambda old: _count(Submission, _old_submissions(old)),
}
