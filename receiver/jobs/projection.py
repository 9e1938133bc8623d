"""Apply a batch of notifications to stored jobs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection, select, update

from receiver.callbacks.statements import Statements
from receiver.database.models import Body, Event, JobRow, Submission
from receiver.jobs.job import Job, changes, is_fault, join, must_ask
from receiver.jobs.rows import Entry, JobValues, Place, StoredJob
from receiver.jobs.tally import Tally, count_job
from receiver.openconnectors.notifications import Notification
from receiver.outbound.queue import Message, enqueue

MAX_INDEXED_TEXT = 200  # characters; PostgreSQL refuses index entries above 2,704 bytes


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
class Update:
    """What is to be merged: a new event with its body, or an observation."""

    instance: str
    notification: Notification
    event: str | None = None
    body: bytes | None = None
    observation: NewObservation | None = None


@dataclass(slots=True)
class JobState:
    """A job while a batch is merged into it; what was stored of it comes first.

    forwards -- what its client is to be told; None stands for all callbacks there were so far.
    polling -- columns that say when the vendor is asked for it, where that changes.
    """

    id: str
    instance: str
    updated_at: int
    job: Job = field(default_factory=Job)
    revision: int = 0
    events: int = 0
    outcome: str | None = None
    callback_due: bool = False
    client_url: str | None = None
    errors_at: int | None = None
    errors_tries: int = 0
    touched: bool = False
    entries: list[Entry] = field(default_factory=list)
    submissions: list[str] = field(default_factory=list)
    forwards: list[bytes | None] = field(default_factory=list)
    polling: dict[str, int | None] = field(default_factory=dict)

    @staticmethod
    def from_row(row: StoredJob) -> "JobState":
        """Return a job as it was stored."""
        return JobState(
            id=row.id,
            instance=row.instance,
            updated_at=row.updated_at,
            job=Job.decode(row.registers),
            revision=row.revision,
            events=row.events,
            outcome=row.outcome,
            callback_due=bool(row.callback_due),
            client_url=row.client_url,
            errors_at=row.errors_at,
            errors_tries=row.errors_tries,
        )


def merge_jobs(
    statements: Statements, updates: Iterable[Update], now: int, tally: Tally
) -> tuple[list[JobState], list[JobValues]]:
    """Merge notifications into their jobs; lock these, insert new ones, and count what changed.

    Returns all jobs, and the values of the rows that are locked and still to be written.
    """
    of_job: dict[Place, list[Update]] = {}
    for update_ in updates:
        of_job.setdefault((str(update_.notification.job), update_.instance), []).append(update_)
    states: list[JobState] = []
    changed: list[JobValues] = []
    if not of_job:
        return states, changed
    places = sorted(of_job)  # the order in which all nodes lock them
    stored = _by_place(statements.known_jobs(places))
    # As if nothing were known of them: one statement then adds them, or tells what is known.
    new = {
        place: _merge(JobState(*place, updated_at=now), of_job[place], now)
        for place in places
        if place not in stored
    }
    if new:
        stored |= _by_place(statements.add_jobs([values for _, values in new.values()]))
    for place in places:
        row = stored.get(place)
        if row is None:
            state, values = new[place]
        else:
            state, values = _merge(JobState.from_row(row), of_job[place], now)
            changed.append(values)
            count_job(tally, row, -1)
        count_job(tally, values, 1)
        states.append(state)
    return states, changed


def follow_up(connection: Connection, states: Iterable[JobState], now: int) -> None:
    """Note what is to be done for jobs next, in the same transaction."""
    for state in states:
        for submission in state.submissions:
            taken = update(Submission).where(
                Submission.id == submission, Submission.instance == state.instance
            )
            connection.execute(taken.values(state="taken", job=state.id))
        if state.polling:
            named = JobRow.id == state.id, JobRow.instance == state.instance
            connection.execute(update(JobRow).where(*named).values(state.polling))
        bodies: list[bytes] = []
        for body in state.forwards:
            bodies += [body] if body is not None else _so_far(connection, state)
        messages = [
            Message(
                *("callback", state.client_url or "", body),
                headers={"Content-Type": "application/json"},
                instance=state.instance,
                job=state.id,
            )
            for body in bodies
        ]
        enqueue(connection, messages, now)


def _by_place(rows: Iterable[StoredJob]) -> dict[Place, StoredJob]:
    return {(row.id, row.instance): row for row in rows}


def _merge(state: JobState, updates: Sequence[Update], now: int) -> tuple[JobState, JobValues]:
    for update_ in updates:
        before = state.job
        state.job = join(before, Job.of(update_.notification, now))
        state.events += update_.event is not None
        _note_changes(state, before, update_, now)
        _note_errors(state, before, now)
        _note_polling(state, before, update_.notification, now)
        _follow(state, before, update_)
    return state, _values(state, now)


def _values(state: JobState, now: int) -> JobValues:
    job = state.job
    due = state.callback_due or state.events > 0
    learnt_by = job.learnt_by
    return JobValues(
        registers=job.encode(),
        revision=state.revision + state.touched,
        events=state.events,
        # Never backwards, or a page by newest change could show a job twice.
        updated_at=max(state.updated_at, now) if state.touched else state.updated_at,
        status=_indexed(job.status),
        outcome=job.outcome,
        object=_indexed(job.text("object")),
        direction=_indexed(job.text("direction")),
        learnt_by=learnt_by,
        files_expire_at=job.files_expire_at,
        callback_due=due,
        callback_lost=due and learnt_by == "poll" and not job.called_back,
        client_url=state.client_url,
        errors_at=state.errors_at,
        errors_tries=state.errors_tries,
        id=state.id,
        instance=state.instance,
    )


def _note_changes(state: JobState, before: Job, update_: Update, now: int) -> None:
    notification = update_.notification
    changed, why_not = changes(before, state.job, notification)
    if state.outcome == "lost" and "outcome" not in changed:
        changed, why_not = [*changed, "outcome"], "the job was closed, and is open again"
    state.outcome = state.job.outcome
    state.touched = state.touched or update_.event is not None or bool(changed)
    note = (update_.observation and update_.observation.note) or why_not
    state.entries.append(
        (
            *(state.id, state.instance, now, notification.source, notification.status),
            *(msgspec.json.encode(changed).decode(), note, update_.event),
        )
    )


def _note_errors(state: JobState, before: Job, now: int) -> None:
    """Have the errors fetched once a job ended with failed records, and after a reset anew."""
    job = state.job
    if not job.failed or not job.ended or job.erased_at is not None:
        return
    if _ending(before) != _ending(job):
        state.errors_at, state.errors_tries = now, 0


def _ending(job: Job) -> tuple[object, ...]:
    return job.ended, job.attempt, job.failed, job.reported


def _note_polling(state: JobState, before: Job, notification: Notification, now: int) -> None:
    """Have the vendor asked at once where endings contradict each other, until it has answered."""
    ask = must_ask(before, state.job, notification)
    if ask is not None:
        state.polling |= {"contested": ask, "poll_at": now if ask else None, "polls": 0}
    if before.status is not None and before.attempt < state.job.attempt and not state.job.ended:
        # It runs again: how long it takes counts from now on.
        state.polling |= {"first_seen_at": now, "poll_at": None, "polls": 0}


def _follow(state: JobState, before: Job, update_: Update) -> None:
    """Gather what the client that submitted the job is to be told."""
    observation = update_.observation
    bodies: list[bytes | None] = [update_.body] if update_.body is not None else []
    if observation is not None:
        state.callback_due = state.callback_due or observation.callback_due
        if observation.submission is not None:
            state.submissions.append(observation.submission)
        if observation.client_url is not None and state.client_url is None:
            state.client_url = observation.client_url
            bodies = [None] if state.events else [_learnt(state)] if state.job.ended else []
        elif state.job.ended and not before.ended:
            bodies = [_learnt(state)]
    if state.client_url:  # '' once the job was erased: nobody is told any more
        state.forwards += bodies


def _so_far(connection: Connection, state: JobState) -> list[bytes]:
    """Give the callbacks that overtook the answer to their own submission."""
    events = select(Body.body).join(Event, Event.id == Body.event)
    of_job = events.where(Event.job == state.id, Event.instance == state.instance)
    return list(connection.scalars(of_job.order_by(Event.received_at, Event.id)))


def _learnt(state: JobState) -> bytes:
    """Write the notification that the vendor should have sent, as bulk v2 has it."""
    job = state.job
    facts = {
        "id": state.id,
        "status": job.status,
        "recordsCount": job.reported,
        "recordsFailedCount": job.failed,
        "error" if is_fault(job.status) else "message": job.text("message"),
    }
    told = {name: value for name, value in facts.items() if value is not None}
    payload = job.text("callback_payload")
    if payload is not None:
        told["callback-payload"] = json.loads(payload)
    return json.dumps(told).encode()


def _indexed(value: str | None) -> str | None:
    return value and value[:MAX_INDEXED_TEXT]
