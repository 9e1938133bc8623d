"""Make all tables, as the models have them.

With the first release they are to be written out here, since the models go on. Until then a change
of the models is enough. A step that adds to them fails while this one does so already.
"""

from alembic import op
from sqlalchemy import insert

import receiver.database.models.outbound  # noqa: F401 - its tables are made, too
from receiver.database.models import AuditHead, Base, Heartbeat, KeyVersion, Retention
from receiver.database.models.alarms import Watch

revision = "0001"
down_revision = None

# The audit can only be added to.
_SQLITE = (
    ("audit", "UPDATE", ""),
    ("audit", "DELETE", ""),
    # REPLACE deletes what is in its way without a trigger for that.
    ("audit", "INSERT", "WHEN NEW.id <> (SELECT entries + 1 FROM audit_head)"),
    ("audit_head", "DELETE", ""),
    ("audit_head", "UPDATE", "WHEN NEW.entries <> OLD.entries + 1"),
)
_REFUSE = """
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit can only be added to' USING ERRCODE = 'insufficient_privilege';
END $$
"""
_POSTGRESQL = (
    ("audit", "UPDATE OR DELETE OR TRUNCATE", "FOR EACH STATEMENT"),
    ("audit_head", "DELETE OR TRUNCATE", "FOR EACH STATEMENT"),
    ("audit_head", "UPDATE", "FOR EACH ROW WHEN (NEW.entries <> OLD.entries + 1)"),
)
# Of the tables that have one row.
_ROWS = (
    insert(KeyVersion).values(id=1, version=0),
    insert(Heartbeat).values(id=1, at=0),
    insert(Retention).values(id=1, next_at=0, bodies_before=0, events_before=0, errors_before=0),
    insert(Watch).values(id=1, holder="", until=0),
    insert(AuditHead).values(id=1, entries=0, hash=b"\0" * 32),
)


def upgrade() -> None:
    """Make them."""
    Base.metadata.create_all(op.get_bind(), checkfirst=False)
    for row in _ROWS:
        op.execute(row)
    _protect_audit()


def _protect_audit() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for number, (table, change, when) in enumerate(_SQLITE):
            op.execute(
                f"CREATE TRIGGER audit_refuses_{number} BEFORE {change} ON {table} {when}"
                " BEGIN SELECT RAISE(ABORT, 'the audit can only be added to'); END"
            )
        return
    op.execute(_REFUSE)
    for number, (table, change, when) in enumerate(_POSTGRESQL):
        op.execute(
            f"CREATE TRIGGER audit_refuses_{number} BEFORE {change} ON {table} {when}"
            " EXECUTE FUNCTION refuse_audit_change()"
        )
