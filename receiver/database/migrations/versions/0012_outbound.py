"""One queue of what others are told, with each attempt; the time that a clock is trusted to."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_WAITING = sa.text("next_at IS NOT NULL")


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "outbound_deliveries",
        sa.Column("id", _number(), autoincrement=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subscription", sa.String(length=64), nullable=True),
        sa.Column("instance", sa.String(length=64), nullable=True),
        sa.Column("job", sa.String(length=200), nullable=True),
        sa.Column("webhook_id", sa.String(length=64), nullable=False),
        sa.Column("order_key", sa.String(length=300), nullable=True),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("webhook_id"),
    )
    for name, columns in (
        ("outbound_waiting", ["host", "next_at", "kind"]),
        ("outbound_in_order", ["order_key", "id"]),
    ):
        op.create_index(
            name, "outbound_deliveries", columns, sqlite_where=_WAITING, postgresql_where=_WAITING
        )
    op.create_index("outbound_by_job", "outbound_deliveries", ["job", "instance"])
    op.create_table(
        "outbound_attempts",
        sa.Column("id", _number(), autoincrement=True),
        sa.Column("delivery", _number(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["delivery"], ["outbound_deliveries.id"], ondelete="CASCADE"),
    )
    op.create_index("outbound_attempts_of", "outbound_attempts", ["delivery"])
    with op.batch_alter_table("heartbeat") as heartbeat:
        heartbeat.add_column(
            sa.Column("steady_at", sa.BigInteger(), server_default="0", nullable=False)
        )
    op.drop_table("forwards")
    op.drop_table("notices")


def downgrade() -> None:
    """Take it back."""
    op.create_table(
        "forwards",
        sa.Column("id", _number(), autoincrement=True),
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
        "notices",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=16), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.Column("sent_at", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("notices_by_turn", "notices", ["next_at"])
    op.create_index("notices_by_time", "notices", ["made_at"])
    op.drop_column("heartbeat", "steady_at")
    op.drop_table("outbound_attempts")
    op.drop_table("outbound_deliveries")
