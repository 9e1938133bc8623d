"""Counters for the summary, filled from the jobs that are there, and indexes for the rest of it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_FILLED = (
    """
INSERT INTO counters (measure, bucket, instance, slot, n)
SELECT outcome, 0, instance, 0, count(*) FROM jobs GROUP BY outcome, instance""",
    """
INSERT INTO counters (measure, bucket, instance, slot, n)
SELECT 'lost_callbacks', 0, instance, 0, count(*) FROM jobs
WHERE callback_lost GROUP BY instance""",
    """
INSERT INTO counters (measure, bucket, instance, slot, n)
SELECT outcome, files_expire_at / 3600000, instance, 0, count(*) FROM jobs
WHERE files_expire_at IS NOT NULL GROUP BY outcome, files_expire_at / 3600000, instance""",
    """
INSERT INTO counters (measure, bucket, instance, slot, n)
SELECT 'last_callback_at', 0, instance, 0, max(last_received_at) FROM events GROUP BY instance""",
    "INSERT INTO counters (measure, bucket, instance, slot, n) VALUES ('recounts', 0, '', 0, 0)",
)
_UNDER_WAY = sa.text("outcome IN ('pending', 'unknown')")
_UNREADABLE = sa.text("kind = 'unreadable'")


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "counters",
        sa.Column("measure", sa.String(length=32), nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("slot", sa.BigInteger(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("measure", "bucket", "instance", "slot"),
    )
    for statement in _FILLED:
        op.execute(statement)
    op.create_index(
        "jobs_under_way",
        "jobs",
        ["outcome", "first_seen_at", "instance", "object"],
        sqlite_where=_UNDER_WAY,
        postgresql_where=_UNDER_WAY,
    )
    op.create_index(
        "events_unreadable",
        "events",
        ["instance", "kind"],
        sqlite_where=_UNREADABLE,
        postgresql_where=_UNREADABLE,
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_index("events_unreadable", "events")
    op.drop_index("jobs_under_way", "jobs")
    op.drop_table("counters")
