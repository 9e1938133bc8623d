"""Reading the counters that the summary is made from, and putting them right.

They are kept in the transaction that changes what they count. Only an older release beside this one
changes jobs and counts nothing: `receiver db upgrade` and `receiver prune` count anew.
"""

from sqlalchemy import Delete, delete, select, text, tuple_, update

from receiver.callbacks.statements import statements
from receiver.database.engine import Database
from receiver.database.models import CounterRow
from receiver.instances.credentials import affected
from receiver.jobs.job import OUTCOMES
from receiver.jobs.rows import Changes
from receiver.jobs.tally import LAST_CALLBACK
from receiver.lib.clock import HOUR_MS

KEPT_HOURS = 31 * 24  # after the files expired; the picture of outcomes goes back so far
_RECOUNTS = "recounts"  # how often it was put right: whoever moves it on does it


def recount(database: Database, now: int) -> int:
    """Put right what is counted wrongly, without keeping anybody waiting; give how much that was.

    What is wrong stays as wrong while others go on counting, so it may be added later.
    """
    hour = now // HOUR_MS - KEPT_HOURS
    with database.read() as session:
        seen = session.scalar(_SEEN)
        if not database.is_sqlite:
            session.execute(text("SET LOCAL statement_timeout = 0"))
        # In one statement: of one moment.
        found = session.execute(_WRONG, {"hour": hour, "since": hour * HOUR_MS})
        wrong = [(row[0], row[1], row[2], int(row[3])) for row in found]
        last = [(LAST_CALLBACK, 0, row[0], row[1]) for row in session.execute(_LAST_CALLBACKS)]
    with database.write() as session:
        mine = update(CounterRow).where(CounterRow.measure == _RECOUNTS, CounterRow.n == seen)
        if not affected(session, mine.values(n=CounterRow.n + 1)):
            return 0  # somebody else did it just now
        statements(session.connection()).write(Changes([], [], [], sorted(wrong + last)))
        session.execute(_before(hour))
    return len(wrong)


def _before(hour: int) -> Delete:
    """Delete the counts of hours that are over: nobody asks for them any more."""
    place = CounterRow.measure, CounterRow.bucket, CounterRow.instance, CounterRow.slot
    hours = CounterRow.bucket > 0, CounterRow.bucket < hour
    over = select(*place).where(CounterRow.measure.in_(OUTCOMES), *hours)
    return delete(CounterRow).where(tuple_(*place).in_(over.with_for_update(skip_locked=True)))


_SEEN = select(CounterRow.n).where(CounterRow.measure == _RECOUNTS)
_LAST_CALLBACKS = text("SELECT instance, max(last_received_at) FROM events GROUP BY instance")
_WRONG = text("""
SELECT measure, bucket, instance, sum(n)
FROM (
    SELECT outcome AS measure, 0 AS bucket, instance, count(*) AS n FROM jobs
    GROUP BY outcome, instance
    UNION ALL
    SELECT 'lost_callbacks', 0, instance, count(*) FROM jobs WHERE callback_lost GROUP BY instance
    UNION ALL
    SELECT outcome, files_expire_at / 3600000, instance, count(*) FROM jobs
    WHERE files_expire_at >= :since GROUP BY outcome, files_expire_at / 3600000, instance
    UNION ALL
    SELECT measure, bucket, instance, -n FROM counters
    WHERE measure NOT IN ('last_callback_at', 'recounts') AND (bucket = 0 OR bucket >= :hour)
) AS counted
GROUP BY measure, bucket, instance HAVING sum(n) <> 0""")
