"""Submissions, polls, record errors, and what clients are to be told."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the change."""
    for column in (
        sa.Column("callback_due", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("callback_lost", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("client_url", sa.Text(), nullable=True),
        sa.Column("poll_at", sa.BigInteger(), nullable=True),
        sa.Column("polls", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("errors_at", sa.BigInteger(), nullable=True),
        sa.Column("errors_tries", sa.BigInteger(), server_default="0", nullable=False),
    ):
        op.add_column("jobs", column)
    op.create_index("jobs_by_errors", "jobs", ["errors_at"])
    op.create_table(
        "record_errors",
        sa.Column("job", sa.String(length=200), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job", "instance", "position"),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("object", sa.Text(), nullable=True),
        sa.Column("file", sa.Text(), nullable=True),
        sa.Column("submitted", sa.BigInteger(), nullable=True),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("submissions_by_state", "submissions", ["state", "at"])
    op.create_table(
        "forwards",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("job", sa.String(length=200), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("forwards_by_turn", "forwards", ["next_at"])
    op.create_table(
        "paces",
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("blocked_until", sa.BigInteger(), nullable=False),
        sa.Column("queued", sa.BigInteger(), nullable=True),
        sa.Column("queued_asked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("instance"),
    )
    op.create_table(
        "heartbeat",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.execute("INSERT INTO heartbeat (id, at) VALUES (1, 0)")


def downgrade() -> None:
    """Take it back."""
    for table in ("heartbeat", "paces", "forwards", "submissions", "record_errors"):
        op.drop_table(table)
    op.drop_index("jobs_by_errors", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        for column in (
            "errors_tries",
            "errors_at",
            "polls",
            "poll_at",
            "client_url",
            "callback_lost",
            "callback_due",
        ):
            jobs.drop_column(column)
