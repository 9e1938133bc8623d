"""How long jobs of an object usually take, so that those that take longer are overdue."""

from sqlalchemy import select

from receiver.database.engine import Database, upsert
from receiver.database.models import IS_UNDER_WAY, JobRow, UsualTime
from receiver.jobs.projection import MAX_FACET_TEXT
from receiver.jobs.queries import ENDED, Filters, list_jobs

LEARNT_FROM = 500  # ended jobs
ENOUGH_TO_LEARN = 5
MIN_USUAL_MS = 1_000


def learn_all_usual_times(database: Database) -> None:
    """Learn the usual times of all instances that have jobs under way."""
    waiting = select(JobRow.instance).where(IS_UNDER_WAY).distinct()
    for row in database.rows(waiting):
        learn_usual_times(database, row.instance)


def learn_usual_times(database: Database, instance: str) -> None:
    """Learn from the latest ended jobs of an instance how long those of each object take.

    It is twice the 95th percentile. A job that was over when first heard of does not count.
    """
    times: dict[str, list[int]] = {}
    latest = Filters(instances=[instance], outcomes=ENDED)
    for record in list_jobs(database, latest, LEARNT_FROM):
        took = (record.job.ended_at or 0) - record.first_seen_at
        if took > 0:
            times.setdefault((record.job.text("object") or "")[:MAX_FACET_TEXT], []).append(took)
    rows = [
        {
            "instance": instance,
            "object": name,
            "ms": max(MIN_USUAL_MS, 2 * sorted(took)[(len(took) - 1) * 19 // 20]),
        }
        for name, took in sorted(times.items())
        if len(took) >= ENOUGH_TO_LEARN
    ]
    if rows:
        with database.write() as session:
            new = upsert(session, UsualTime)
            statement = new.on_conflict_do_update(
                index_elements=[UsualTime.instance, UsualTime.object], set_={"ms": new.excluded.ms}
            )
            session.execute(statement, rows)
