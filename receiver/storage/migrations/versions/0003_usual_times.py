"""How long jobs usually take."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "usual_times",
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("object", sa.String(length=200), nullable=False),
        sa.Column("ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance", "object"),
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_table("usual_times")
