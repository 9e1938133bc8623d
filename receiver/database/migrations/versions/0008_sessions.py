"""Who is signed in at the dashboard, and an index of the jobs whose callback was lost."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("notice", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("sha256"),
    )
    lost = sa.text("callback_lost")
    op.create_index(
        "jobs_lost",
        "jobs",
        ["updated_at", "id", "instance"],
        sqlite_where=lost,
        postgresql_where=lost,
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_index("jobs_lost", "jobs")
    op.drop_table("sessions")
