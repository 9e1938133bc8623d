"""What was sent to the vendor to create a job, and what became of it. Functions take a Session.

A submission whose answer never came is unclear: the job may be there. It is linked to the job once
that stands in the vendor's list, or dismissed by hand.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import Database, database_time
from receiver.database.models import Submission
from receiver.jobs.projection import NewObservation
from receiver.lib.clock import HOUR_MS, MINUTE_MS
from receiver.openconnectors.notifications import Notification
from receiver.settings import Settings

MAX_SKEW_MS = 5 * MINUTE_MS  # of the vendor's clock
MAX_UPLOAD_MS = HOUR_MS  # from the sending to the job's creation


def begin_submission(session: Session, values: dict[str, Any]) -> str:
    """Record what is about to be sent; return the id of the submission."""
    submission_id = secrets.token_hex(16)
    session.add(Submission(id=submission_id, state="sending", job=None, **values))
    return submission_id


def end_submission(session: Session, submission_id: str, state: str) -> None:
    """Record what became of a submission that gave no job: refused or unclear."""
    session.execute(update(Submission).where(Submission.id == submission_id).values(state=state))


def list_unclear(
    database: Database,
    settings: Settings,
    clock: Callable[[], int],
    instances: Collection[str] | None = None,
) -> Sequence[Submission]:
    """Return submissions with unknown result: cut off, or their node died while sending.

    instances -- None is all.
    """
    with database.read() as session:
        before = database_time(session, clock) - settings.overdue_after
        stuck = and_(Submission.state == "sending", Submission.at < before)
        statement = select(Submission).where(or_(Submission.state == "unclear", stuck))
        if instances is not None:
            statement = statement.where(Submission.instance.in_(instances))
        return session.scalars(statement.order_by(Submission.at)).all()


def dismiss_submission(
    session: Session, submission_id: str, instances: Collection[str] | None
) -> Submission | None:
    """Look no longer for the job of a submission; None if its result is known, or out of reach.

    instances -- that are in reach; None is all.
    """
    if "\0" in submission_id:  # PostgreSQL cannot even be asked for it
        return None
    row = session.get(Submission, submission_id, with_for_update=True)
    if row is None or row.state not in ("sending", "unclear"):
        return None
    if instances is not None and row.instance not in instances:
        return None
    row.state = "dismissed"
    return row


def link(submission: Submission, notification: Notification) -> NewObservation | None:
    """Return the observation that links a listed job to an unclear submission; None: another's."""
    if submission.object is None or submission.object != notification.object:
        return None
    if notification.file is not None and notification.file != submission.file:
        return None
    reported, submitted = notification.reported, submission.submitted
    if notification.completed_at and reported is not None and submitted is not None:
        # What the vendor counts, all or those loaded, is not documented.
        counts = reported, reported + (notification.failed or 0)
        if submitted not in counts:
            return None
    if notification.created_at is not None:
        took = notification.created_at - submission.at
        if not -MAX_SKEW_MS <= took <= MAX_UPLOAD_MS:
            return None
    observed = notification.replace(
        source="submission",
        object=notification.object or submission.object,
        file=notification.file or submission.file,
        submitted=submission.submitted,
        submitted_at=submission.at,
    )
    note = "found in the vendor's job list; its upload was cut off"
    return NewObservation(
        submission.instance, observed, note, callback_due=True, submission=submission.id
    )
