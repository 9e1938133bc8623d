"""Every counter and histogram, declared here and nowhere else.

Labels come from fixed sets or from instances that exist, never from what a stranger sent.
"""

from prometheus_client import Counter, Histogram

CALLBACKS = Counter(
    "receiver_callbacks",
    "Verified callbacks that were stored, by instance, kind and whether they were there before",
    ("instance", "kind", "duplicate"),
)
REFUSALS = Counter(
    "receiver_refusals", "Deliveries that were not taken, by the reason", ("reason",)
)
THROTTLED = Counter(
    "receiver_throttled",
    "Requests to the API that were too many, by what was counted: a token's, or an address's",
    ("what",),
)
BATCH_SIZE = Histogram(
    "receiver_batch_size",
    "Items that share one transaction",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
COMMIT_SECONDS = Histogram(
    "receiver_commit_seconds",
    "Time to write one batch, commit included",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
