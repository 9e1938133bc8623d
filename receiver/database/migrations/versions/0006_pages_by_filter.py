"""Indexes that fit the filters of lists, in the order of their pages."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_PAGE = ["updated_at", "id", "instance"]
_NEW = {
    "jobs_by_instance": ("jobs", ["instance", "updated_at", "id"], None),
    "jobs_by_status": ("jobs", ["status", *_PAGE], "status IS NOT NULL"),
    "jobs_by_object": ("jobs", ["object", *_PAGE], "object IS NOT NULL"),
    "jobs_by_direction": ("jobs", ["direction", *_PAGE], "direction IS NOT NULL"),
    "jobs_by_age": ("jobs", ["instance", "first_seen_at", "id"], None),
    "events_by_instance": ("events", ["instance", "received_at", "id"], None),
    "events_by_kind": ("events", ["kind", "received_at", "id"], "kind <> 'bulk_job'"),
}


def upgrade() -> None:
    """Make the change."""
    for name, (table, columns, condition) in _NEW.items():
        some = None if condition is None else sa.text(condition)
        op.create_index(name, table, columns, sqlite_where=some, postgresql_where=some)
    op.drop_index("jobs_by_outcome", "jobs")
    op.create_index("jobs_by_outcome", "jobs", ["outcome", *_PAGE])
    op.drop_index("events_by_job", "events")
    op.create_index("events_by_job", "events", ["job", "received_at", "id"])


def downgrade() -> None:
    """Take it back."""
    op.drop_index("events_by_job", "events")
    op.create_index("events_by_job", "events", ["job", "instance"])
    op.drop_index("jobs_by_outcome", "jobs")
    op.create_index("jobs_by_outcome", "jobs", ["outcome", "updated_at"])
    for name, (table, _, _) in reversed(_NEW.items()):
        op.drop_index(name, table)
