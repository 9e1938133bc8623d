"""Erasing what may be about people from a job, and keeping its outcome.

Goes: the bodies of its events, its failed records, message, file name and callback payload, what
its client was or would be sent and where, and the file name in its submission. Stays: status,
outcome, counts, times, the timeline (our own words and the vendor's status), hashes, deliveries and
headers.

Nothing brings it back: to the job the erasure is one more thing said of it (`job.erase`), and what
is stored for it later, by a callback, a poll or a replay, is stored without.
Out of reach: bodies that named the job but could not be read, or were rejected: these go by their
age; files that `reconcile --fetch-results` saved; and, until they are overwritten, backups, logs of
the database (SQLite's only where `Database.truncate_wal` fails) and PostgreSQL's dead rows.
"""

from sqlalchemy import delete, text, update
from sqlalchemy.orm import Session

from receiver.database.engine import affected
from receiver.database.models import Event, JobRow, RecordError, Submission
from receiver.database.models.outbound import OutboundDelivery
from receiver.database.retention import lock_retention
from receiver.jobs.job import Job, encode, erase

NOBODY = ""  # client_url of a job whose client is notified no more


def erase_job(session: Session, id_: str, instance: str, now: int) -> dict[str, int] | None:
    """Erase from a job; return the number of rows by kind, None if there is no such job."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("PRAGMA secure_delete = ON"))  # not only unlinked: overwritten
    lock_retention(session)  # before the job: retention locks in this order
    row = session.get(JobRow, {"id": id_, "instance": instance}, with_for_update=True)
    if row is None:
        return None
    row.registers = encode(erase(Job.decode(row.registers), now).registers)
    row.revision += 1
    row.updated_at = max(row.updated_at, now)
    row.client_url = NOBODY
    row.errors_at = None
    of_job = {"job": id_, "instance": instance}
    bodies = update(Event).filter_by(**of_job).where(Event.body.is_not(None)).values(body=None)
    files = update(Submission).filter_by(**of_job).values(file=None)
    return {
        "bodies": affected(session, bodies),
        "errors": affected(session, delete(RecordError).filter_by(**of_job)),
        "outbound": affected(session, delete(OutboundDelivery).filter_by(**of_job)),
        "submissions": affected(session, files),
    }
