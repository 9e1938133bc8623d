"""Every counter, histogram and gauge, declared here and nowhere else.

Labels come from fixed sets or from instances that exist, never from what a stranger sent. What the
database knows is read when it is asked for, by `Stored`: each node says the same, so that the
greatest over all nodes is right, and a sum is not. An instance of the vendor's is a `connector`
here: `instance` is Prometheus' word for whom it asked.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeAlias

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)

CALLBACKS = Counter(
    "receiver_callbacks",
    "Callbacks, by connector instance ('' if unknown), kind ('' if not read) and answer:"
    " new, duplicate, rejected, ignored, broken or unavailable",
    ("connector", "kind", "answer"),
)
STALE_REPLAYS = Counter(
    "receiver_stale_replays",
    "Callbacks whose event had been pruned when they came again",
    ("connector",),
)
REJECTIONS = Counter(
    "receiver_rejections", "Deliveries that were not taken, by the reason", ("reason",)
)
THROTTLED = Counter(
    "receiver_throttled",
    "Requests to the API that were too many, by what was counted: a token's, an address's, streams",
    ("what",),
)
ANSWERS = Counter(
    "receiver_answers",
    "HTTP answers, by room (callbacks, api, vendor, ops, dashboard) and class of status",
    ("room", "status"),
)
BATCH_SIZE = Histogram(
    "receiver_batch_size",
    "Items that share one transaction",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
COMMIT_SECONDS = Histogram(
    "receiver_commit_seconds", "Time to write one batch, commit included", buckets=_SHORT
)
QUEUE_LENGTH = Gauge(
    "receiver_queue_length",
    "Items that wait to be written",
    # Each worker has a queue of its own, and that of a dead one is gone with it.
    multiprocess_mode="livesum",
)
STREAMS = Gauge(
    "receiver_streams",
    "Streams of events that are open, of at most 64 in a process",
    multiprocess_mode="livesum",
)
LEARNT_SECONDS = Histogram(
    "receiver_learnt_seconds",
    "From the end of a job, by the vendor's clock, until we knew of it, by callback or poll",
    ("by",),
    buckets=_LONG,
)
VENDOR_SECONDS = Histogram(
    "receiver_upstream_seconds",
    "Calls to the vendor, each try, by call and class of status ('none': no answer)",
    ("call", "status"),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
DELIVERIES = Counter(
    "receiver_deliveries",
    "Attempts to deliver to a subscription, and what they made of the delivery: delivered, waiting"
    " (for another attempt) or failed",
    ("subscription", "result"),
)

# A labelled child is found in a dictionary of its own: `labels` takes longer than counting does.
callbacks = cache(CALLBACKS.labels)
learnt_by = cache(LEARNT_SECONDS.labels)
answers = cache(lambda room, status: ANSWERS.labels(room, f"{status // 100}xx"))


_counts: dict[Counter, int] = {}


def count(child: Counter) -> None:
    """Count one more of what comes in batches: `write_counts` is to follow, in the same thread."""
    _counts[child] = _counts.get(child, 0) + 1


def write_counts() -> None:
    """Write what was counted: each time takes a lock and a page that processes share."""
    while _counts:
        child, number = _counts.popitem()
        child.inc(number)


# What the database knows: (label or None, help), by the end of the name.
STORED: Mapping[str, tuple[str | None, str]] = {
    "database_up": (None, "Whether the database could be read"),
    "overdue_jobs": (None, "Jobs in progress for longer than is usual"),
    "oldest_job_seconds": (None, "Age of the oldest job in progress; 0 if there is none"),
    "lost_callbacks": (None, "Jobs whose end was detected by polling though a callback was due"),
    "unreadable_events": (None, "Verified events that could not be read"),
    "expiring_files": (None, "Jobs, uploads too, whose files the vendor deletes within a day"),
    "rejections_hour": (None, "Deliveries rejected within the last hour"),
    "queued_at_vendor": (None, "Deliveries that the vendor holds back for us"),
    "unclear_submissions": (None, "Uploads with unknown result"),
    "jobs": ("outcome", "Jobs by outcome"),
    "last_callback_timestamp_seconds": ("connector", "When an instance's last callback came"),
    "alarms": ("kind", "Open alarms"),
    "open_alarms": ("severity", "Open alarms, those acknowledged or snoozed too"),
    "schedules": (
        "state",
        "Expected schedules: on_time, waiting, late_to_start, running_late, missed, broken",
    ),
    "oldest_delivery_seconds": (
        "subscription",
        "Age of the oldest delivery that waits for a subscription; 0 if none does",
    ),
    "disk_free_bytes": ("place", "Free space where the receiver writes"),
    "disk_free_ratio": ("place", "The same as a part of the whole"),
    "info": ("version", "Which release runs"),
}
# By name, those with a label by its value too; times in seconds. None: not known now.
Measured: TypeAlias = Mapping[str, float | Mapping[str, float] | None]


class Stored(Collector):
    """The gauges of STORED, read when they are asked for."""

    def __init__(self, read: Callable[[], Measured]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering this must not read."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read, and return all that is known."""
        for name, value in self._read().items():
            label, text = STORED[name]
            full_name = f"receiver_{name}"
            if label and isinstance(value, Mapping):
                family: Any = GaugeMetricFamily(full_name, text, labels=[label])
                for labelled, number in sorted(value.items()):
                    family.add_metric([labelled], number)
                yield family
            elif isinstance(value, (int, float)):
                yield GaugeMetricFamily(full_name, text, value)
