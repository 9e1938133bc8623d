"""What remains to be done for jobs: polls, errors, forwards, submissions. Functions take a Session.

Work is claimed by compare-and-set on the time of its next turn: whoever moves it on has it, so any
number of nodes may look at once, and work that a dead node had claimed comes back by itself.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from receiver.storage.credentials import affected
from receiver.storage.database import upsert
from receiver.storage.models import (
    Forward,
    Heartbeat,
    Instance,
    JobRow,
    Pace,
    RecordError,
    Submission,
)

UNDER_WAY = ("pending", "unknown")
LEASE_MS = 60_000  # until work that a node claimed and never finished may be claimed again
OUTAGE_MS = 5 * 60_000
LONGEST_BLOCK_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this node, and no other, shall ask the vendor about."""

    job: str
    instance: str
    object: str | None
    direction: str | None
    tries: int


def due_polls(
    session: Session, instance: str, now: int, overdue_after: int, *, everything: bool
) -> list[Claim]:
    """Give the jobs under way of an instance that should be asked for, longest waiting first."""
    overdue = and_(JobRow.poll_at.is_(None), JobRow.first_seen_at <= now - overdue_after)
    due = or_(overdue, JobRow.poll_at <= now)
    mine = select(JobRow).where(JobRow.instance == instance, JobRow.outcome.in_(UNDER_WAY))
    rows = session.scalars((mine if everything else mine.where(due)).order_by(JobRow.first_seen_at))
    return [_claim(row, row.polls) for row in rows]


def claim_poll(session: Session, claim: Claim, next_at: int) -> bool:
    """Take a poll; False if another node did, or if the job has ended meanwhile."""
    mine = update(JobRow).where(*_is(claim), JobRow.polls == claim.tries)
    under_way = mine.where(JobRow.outcome.in_(UNDER_WAY))
    return affected(session, under_way.values(poll_at=next_at, polls=JobRow.polls + 1)) == 1


def downloads(session: Session, instance: str, now: int) -> list[Claim]:
    """Give the ended downloads of an instance whose files the vendor should still have."""
    mine = select(JobRow).where(JobRow.instance == instance, JobRow.direction == "DOWNLOAD")
    ended = mine.where(JobRow.outcome.in_(("succeeded", "partial")), JobRow.files_expire_at > now)
    return [_claim(row, 0) for row in session.scalars(ended.order_by(JobRow.files_expire_at))]


def due_errors(session: Session, instance: str, now: int) -> list[Claim]:
    """Give the ended jobs of an instance whose errors are still to be fetched."""
    mine = select(JobRow).where(JobRow.instance == instance, JobRow.errors_at <= now)
    return [_claim(row, row.errors_tries) for row in session.scalars(mine)]


def with_due_errors(session: Session, now: int) -> list[str]:
    """Name the instances that have such jobs and vendor secrets to fetch with."""
    due = select(JobRow.instance).where(JobRow.errors_at <= now).distinct()
    can = Instance.element_token.is_not(None) & Instance.user_secret.is_not(None)
    return list(session.scalars(select(Instance.name).where(Instance.name.in_(due), can)))


def claim_errors(session: Session, claim: Claim, next_at: int) -> bool:
    """Take the fetching of a job's errors; False if another node did."""
    mine = update(JobRow).where(
        *_is(claim), JobRow.errors_tries == claim.tries, JobRow.errors_at.is_not(None)
    )
    statement = mine.values(errors_at=next_at, errors_tries=JobRow.errors_tries + 1)
    return affected(session, statement) == 1


def renew_errors(session: Session, claim: Claim, next_at: int) -> bool:
    """Keep the fetching of a job's errors for longer; False if it is another node's by now."""
    mine = update(JobRow).where(
        *_is(claim), JobRow.errors_tries == claim.tries + 1, JobRow.errors_at.is_not(None)
    )
    later = case((JobRow.errors_at > next_at, JobRow.errors_at), else_=next_at)
    return affected(session, mine.values(errors_at=later)) == 1


def keep_errors(session: Session, claim: Claim, entries: Sequence[tuple[str, str]]) -> None:
    """Keep a job's errors, as (JSON, message), in the place of those that were there."""
    session.execute(
        delete(RecordError).where(
            RecordError.job == claim.job, RecordError.instance == claim.instance
        )
    )
    rows = [
        {
            "job": claim.job,
            "instance": claim.instance,
            "position": position,
            "entry": entry,
            "message": message,
        }
        for position, (entry, message) in enumerate(entries)
    ]
    if rows:
        session.execute(insert(RecordError), rows)
    done = update(JobRow).where(*_is(claim), JobRow.errors_tries == claim.tries + 1)
    session.execute(done.values(errors_at=None))


def give_up_errors(session: Session, claim: Claim) -> None:
    """Try no more: the vendor has them no longer."""
    mine = update(JobRow).where(*_is(claim), JobRow.errors_tries == claim.tries + 1)
    session.execute(mine.values(errors_at=None))


def errors(
    session: Session, job: str, instance: str, limit: int, after: int
) -> Sequence[RecordError]:
    """Give a job's errors from position `after` on."""
    mine = select(RecordError).where(RecordError.job == job, RecordError.instance == instance)
    page = mine.where(RecordError.position >= after).order_by(RecordError.position).limit(limit)
    return session.scalars(page).all()


def error_groups(session: Session, job: str, instance: str) -> list[dict[str, Any]]:
    """Give a job's errors by message, most frequent first, with up to three examples each."""
    mine = (RecordError.job == job, RecordError.instance == instance)
    counts = session.execute(
        select(RecordError.message, func.count().label("count"))
        .where(*mine)
        .group_by(RecordError.message)
        .order_by(func.count().desc(), RecordError.message)
        .limit(100)
    ).all()
    place = func.row_number().over(partition_by=RecordError.message, order_by=RecordError.position)
    ranked = select(RecordError.message, RecordError.entry, place.label("place")).where(*mine)
    first = ranked.subquery()
    examples: dict[str, list[str]] = {}
    for message, entry, _ in session.execute(select(first).where(first.c.place <= 3)):  # noqa: PLR2004
        examples.setdefault(message, []).append(entry)
    return [{"message": row[0], "count": row[1], "examples": examples[row[0]]} for row in counts]


def begin_submission(session: Session, values: dict[str, Any]) -> str:
    """Write down what is about to be sent to the vendor; give the id of the submission."""
    submission_id = secrets.token_hex(16)
    session.add(Submission(id=submission_id, state="sending", job=None, **values))
    return submission_id


def end_submission(session: Session, submission_id: str, state: str) -> None:
    """Write down what became of a submission that gave no job: refused or unclear."""
    mine = update(Submission).where(Submission.id == submission_id)
    session.execute(mine.values(state=state))


def unclear_submissions(session: Session, now: int, patience: int) -> Sequence[Submission]:
    """Give submissions whose fate nobody knows: cut off, or their node died while sending."""
    forgotten = and_(Submission.state == "sending", Submission.at < now - patience)
    statement = select(Submission).where(or_(Submission.state == "unclear", forgotten))
    return session.scalars(statement.order_by(Submission.at)).all()


def next_forward(session: Session, now: int) -> Forward | None:
    """Claim a notification to be told to a client, or None if there is none to tell now."""
    row = session.scalar(
        select(Forward).where(Forward.next_at <= now).order_by(Forward.next_at).limit(1)
    )
    if row is None:
        return None
    mine = update(Forward).where(Forward.id == row.id, Forward.next_at == row.next_at)
    claimed = affected(session, mine.values(next_at=now + LEASE_MS, tries=Forward.tries + 1))
    session.refresh(row)
    session.expunge(row)
    return row if claimed else None


def end_forward(session: Session, forward_id: int, result: str, next_at: int | None) -> None:
    """Write down how a client answered; next_at -- when to try again, if at all."""
    mine = update(Forward).where(Forward.id == forward_id)
    session.execute(mine.values(result=result, next_at=next_at))


def take_turn(session: Session, instance: str, now: int, interval: int) -> int | None:
    """Give the time (ms) at which the vendor may be asked for an instance, over all nodes.

    interval -- ms between two requests. None: the vendor failed for this instance; not now.
    """
    new = upsert(session, Pace).values(
        instance=instance, next_at=now + interval, failures=0, blocked_until=0
    )
    following = case((Pace.next_at > now, Pace.next_at), else_=now) + interval
    statement = new.on_conflict_do_update(
        index_elements=[Pace.instance],
        set_={"next_at": following},
        where=Pace.blocked_until <= now,
    ).returning(Pace.next_at)
    next_at = session.scalar(statement)
    return None if next_at is None else next_at - interval


def note_health(session: Session, instance: str, now: int, *, failed: bool) -> None:
    """Block an instance's vendor for longer with each failure, or open it again."""
    pace = update(Pace).where(Pace.instance == instance)
    if not failed:
        session.execute(pace.where(Pace.failures > 0).values(failures=0, blocked_until=0))
        return
    failures = session.scalar(select(Pace.failures).where(Pace.instance == instance)) or 0
    block = min(LONGEST_BLOCK_MS, 10_000 * 2 ** min(failures, 20))
    jitter = secrets.randbelow(block // 4 + 1)
    until = now + block - jitter
    session.execute(pace.values(failures=failures + 1, blocked_until=until))


def note_queued(session: Session, instance: str, now: int, queued: int) -> None:
    """Remember how many deliveries the vendor holds back for an instance."""
    pace = update(Pace).where(Pace.instance == instance)
    session.execute(pace.values(queued=queued, queued_asked_at=now))


def beat(session: Session, now: int) -> bool:
    """Say that we are alive; True if nobody was for a while, and polls were brought forward."""
    last = session.scalar(select(Heartbeat.at)) or 0
    mine = update(Heartbeat).where(Heartbeat.at == last).values(at=max(now, last))
    if not affected(session, mine) or last == 0 or now - last < OUTAGE_MS:
        return False
    session.execute(update(JobRow).where(JobRow.outcome.in_(UNDER_WAY)).values(poll_at=now))
    return True


def _claim(row: JobRow, tries: int) -> Claim:
    return Claim(row.id, row.instance, row.object, row.direction, tries)


def _is(claim: Claim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JobRow.id == claim.job, JobRow.instance == claim.instance
