"""An index for jobs whose errors are to be fetched: of an instance, and of these jobs alone."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_DUE = sa.text("errors_at IS NOT NULL")


def upgrade() -> None:
    """Make the change."""
    op.create_index(
        "jobs_with_errors_due",
        "jobs",
        ["instance", "errors_at"],
        sqlite_where=_DUE,
        postgresql_where=_DUE,
    )
    op.drop_index("jobs_by_errors", "jobs")


def downgrade() -> None:
    """Take it back."""
    op.create_index("jobs_by_errors", "jobs", ["errors_at"])
    op.drop_index("jobs_with_errors_due", "jobs")
