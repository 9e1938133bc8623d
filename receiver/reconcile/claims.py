"""The work that nodes share, and how one of them takes it. Functions take a Session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    ColumnExpressionArgument,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from receiver.database.engine import affected, upsert
from receiver.database.leases import claim, is_due
from receiver.database.models import (
    IS_UNDER_WAY,
    Facet,
    Heartbeat,
    Instance,
    JobRow,
    Pace,
    Question,
)
from receiver.database.models.alarms import Fetch
from receiver.instances.registry import HAS_VENDOR_SECRETS
from receiver.jobs.job import Job
from receiver.jobs.queries import HAS_NO_END, IS_LATE, IS_OVERDUE, JOBS_AND_USUAL
from receiver.lib.clock import HOUR_MS, MINUTE_MS

LEASE_MS = 30_000  # until work that a node claimed and never finished may be claimed again
OUTAGE_MS = 5 * MINUTE_MS
QUESTION_MS = 5_000  # between two questions of clients where a job stands
QUEUE_MS = 5 * MINUTE_MS  # between two looks at what the vendor holds back
MAX_POLL_PAUSE_MS = 6 * HOUR_MS  # between two polls of one job
MAX_FETCH_PAUSE_MS = LEASE_MS * 2**8  # between two attempts to fetch one job's failed records
MAX_POLLS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this node, and no other, shall ask the vendor about."""

    instance: str
    job: str
    tries: int

    @property
    def key(self) -> dict[str, str]:
        """The job's primary key."""
        return {"instance": self.instance, "id": self.job}


# --- polls


def due_polls(
    session: Session, instance: str, now: int, overdue_after: int, *, everything: bool
) -> list[Claim]:
    """Return the jobs of an instance that should be asked for, longest waiting first."""
    jobs = select(JobRow.id, JobRow.polls).select_from(JOBS_AND_USUAL)
    open_ = jobs.where(Facet.instance == instance, IS_UNDER_WAY).order_by(JobRow.first_seen_at)
    statement = open_ if everything else open_.where(_due_poll(now))
    rows = session.execute(statement, {"now": now, "overdue_after": overdue_after})
    return [Claim(instance, *row) for row in rows]


def count_due(
    session: Session, now: int, overdue_after: int, *, everything: bool, excluded: Sequence[str]
) -> dict[str, int]:
    """Count the jobs that should be asked for, by instance. excluded -- instances."""
    due = IS_UNDER_WAY if everything else and_(IS_UNDER_WAY, _due_poll(now))
    return _count_jobs(session, now, overdue_after, due, Facet.instance.not_in(excluded))


def count_unasked(session: Session, now: int, overdue_after: int) -> dict[str, int]:
    """Count the jobs that were overdue at `now` and were never asked for, by instance."""
    return _count_jobs(session, now, overdue_after, *IS_OVERDUE, JobRow.poll_at.is_(None))


def _count_jobs(
    session: Session, now: int, overdue_after: int, *conditions: ColumnExpressionArgument[bool]
) -> dict[str, int]:
    jobs = select(Facet.instance, func.count()).select_from(JOBS_AND_USUAL).where(*conditions)
    rows = session.execute(
        jobs.group_by(Facet.instance), {"now": now, "overdue_after": overdue_after}
    )
    return {instance: int(count) for instance, count in rows}


def _due_poll(now: int) -> ColumnElement[bool]:
    # One that ended in two ways is asked for at once.
    overdue = and_(JobRow.poll_at.is_(None), or_(IS_LATE, ~HAS_NO_END))
    return or_(overdue, is_due(JobRow.poll_at, now, MAX_POLL_PAUSE_MS))


def claim_poll(session: Session, now: int, poll: Claim, overdue_after: int) -> bool:
    """Claim a poll, each time for twice as long; False if another node did, or the job has ended.

    overdue_after -- ms until the second one.
    """
    pause = min(MAX_POLL_PAUSE_MS, overdue_after << min(poll.tries, 20))
    claim_question(session, now, poll.key)  # clients who ask just after are answered by the store
    lease = {"poll_at": now + pause, "polls": poll.tries + 1}
    return claim(session, JobRow, poll.key, {"polls": poll.tries}, lease, IS_UNDER_WAY)


def claim_question(session: Session, now: int, key: Mapping[str, str]) -> bool:
    """Claim the question where a job stands, stored or not; False if it was claimed lately.

    key -- the job's. A claim is not released, so that many clients cost the vendor one question in
    QUESTION_MS for a job, whatever it answers and whichever nodes they ask.
    """
    # Other nodes may have read the time after this one, and been first all the same.
    lately = Question.at.between(now - QUESTION_MS + 1, now + QUESTION_MS)
    affected(session, delete(Question).where(~lately))
    question = upsert(session, Question).values(**key, at=now).on_conflict_do_nothing()
    return session.scalar(question.returning(Question.at)) is not None


# --- failed records


def instances_with_due_errors(session: Session, now: int) -> list[str]:
    """Name the instances with failed records to fetch, and vendor secrets to fetch them with."""
    # For each instance one look into the index: asked for the instances of such jobs, SQLite would
    # read all jobs there are.
    due = exists().where(JobRow.instance == Instance.name, *_errors_due(now))
    return list(session.scalars(select(Instance.name).where(HAS_VENDOR_SECRETS, due)))


def due_errors(session: Session, instance: str, now: int) -> list[Claim]:
    """Return the ended jobs of an instance whose failed records are still to be fetched."""
    due = JobRow.instance == instance, *_errors_due(now)
    rows = session.execute(select(JobRow.id, JobRow.errors_tries).where(*due))
    return [Claim(instance, *row) for row in rows]


def claim_errors(session: Session, now: int, fetch: Claim) -> bool:
    """Claim the fetching of a job's failed records; False if another node did."""
    pause = min(MAX_FETCH_PAUSE_MS, LEASE_MS * 2 ** min(fetch.tries, 20))
    seen, pending = {"errors_tries": fetch.tries}, JobRow.errors_at.is_not(None)
    lease = {"errors_at": now + pause, "errors_tries": fetch.tries + 1}
    return claim(session, JobRow, fetch.key, seen, lease, pending)


def renew_errors(session: Session, now: int, fetch: Claim) -> bool:
    """Hold a claimed fetching for longer; False if it is another node's by now."""
    until = now + LEASE_MS
    longer = case((JobRow.errors_at > until, JobRow.errors_at), else_=until)
    return _move_errors(session, fetch, longer)


def end_errors(session: Session, fetch: Claim) -> bool:
    """End a claimed fetching; False if the job was reset, or erased, meanwhile."""
    return _move_errors(session, fetch, None)


def _move_errors(session: Session, fetch: Claim, errors_at: object) -> bool:
    seen, pending = {"errors_tries": fetch.tries + 1}, JobRow.errors_at.is_not(None)
    return claim(session, JobRow, fetch.key, seen, {"errors_at": errors_at}, pending)


def _errors_due(now: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JobRow.errors_at.is_not(None), is_due(JobRow.errors_at, now, MAX_FETCH_PAUSE_MS)


# --- files, the vendor's queue, outages


def downloads(session: Session, instance: str, now: int) -> Sequence[tuple[str, str | None]]:
    """Return (id, object) of ended downloads whose files the vendor should still have."""
    jobs = select(JobRow.id, JobRow.registers).join(Facet, Facet.facet == JobRow.facet)
    ended = Facet.direction == "DOWNLOAD", Facet.outcome.in_(("succeeded", "partial"))
    of_instance = Facet.instance == instance, JobRow.instance == instance
    rows = session.execute(
        jobs.where(*of_instance, *ended, JobRow.files_expire_at > now).order_by(
            JobRow.files_expire_at
        )
    )
    return [(id_, Job.decode(registers).text("object")) for id_, registers in rows]


def note_fetched(session: Session, job: str, instance: str, now: int) -> None:
    """Remember that a job's file was fetched, whole."""
    new = upsert(session, Fetch).values(job=job, instance=instance, at=now)
    session.execute(
        new.on_conflict_do_update(index_elements=[Fetch.job, Fetch.instance], set_={"at": now})
    )


def note_queued(session: Session, instance: str, now: int, queued: int | None = None) -> bool:
    """Record how many deliveries the vendor holds back; without a number, claim the question.

    False if another node claimed it lately.
    """
    values = {"queued_asked_at": now, **({} if queued is None else {"queued": queued})}
    turn = {"instance": instance, "next_at": 0, "failures": 0, "blocked_until": 0}
    recent = Pace.queued_asked_at.between(now - QUEUE_MS + 1, now)
    due = or_(Pace.queued_asked_at.is_(None), ~recent) if queued is None else None
    statement = upsert(session, Pace).values(**turn, **values)
    statement = statement.on_conflict_do_update(
        index_elements=[Pace.instance], set_=values, where=due
    )
    return session.scalar(statement.returning(Pace.instance)) is not None


def beat(session: Session, now: int) -> bool:
    """Record that a node lives; True if none did for a while, and polls were brought forward."""
    last = session.scalar(select(Heartbeat.at)) or 0
    at = now if last > now + OUTAGE_MS else max(now, last)  # far ahead: a clock was wrong
    if not claim(session, Heartbeat, {}, {"at": last}, {"at": at}):
        return False
    if last == 0 or now - last < OUTAGE_MS:
        return False
    # Not all of a million: callbacks would wait for their rows. These alone take hours to ask for.
    longest = (
        select(JobRow.instance, JobRow.id)
        .where(IS_UNDER_WAY)
        .order_by(JobRow.first_seen_at)
        .limit(MAX_POLLS_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    forward = update(JobRow).where(tuple_(JobRow.instance, JobRow.id).in_(longest))
    aside = {"synchronize_session": False}
    session.execute(forward.values(poll_at=now).execution_options(**aside))
    return True
