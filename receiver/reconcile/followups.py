"""What remains to be done for jobs: polls, errors, forwards, submissions. Functions take a Session.

Work is claimed by compare-and-set on the time of its next turn: whoever moves it on has it, so any
number of nodes may look at once, and work that a dead node had claimed comes back by itself.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    case,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from receiver.database.engine import affected, upsert
from receiver.database.models import (
    IS_UNDER_WAY,
    Facet,
    Forward,
    Heartbeat,
    JobRow,
    Pace,
    Submission,
)
from receiver.jobs.job import Job
from receiver.jobs.queries import HAS_NO_END, IS_LATE, JOBS_AND_USUAL

LEASE_MS = 30_000  # until work that a node claimed and never finished may be claimed again
OUTAGE_MS = 5 * 60_000
MOST_BROUGHT_FORWARD = 10_000
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
    """Return the jobs of an instance that should be asked for, longest waiting first."""
    # One that ended in two ways is asked for at once.
    overdue = and_(JobRow.poll_at.is_(None), or_(IS_LATE, ~HAS_NO_END))
    due = or_(overdue, JobRow.poll_at <= now)
    mine = (
        select(JobRow).select_from(JOBS_AND_USUAL).where(Facet.instance == instance, IS_UNDER_WAY)
    )
    statement = (mine if everything else mine.where(due)).order_by(JobRow.first_seen_at)
    rows = session.scalars(statement, {"now": now, "overdue_after": overdue_after})
    return [claim_of(row, row.polls) for row in rows]


def claim_poll(session: Session, claim: Claim, next_at: int) -> bool:
    """Take a poll; False if another node did, or if there is nothing to ask any more."""
    mine = update(JobRow).where(*is_claimed(claim), JobRow.polls == claim.tries)
    open_ = mine.where(IS_UNDER_WAY)
    return affected(session, open_.values(poll_at=next_at, polls=JobRow.polls + 1)) == 1


def downloads(session: Session, instance: str, now: int) -> list[Claim]:
    """Give the ended downloads of an instance whose files the vendor should still have."""
    of_instance = Facet.instance == instance, Facet.direction == "DOWNLOAD"
    mine = select(JobRow).join(Facet, Facet.facet == JobRow.facet).where(*of_instance)
    ended = mine.where(Facet.outcome.in_(("succeeded", "partial")), JobRow.files_expire_at > now)
    return [claim_of(row, 0) for row in session.scalars(ended.order_by(JobRow.files_expire_at))]


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
    # Not all of a million: callbacks would wait for their rows. These alone take hours to ask for.
    longest = (
        select(JobRow.id, JobRow.instance)
        .where(IS_UNDER_WAY)
        .order_by(JobRow.first_seen_at)
        .limit(MOST_BROUGHT_FORWARD)
        .with_for_update(skip_locked=True)
    )
    place = tuple_(JobRow.id, JobRow.instance)
    forward = update(JobRow).where(place.in_(longest)).values(poll_at=now)
    session.execute(forward.execution_options(synchronize_session=False))
    return True


def claim_of(row: JobRow, tries: int) -> Claim:
    """Give the claim of a job that was worked on `tries` times."""
    job = Job(json.loads(row.registers))
    return Claim(row.id, row.instance, job.text("object"), job.text("direction"), tries)


def is_claimed(claim: Claim) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The condition that a row is the job of a claim."""
    return JobRow.id == claim.job, JobRow.instance == claim.instance
