"""Jobs of which endings were told that contradict each other: the vendor is to be asked."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_CONTESTED = sa.text("contested")


def upgrade() -> None:
    """Make the change."""
    op.add_column(
        "jobs",
        sa.Column("contested", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.create_index(
        "jobs_contested",
        "jobs",
        ["instance"],
        sqlite_where=_CONTESTED,
        postgresql_where=_CONTESTED,
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_index("jobs_contested", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("contested")
