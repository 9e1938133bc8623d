"""What is queued for clients and subscriptions, in the transaction that changes a job or an alarm.

None is missing then, and none is for what is not committed, whatever dies. A delivery's webhook_id
is made of what it is about, so that the same change is one delivery, whoever queues it.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, cast

from sqlalchemy import Connection, exists, select, update

from receiver.database.models import Event, Facet, JobRow, Submission
from receiver.database.models.outbound import OutboundDelivery
from receiver.database.page import Selection
from receiver.jobs.first_callback import FirstCallback
from receiver.jobs.job import UNDER_WAY, Job, Outcome
from receiver.jobs.projection import FacetKey, Forward, JobState, JobValues, truncate
from receiver.jobs.public import public_job
from receiver.jobs.queries import JobRecord, get_job, overdue_jobs
from receiver.outbound.queue import Message, enqueue
from receiver.subscriptions.formats import body_of, snapshot
from receiver.subscriptions.registry import KIND, TEST, Subscription, load_active

Type: TypeAlias = Literal[
    "job.ended",
    "job.changed",
    "job.overdue",
    "alarm.raised",
    "alarm.resolved",
]

MAX_OVERDUE = 500  # jobs of one look, for a subscription


def messages_of(
    subscriptions: Sequence[Subscription],
    state: JobState | FirstCallback,
    key: FacetKey,
    values: JobValues,
    now: int,
) -> Sequence[Message]:
    """Say that a job ended, or is not what it was when it had. values -- its new row. now -- ms."""
    if not subscriptions or (change := _change(state, key)) is None:
        return ()
    type_, outcomes = change
    subject = type_.removeprefix("job.")
    wanted = [
        one
        for one in subscriptions
        if subject in one.choice.on
        if not one.choice.outcomes or not outcomes.isdisjoint(one.choice.outcomes)
        if _is_about(one, key.instance, key.object)
    ]
    if not wanted:
        return ()
    body = snapshot(type_, now, cast("Outcome", key.outcome), values)
    place, named_by = (values.instance, values.id), f"{values.updated_at} {values.revision}"
    return [_message(one, type_, body, place, named_by) for one in wanted]


def _change(state: JobState | FirstCallback, key: FacetKey) -> tuple[Type, set[str]] | None:
    """Return what is sent of a job, and the outcomes it has and had; None if nothing is."""
    before = state.before
    if key.outcome == "lost":
        was_lost = state.was_closed and before is not None and before.outcome in UNDER_WAY
        return None if was_lost else ("job.changed", {"lost"})
    if key.outcome in UNDER_WAY:
        return None
    if before is None:
        return "job.ended", {key.outcome}
    job = state.job
    if not before.ended or before.attempt != job.attempt:
        return "job.ended", {key.outcome}
    if _facts(before) == _facts(job):
        return None
    return "job.changed", {key.outcome, before.outcome}


def _facts(job: Job) -> tuple[object, ...]:
    """Return the facts of an ended job whose change is sent."""
    counts = job.submitted, job.loaded, job.failed, job.reported
    return job.status, job.outcome, *counts, job.ended_at, job.conflict


def _message(
    to: Subscription,
    type_: str,
    body: bytes,
    place: tuple[str | None, str | None],
    named_by: str,
) -> Message:
    """Make a message. named_by -- what tells its webhook_id from others about the same."""
    instance, job = place
    named = "\0".join((to.name, type_, instance or "", job or "", named_by))
    return Message(
        KIND,
        to.url,
        body,
        webhook_id=f"msg_{hashlib.sha256(named.encode()).hexdigest()[:32]}",
        instance=instance,
        job=job,
        subscription=to.name,
        type=type_,
    )


def _is_about(subscription: Subscription, instance: str, object_: str | None) -> bool:
    instances, objects = subscription.choice.instances, subscription.choice.objects
    return (not instances or instance in instances) and (not objects or object_ in objects)


# --- what no callback says


def queue_overdue(connection: Connection, overdue_after: int, now: int) -> None:
    """Queue that jobs are overdue, once each time. overdue_after -- ms, where nothing is usual."""
    for one in load_active(connection):
        if "overdue" in one.choice.on:
            rows = connection.execute(
                _overdue(one), {"now": now, "overdue_after": overdue_after}
            ).all()
            messages: list[Message] = []
            for row in rows:
                record = get_job(connection, row.id, row.instance)
                if record is not None and record.overdue_by(now, overdue_after) is not None:
                    body = body_of("job.overdue", now, public_job(record, now, overdue_after))
                    place, since = (record.instance, record.id), str(record.first_seen_at)
                    messages.append(_message(one, "job.overdue", body, place, since))
            enqueue(connection, messages, now)


def _overdue(to: Subscription) -> Selection:
    """Select overdue jobs that were not sent yet since they are under way."""
    sent, choice = OutboundDelivery, to.choice
    was_sent = exists().where(
        sent.job == JobRow.id,
        sent.instance == JobRow.instance,
        sent.subscription == to.name,
        sent.type == "job.overdue",
        sent.at >= JobRow.first_seen_at,
    )
    jobs = overdue_jobs(JobRow.instance, JobRow.id).where(~was_sent).limit(MAX_OVERDUE)
    if choice.instances:
        jobs = jobs.where(Facet.instance.in_(choice.instances))
    return jobs.where(Facet.object.in_(choice.objects)) if choice.objects else jobs


def queue_alarm(
    connection: Connection, type_: Type, place: tuple[str, str | None], alarm: object, now: int
) -> None:
    """Queue that an alarm is news, or was resolved.

    place -- what its message is named by, and its instance; None if it is of the receiver.
    """
    change, instance = place
    body = body_of(type_, now, alarm)
    wanted = [
        one
        for one in load_active(connection)
        if "alarm" in one.choice.on
        if not one.choice.instances or instance in one.choice.instances
    ]
    # Whichever node is first: its time is no part of the id.
    messages = [_message(one, type_, body, (instance, None), change) for one in wanted]
    enqueue(connection, messages, now)


# --- once more, and for a test


def test_message(to: Subscription, now: int) -> Message:
    """Make a message that is sent at once, past the queue."""
    body = body_of(TEST, now, {"subscription": to.name})
    return _message(to, TEST, body, (None, None), secrets.token_hex(12))


def wanted_replays(
    subscriptions: Iterable[Subscription], records: Iterable[JobRecord]
) -> Iterator[tuple[Subscription, JobRecord]]:
    """Return what is sent again, and where: jobs that ended, as far as they are wanted."""
    for record in records:
        for one in subscriptions:
            choice, object_ = one.choice, truncate(record.job.text("object"))
            if (
                record.job.ended
                and "ended" in choice.on
                and _is_about(one, record.instance, object_)
                and (not choice.outcomes or record.outcome in choice.outcomes)
            ):
                yield one, record


def queue_replays(
    connection: Connection, wanted: Iterable[tuple[Subscription, JobRecord]], now: int
) -> None:
    """Queue jobs as they are now, marked as a replay; each is a message of its own."""
    messages = []
    for one, record in wanted:
        body = body_of("job.ended", now, public_job(record, now, 0), replay=True)
        place, once = (record.instance, record.id), secrets.token_hex(12)
        messages.append(_message(one, "job.ended", body, place, once))
    enqueue(connection, messages, now)


def queue_forwards(connection: Connection, jobs: Iterable[JobState], now: int) -> None:
    """Queue what the clients that submitted jobs are to be sent: the vendor's callbacks."""
    for state in jobs:
        for submission in state.submissions:
            of_instance = Submission.instance == state.instance
            taken = update(Submission).where(Submission.id == submission, of_instance)
            connection.execute(taken.values(state="taken", job=state.id))
        forwards: list[Forward] = []
        for forward in state.forwards:
            forwards += [forward] if forward else _earlier_callbacks(connection, state)
        messages = [
            Message(
                *("callback", state.client_url or "", forward.body, forward.webhook_id or ""),
                instance=state.instance,
                job=state.id,
            )
            for forward in forwards
        ]
        enqueue(connection, messages, now)


def _earlier_callbacks(connection: Connection, state: JobState) -> list[Forward]:
    """Return the callbacks that overtook the answer to their own submission."""
    of_job = Event.instance == state.instance, Event.job == state.id, Event.body.is_not(None)
    rows = connection.execute(select(Event.body, Event.webhook_id).where(*of_job).order_by(Event.n))
    return [Forward._make(row) for row in rows]
