"""How long jobs usually take, and the secret that opens the vendor's queue of deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the change."""
    op.add_column("instances", sa.Column("organization_secret", sa.LargeBinary(), nullable=True))
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
    with op.batch_alter_table("instances") as instances:
        instances.drop_column("organization_secret")
