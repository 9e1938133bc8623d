"""Merging what was told into jobs: what they become, what that changed, what is to be done then."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection, insert, select, update

from receiver.callbacks.statements import Statements
from receiver.database.models import Body, Event, Forward, Submission
from receiver.jobs.job import Job, changes, join, registers
from receiver.jobs.rows import Entry, JobValues, Place, StoredJob
from receiver.jobs.tally import Tally, count_job
from receiver.openconnectors.notifications import Notification

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


@dataclass(slots=True)
class Told:
    """What is to be merged: a new event with its body, or an observation."""

    instance: str
    notification: Notification
    event: str | None = None
    body: bytes | None = None
    observation: NewObservation | None = None


@dataclass(slots=True)
class Merged:
    """A job while a batch is merged into it; what was stored of it comes first.

    forwards -- what its client is to be told; None stands for all callbacks there were so far.
    """

    id: str
    instance: str
    updated_at: int
    job: Job = field(default_factory=Job)
    revision: int = 0
    events: int = 0
    callback_due: bool = False
    client_url: str | None = None
    errors_at: int | None = None
    errors_tries: int = 0
    touched: bool = False
    entries: list[Entry] = field(default_factory=list)
    submissions: list[str] = field(default_factory=list)
    forwards: list[bytes | None] = field(default_factory=list)


@dataclass(slots=True)
class Merging:
    """What a batch makes of jobs. changed -- rows that are locked and still to be written."""

    jobs: list[Merged] = field(default_factory=list)
    changed: list[JobValues] = field(default_factory=list)


def merge_jobs(statements: Statements, told: Iterable[Told], now: int, tally: Tally) -> Merging:
    """Merge notifications into their jobs; lock these, insert new ones, and count what changed."""
    of_job: dict[Place, list[Told]] = {}
    for each in told:
        of_job.setdefault((str(each.notification.job), each.instance), []).append(each)
    merging = Merging()
    if not of_job:
        return merging
    places = sorted(of_job)  # the order in which all nodes lock them
    stored = _by_place(statements.known_jobs(places))
    # As if nothing were known of them: one statement then adds them, or tells what is known.
    new = {
        place: _merge(Merged(*place, updated_at=now), of_job[place], now)
        for place in places
        if place not in stored
    }
    if new:
        stored |= _by_place(statements.add_jobs([values for _, values in new.values()]))
    for place in places:
        row = stored.get(place)
        if row is None:
            merged, values = new[place]
        else:
            merged, values = _merge(_opened(row), of_job[place], now)
            merging.changed.append(values)
            count_job(tally, row, -1)
        count_job(tally, values, 1)
        merging.jobs.append(merged)
    return merging


def follow_up(connection: Connection, jobs: Iterable[Merged], now: int) -> None:
    """Note what the clients that submitted jobs are to be told, in the same transaction."""
    for merged in jobs:
        for submission in merged.submissions:
            taken = update(Submission).where(
                Submission.id == submission, Submission.instance == merged.instance
            )
            connection.execute(taken.values(state="taken", job=merged.id))
        bodies: list[bytes] = []
        for told in merged.forwards:
            bodies += [told] if told is not None else _so_far(connection, merged)
        if bodies:
            forward = {"job": merged.id, "instance": merged.instance, "url": merged.client_url}
            turn = {"at": now, "tries": 0, "next_at": now, "result": None}
            connection.execute(
                insert(Forward), [{**forward, **turn, "body": body} for body in bodies]
            )


def _by_place(rows: Iterable[StoredJob]) -> dict[Place, StoredJob]:
    return {(row.id, row.instance): row for row in rows}


def _opened(row: StoredJob) -> Merged:
    return Merged(
        id=row.id,
        instance=row.instance,
        updated_at=row.updated_at,
        job=Job(msgspec.json.decode(row.registers)),
        revision=row.revision,
        events=row.events,
        callback_due=bool(row.callback_due),
        client_url=row.client_url,
        errors_at=row.errors_at,
        errors_tries=row.errors_tries,
    )


def _merge(merged: Merged, told: Sequence[Told], now: int) -> tuple[Merged, JobValues]:
    for each in told:
        before = merged.job
        merged.job = join(before, Job(registers(each.notification, now)))
        merged.events += each.event is not None
        merged.touched = merged.touched or each.event is not None or merged.job != before
        merged.entries.append(_entry(merged, before, each, now))
        _note_errors(merged, before, now)
        _follow(merged, before, each)
    return merged, _values(merged, now)


def _values(merged: Merged, now: int) -> JobValues:
    job = merged.job
    due = merged.callback_due or merged.events > 0
    learnt_by = job.learnt_by
    return JobValues(
        registers=msgspec.json.encode(job.registers).decode(),
        revision=merged.revision + merged.touched,
        events=merged.events,
        # Never backwards, or a page by newest change could show a job twice.
        updated_at=max(merged.updated_at, now) if merged.touched else merged.updated_at,
        status=_indexed(job.status),
        outcome=job.outcome,
        object=_indexed(job.text("object")),
        direction=_indexed(job.text("direction")),
        learnt_by=learnt_by,
        files_expire_at=job.files_expire_at,
        callback_due=due,
        callback_lost=due and learnt_by == "poll" and not job.called_back,
        client_url=merged.client_url,
        errors_at=merged.errors_at,
        errors_tries=merged.errors_tries,
        id=merged.id,
        instance=merged.instance,
    )


def _entry(merged: Merged, before: Job, each: Told, now: int) -> Entry:
    notification = each.notification
    changed, why_not = changes(before, merged.job, notification)
    note = (each.observation and each.observation.note) or why_not
    return (
        *(merged.id, merged.instance, now, notification.source, notification.status),
        *(msgspec.json.encode(changed).decode(), note, each.event),
    )


def _note_errors(merged: Merged, before: Job, now: int) -> None:
    """Have the errors fetched once a job ended with failed records, and after a reset anew."""
    job = merged.job
    if not job.failed or not job.ended or job.erased_at is not None:
        return
    if _attempt(before) != _attempt(job):
        merged.errors_at, merged.errors_tries = now, 0


def _attempt(job: Job) -> tuple[object, ...]:
    return job.ended, job.registers.get("status", [])[:2], job.failed, job.loaded


def _follow(merged: Merged, before: Job, each: Told) -> None:
    """Gather what the client that submitted the job is to be told."""
    observation = each.observation
    bodies: list[bytes | None] = [each.body] if each.body is not None else []
    if observation is not None:
        merged.callback_due = merged.callback_due or observation.callback_due
        if observation.submission is not None:
            merged.submissions.append(observation.submission)
        if observation.client_url is not None and merged.client_url is None:
            merged.client_url = observation.client_url
            bodies = [None] if merged.events else [_learnt(merged)] if merged.job.ended else []
        elif merged.job.ended and not before.ended:
            bodies = [_learnt(merged)]
    if merged.client_url:  # '' once the job was erased: nobody is told any more
        merged.forwards += bodies


def _so_far(connection: Connection, merged: Merged) -> list[bytes]:
    """Give the callbacks that overtook the answer to their own submission."""
    events = select(Body.body).join(Event, Event.id == Body.event)
    of_job = events.where(Event.job == merged.id, Event.instance == merged.instance)
    return list(connection.scalars(of_job.order_by(Event.received_at, Event.id)))


def _learnt(merged: Merged) -> bytes:
    """Write the notification that the vendor should have sent, as bulk v2 has it."""
    job = merged.job
    facts = {
        "id": merged.id,
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
