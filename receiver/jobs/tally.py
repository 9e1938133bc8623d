"""What a batch changes of the counters that the summary is made from.

A job is counted under its outcome, under `lost_callbacks` if its callback never came, and under its
outcome once more in the hour in which its files expire. `last_callback_at` is a time, of which the
latest is kept.
"""

from collections import defaultdict
from typing import TypeAlias

from receiver.jobs.rows import Count, JobValues, StoredJob
from receiver.lib.clock import HOUR_MS

LOST = "lost_callbacks"
LAST_CALLBACK = "last_callback_at"

Tally: TypeAlias = defaultdict[tuple[str, int, str], int]  # by (measure, bucket, instance)


def count_job(tally: Tally, row: JobValues | StoredJob, by: int) -> None:
    """Count a job `by` more times in all places where its row belongs."""
    tally[row.outcome, 0, row.instance] += by
    if row.callback_lost:
        tally[LOST, 0, row.instance] += by
    if row.files_expire_at is not None:
        tally[row.outcome, row.files_expire_at // HOUR_MS, row.instance] += by


def counts(tally: Tally) -> list[Count]:
    """Give what a tally changes, in the order in which all nodes write it."""
    return sorted((*place, n) for place, n in tally.items() if n)
