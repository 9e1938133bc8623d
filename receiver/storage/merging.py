"""Merging what was told into jobs, writing down what it changed, and noting what is to be done."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec
from sqlalchemy import Table, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from receiver.jobs import Job, changes, merge
from receiver.notifications import Notification
from receiver.storage.database import upsert
from receiver.storage.models import Body, Event, Forward, JobRow, Submission, TimelineEntry

LONGEST_INDEXED_TEXT = 200  # characters; PostgreSQL refuses index entries above 2,704 bytes


@dataclass(frozen=True, slots=True)
class NewObservation:
    """A poll or a submission, as `notification.source` says, to be merged like a callback.

    callback_due -- whether the vendor was told to call us back. client_url -- where the client that
    submitted the job wants to be told. submission -- the id of the row that waits for this job.
    """

    instance: str
    notification: Notification
    note: str | None = None
    callback_due: bool = False
    client_url: str | None = None
    submission: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What is to be merged: a new event with its body, or an observation."""

    instance: str
    notification: Notification
    event: str | None = None
    body: bytes | None = None
    observation: NewObservation | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The job it is about: (id, instance)."""
        return str(self.notification.job), self.instance


@dataclass(slots=True)
class _Row:
    """A locked job while a batch is merged into it."""

    id: str
    instance: str
    registers: str
    revision: int
    events: int
    updated_at: int
    callback_due: bool
    client_url: str | None
    errors_at: int | None
    errors_tries: int
    job: Job = field(default_factory=Job)
    touched: bool = False

    def __post_init__(self) -> None:
        self.job = Job(msgspec.json.decode(self.registers))


def merge_jobs(session: Session, told: Sequence[Told], now: int) -> None:
    """Merge notifications into their jobs, and write down what each changed."""
    if not told:
        return
    rows = _lock(session, {each.key for each in told}, now)
    entries = []
    for each in told:
        row = rows[each.key]
        before = row.job
        notification = replace(each.notification, received_at=now)
        row.job = merge(before, notification)
        row.events += each.event is not None
        row.touched |= row.job != before or each.event is not None
        changed, why_not = changes(before, row.job, notification)
        entries.append(_entry(each, changed, why_not, now))
        _note_errors(row, before, now)
        _follow(session, row, before, each, now)
    session.execute(_UPDATE, [_update(row, now) for row in rows.values()])
    session.execute(insert(_TIMELINE), entries)
    unwanted = [each.event for each in told if rows[each.key].job.erased_at is not None]
    if unwanted:  # a body that comes after its job was erased is not kept
        session.execute(delete(_BODIES).where(_BODIES.c.event.in_(unwanted)))


def _lock(
    session: Session, wanted: Iterable[tuple[str, str]], now: int
) -> dict[tuple[str, str], _Row]:
    """Lock the rows of jobs, made where there are none, in an order that all nodes keep."""
    blank = {
        "registers": "{}",
        "revision": 0,
        "events": 0,
        "first_seen_at": now,
        "updated_at": now,
        "outcome": "pending",
    }
    statement = (
        upsert(session, _JOBS)
        .on_conflict_do_update(
            index_elements=[_JOBS.c.id, _JOBS.c.instance], set_={"revision": _JOBS.c.revision}
        )
        .returning(*(_JOBS.c[name] for name in _READ))
    )
    values = [{"id": id_, "instance": instance, **blank} for id_, instance in sorted(wanted)]
    found = session.execute(statement, values)
    rows = (_Row(*row) for row in found)
    return {(row.id, row.instance): row for row in rows}


# Core, without the ORM's objects: this is the hot path.
_JOBS = cast("Table", JobRow.__table__)
_BODIES = cast("Table", Body.__table__)
_TIMELINE = cast("Table", TimelineEntry.__table__)
_READ = [name for name in _Row.__dataclass_fields__ if name in _JOBS.c]
_WRITTEN = (
    "registers",
    "revision",
    "events",
    "updated_at",
    "status",
    "outcome",
    "object",
    "direction",
    "learnt_by",
    "files_expire_at",
    "callback_due",
    "callback_lost",
    "client_url",
    "errors_at",
    "errors_tries",
)
_UPDATE = (
    update(_JOBS)
    .where(_JOBS.c.id == bindparam("the_id"), _JOBS.c.instance == bindparam("the_instance"))
    .values({name: bindparam(f"new_{name}") for name in _WRITTEN})
)


def _update(row: _Row, now: int) -> dict[str, Any]:
    job = row.job
    due = row.callback_due or row.events > 0
    values = {
        "registers": msgspec.json.encode(job.registers).decode(),
        "revision": row.revision + row.touched,
        "events": row.events,
        # Never backwards, or a page by newest change could show a job twice.
        "updated_at": max(row.updated_at, now) if row.touched else row.updated_at,
        "status": _indexed(job.status),
        "outcome": job.outcome,
        "object": _indexed(job.text("object")),
        "direction": _indexed(job.text("direction")),
        "learnt_by": job.learnt_by,
        "files_expire_at": job.files_expire_at,
        "callback_due": due,
        "callback_lost": due and job.learnt_by == "poll" and not job.called_back,
        "client_url": row.client_url,
        "errors_at": row.errors_at,
        "errors_tries": row.errors_tries,
    }
    named = {f"new_{name}": values[name] for name in _WRITTEN}
    return {"the_id": row.id, "the_instance": row.instance, **named}


def _entry(each: Told, changed: list[str], why_not: str | None, now: int) -> dict[str, Any]:
    notification = each.notification
    return {
        "job": notification.job,
        "instance": each.instance,
        "at": now,
        "source": notification.source,
        "status": notification.status,
        "changed": json.dumps(changed),
        "note": (each.observation and each.observation.note) or why_not,
        "event": each.event,
    }


def _note_errors(row: _Row, before: Job, now: int) -> None:
    """Have the errors fetched once a job ended with failed records, and after a reset anew."""
    known = _attempt(before) == _attempt(row.job) or row.job.erased_at is not None
    if row.job.ended and row.job.failed and not known:
        row.errors_at, row.errors_tries = now, 0


def _attempt(job: Job) -> tuple[object, ...]:
    return job.ended, job.registers.get("status", [])[:2], job.failed, job.loaded


def _follow(session: Session, row: _Row, before: Job, each: Told, now: int) -> None:
    """Note what the client that submitted the job is to be told, in the same transaction."""
    observation = each.observation
    bodies = [each.body] if each.body is not None else []
    if observation is not None:
        row.callback_due = row.callback_due or observation.callback_due
        if observation.submission is not None:
            taken = update(Submission).where(Submission.id == observation.submission)
            session.execute(taken.values(state="taken", job=row.id))
        if observation.client_url is not None and row.client_url is None:
            row.client_url = observation.client_url
            bodies = _bodies(session, row) or ([_learnt(row.job, row.id)] if row.job.ended else [])
        elif row.job.ended and not before.ended:
            bodies = [_learnt(row.job, row.id)]
    if row.client_url and bodies:  # '' once the job was erased: nobody is told any more
        forward = {"job": row.id, "instance": row.instance, "url": row.client_url}
        turn = {"at": now, "tries": 0, "next_at": now, "result": None}
        session.execute(insert(Forward), [{**forward, **turn, "body": body} for body in bodies])


def _bodies(session: Session, row: _Row) -> list[bytes]:
    """Give the callbacks that overtook the answer to their own submission."""
    events = select(Body.body).join(Event, Event.id == Body.event)
    of_job = events.where(Event.job == row.id, Event.instance == row.instance)
    return list(session.scalars(of_job.order_by(Event.received_at, Event.id)))


def _learnt(job: Job, job_id: str) -> bytes:
    """Write the notification that the vendor should have sent, as bulk v2 has it."""
    facts = {
        "id": job_id,
        "status": job.status,
        "recordsCount": job.loaded,
        "recordsFailedCount": job.failed,
        "error": job.text("message"),
    }
    told = {name: value for name, value in facts.items() if value is not None}
    payload = job.text("callback_payload")
    if payload is not None:
        told["callback-payload"] = json.loads(payload)
    return json.dumps(told).encode()


def _indexed(value: str | None) -> str | None:
    return value and value[:LONGEST_INDEXED_TEXT]
