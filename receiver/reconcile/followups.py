"""What remains to be done for jobs: polls, errors, submissions. Functions take a Session."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    and_,
    case,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from receiver.database.engine import upsert
from receiver.database.leases import claim, is_due
from receiver.database.models import (
    IS_UNDER_WAY,
    Facet,
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
MAX_POLL_PAUSE_MS = 6 * 3_600_000  # between two polls of one job
MAX_WAITING = 100  # requests for one instance, over all nodes


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this node, and no other, shall ask the vendor about."""

    job: str
    instance: str
    object: str | None
    direction: str | None
    tries: int

    @property
    def key(self) -> dict[str, str]:
        """The job's primary key."""
        return {"id": self.job, "instance": self.instance}


def due_polls(
    session: Session, instance: str, now: int, overdue_after: int, *, everything: bool
) -> list[Claim]:
    """Return the jobs of an instance that should be asked for, longest waiting first."""
    # One that ended in two ways is asked for at once.
    overdue = and_(JobRow.poll_at.is_(None), or_(IS_LATE, ~HAS_NO_END))
    due = or_(overdue, is_due(JobRow.poll_at, now, MAX_POLL_PAUSE_MS))
    of_instance = (
        select(JobRow).select_from(JOBS_AND_USUAL).where(Facet.instance == instance, IS_UNDER_WAY)
    )
    statement = (of_instance if everything else of_instance.where(due)).order_by(
        JobRow.first_seen_at
    )
    rows = session.scalars(statement, {"now": now, "overdue_after": overdue_after})
    return [claim_of(row, row.polls) for row in rows]


def claim_poll(session: Session, now: int, poll: Claim, pause: int) -> bool:
    """Take a poll for `pause` ms; False if another node did, or nothing is left to ask."""
    key, lease = poll.key, {"poll_at": now + pause, "polls": poll.tries + 1}
    return claim(session, JobRow, key, {"polls": poll.tries}, lease, IS_UNDER_WAY)


def claim_status(
    session: Session, instance: str, job: str, now: int, *, overdue_after: int, interval: int
) -> bool:
    """Take the asking for a job that a client wants to know of now; False if it was asked lately.

    interval -- ms between two such questions, over all nodes. The next poll of our own is put off
    as if this were one of them; so its time tells when the last question was.
    """
    mine = (JobRow.instance == instance, JobRow.id == job)
    polls = session.scalar(select(JobRow.polls).where(*mine))
    if polls is None:
        return False
    pause = poll_pause(overdue_after, max(polls - 1, 0))
    lately = JobRow.poll_at.between(now + pause - interval + 1, now + MAX_POLL_PAUSE_MS)
    long_ago = or_(JobRow.poll_at.is_(None), ~lately)
    key, lease = {"id": job, "instance": instance}, {"poll_at": now + pause}
    return claim(session, JobRow, key, {"polls": polls}, lease, long_ago)


def poll_pause(overdue_after: int, tries: int) -> int:
    """Give the ms between two polls of one job."""
    return min(MAX_POLL_PAUSE_MS, overdue_after << min(tries, 20))


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


def take_turn(
    session: Session, instance: str, now: int, interval: int, patience: int = MAX_POLL_PAUSE_MS
) -> int | None:
    """Give the time (ms) at which the vendor may be asked for an instance, over all nodes.

    interval -- ms between two requests. patience -- ms that the turn may be away. A turn further
    ahead than others can be waiting for is a wrong clock's: turns begin anew.
    None: not now, for the vendor failed for this instance, or others are before us.
    """
    new = upsert(session, Pace).values(
        instance=instance, next_at=now + interval, failures=0, blocked_until=0
    )
    waiting = Pace.next_at.between(now + 1, now + MAX_WAITING * interval)
    soon = Pace.next_at <= now + patience
    following = case((waiting, Pace.next_at), else_=now) + interval
    statement = new.on_conflict_do_update(
        index_elements=[Pace.instance],
        set_={"next_at": following},
        where=and_(is_due(Pace.blocked_until, now, LONGEST_BLOCK_MS), or_(~waiting, soon)),
    ).returning(Pace.next_at)
    next_at = session.scalar(statement)
    return None if next_at is None else next_at - interval


def note_health(
    session: Session, instance: str, now: int, *, failed: bool, at_least: int = 0
) -> None:
    """Block an instance's vendor for longer with each failure, or open it again.

    at_least -- ms, as the vendor asked for.
    """
    pace = update(Pace).where(Pace.instance == instance)
    if not failed:
        session.execute(pace.where(Pace.failures > 0).values(failures=0, blocked_until=0))
        return
    failures = session.scalar(select(Pace.failures).where(Pace.instance == instance)) or 0
    block = min(LONGEST_BLOCK_MS, 10_000 * 2 ** min(failures, 20))
    jitter = secrets.randbelow(block // 4 + 1)
    until = now + max(block - jitter, min(at_least, LONGEST_BLOCK_MS))
    session.execute(pace.values(failures=failures + 1, blocked_until=until))


def note_queued(session: Session, instance: str, now: int, queued: int) -> None:
    """Remember how many deliveries the vendor holds back for an instance."""
    pace = update(Pace).where(Pace.instance == instance)
    session.execute(pace.values(queued=queued, queued_asked_at=now))


def beat(session: Session, now: int) -> bool:
    """Say that we are alive; True if nobody was for a while, and polls were brought forward."""
    last = session.scalar(select(Heartbeat.at)) or 0
    at = now if last > now + OUTAGE_MS else max(now, last)  # far ahead: a clock was wrong
    if not claim(session, Heartbeat, {}, {"at": last}, {"at": at}):
        return False
    if last == 0 or now - last < OUTAGE_MS:
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
    job = Job.decode(row.registers)
    return Claim(row.id, row.instance, job.text("object"), job.text("direction"), tries)
