"""Which jobs' files were fetched through us. Functions take a Session."""

from sqlalchemy.orm import Session

from receiver.database.alarm_models import Fetch
from receiver.database.engine import upsert


def note_fetched(session: Session, job: str, instance: str, now: int) -> None:
    """Remember that a job's file was fetched, whole."""
    new = upsert(session, Fetch).values(job=job, instance=instance, at=now)
    session.execute(
        new.on_conflict_do_update(index_elements=[Fetch.job, Fetch.instance], set_={"at": now})
    )
