"""Who did what: an append-only chain of entries."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

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


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "audit",
        sa.Column("id", _ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(head, [{"id": 1, "entries": 0, "hash": b"\0" * 32}])
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


def downgrade() -> None:
    """Take it back."""
    op.drop_table("audit")
    op.drop_table("audit_head")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_audit_change()")
