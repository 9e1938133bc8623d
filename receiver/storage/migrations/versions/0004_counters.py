"""Counters for the summary, filled from the jobs that are there, and indexes for the rest of it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_HOUR_MS = 3_600_000
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
    for measure, bucket, n, rows in (
        ("outcome", "0", "count(*)", "jobs"),
        ("'lost_callbacks'", "0", "count(*)", "jobs WHERE callback_lost"),
        (
            "'expiring'",
            f"files_expire_at / {_HOUR_MS}",
            "count(*)",
            "jobs WHERE files_expire_at IS NOT NULL",
        ),
        ("'last_callback_at'", "0", "max(last_received_at)", "events"),
    ):
        op.execute(
            "INSERT INTO counters (measure, bucket, instance, slot, n)"  # noqa: S608 - all of it is ours
            f" SELECT {measure}, {bucket}, instance, 0, {n} FROM {rows} GROUP BY 1, 2, 3"
        )
    op.execute(
        "INSERT INTO counters (measure, bucket, instance, slot, n) VALUES ('recounts', 0, '', 0, 0)"
    )
    op.create_index(
        "jobs_under_way",
        "jobs",
        ["first_seen_at", "instance", "object"],
        sqlite_where=_UNDER_WAY,
        postgresql_where=_UNDER_WAY,
    )
    op.create_index(
        "events_unreadable",
        "events",
        ["instance"],
        sqlite_where=_UNREADABLE,
        postgresql_where=_UNREADABLE,
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_index("events_unreadable", "events")
    op.drop_index("jobs_under_way", "jobs")
    op.drop_table("counters")
