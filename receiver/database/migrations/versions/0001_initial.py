"""Make all tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
_JOB = sa.String(200).with_variant(sa.String(200, collation="C"), "postgresql")

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
# Tables of one row.
_ROWS = (
    "key_version (id, version) VALUES (1, 0)",
    "heartbeat (id, at) VALUES (1, 0)",
    "retention (id, next_at, bodies_before, events_before, errors_before) VALUES (1, 0, 0, 0, 0)",
    "watch (id, holder, until) VALUES (1, '', 0)",
)


def upgrade() -> None:
    """Make them."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE SEQUENCE event_numbers INCREMENT 256 MINVALUE 0 START 0")
    _make_tables()
    _make_outbound_tables()
    for row in _ROWS:
        op.execute(f"INSERT INTO {row}")
    head = sa.table("audit_head", sa.column("id"), sa.column("entries"), sa.column("hash"))
    op.bulk_insert(head, [{"id": 1, "entries": 0, "hash": b"\0" * 32}])
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


def _where(condition: str) -> dict[str, Any]:
    some = sa.text(condition)
    return {"sqlite_where": some, "postgresql_where": some}


def _make_tables() -> None:
    op.create_table(
        "alarms",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("raised_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("examples", sa.Text(), nullable=False),
        sa.Column("newest", sa.BigInteger(), nullable=False),
        sa.Column("news_newest", sa.BigInteger(), nullable=False),
        sa.Column("news_at", sa.BigInteger(), nullable=False),
        sa.Column("notified_at", sa.BigInteger()),
        sa.Column("cleared_at", sa.BigInteger()),
        sa.Column("clear_notified_at", sa.BigInteger()),
        sa.Column("handled_at", sa.BigInteger()),
        sa.Column("handled_by", sa.Text()),
        sa.Column("note", sa.Text()),
        sa.Column("snoozed_until", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("alarms_by_time", "alarms", ["raised_at", "id"])
    op.create_index(
        "alarms_open",
        "alarms",
        ["kind", "subject", "instance"],
        unique=True,
        **_where("cleared_at IS NULL"),
    )
    op.create_table(
        "audit",
        sa.Column("id", _ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("request", sa.Text()),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "counts",
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("facet", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("slot", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "facet", "slot"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("n", _ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("job", _JOB, nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("deliveries", sa.BigInteger(), nullable=False),
        sa.Column("last_received_at", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("webhook_id", sa.Text()),
        sa.Column("headers", sa.Text()),
        sa.Column("peer", sa.Text()),
        sa.Column("status", sa.Text()),
        sa.Column("changed", sa.Text()),
        sa.Column("note", sa.Text()),
        sa.Column("body", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("n"),
    )
    op.create_index("events_by_instance", "events", ["instance", "n"])
    op.create_index("events_by_kind", "events", ["kind", "n"], **_where("kind <> 'bulk_job'"))
    op.create_index("events_identity", "events", ["instance", "job", "sha256"], unique=True)
    op.create_table(
        "facets",
        sa.Column("facet", _ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("status", sa.Text()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("object", sa.Text()),
        sa.Column("direction", sa.Text()),
        sa.Column("callback_lost", sa.Boolean(), nullable=False),
        sa.Column("other", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("facet"),
    )
    op.create_index("facets_by_instance", "facets", ["instance"])
    op.create_table(
        "fetches",
        sa.Column("job", _JOB, nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job", "instance"),
    )
    op.create_index("fetches_by_time", "fetches", ["at"])
    op.create_table(
        "heartbeat",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("steady_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "instances",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("hub", sa.Text()),
        sa.Column("element_token", sa.LargeBinary()),
        sa.Column("user_secret", sa.LargeBinary()),
        sa.Column("organization_secret", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", _JOB, nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("facet", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("files_expire_at", sa.BigInteger()),
        sa.Column("callback_due", sa.Boolean(), nullable=False),
        sa.Column("learnt_by", sa.Text()),
        sa.Column("client_url", sa.Text()),
        sa.Column("under_way", sa.Boolean(), nullable=False),
        sa.Column("poll_at", sa.BigInteger()),
        sa.Column("polls", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("misses", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("missing_since", sa.BigInteger()),
        sa.Column("closed_at", sa.BigInteger()),
        sa.Column("errors_at", sa.BigInteger()),
        sa.Column("errors_tries", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("registers", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", "instance"),
    )
    key = ["id", "instance"]
    op.create_index("jobs_by_change", "jobs", ["updated_at", *key])
    by_expiry = ["files_expire_at", *key]
    op.create_index("jobs_by_expiry", "jobs", by_expiry, **_where("files_expire_at IS NOT NULL"))
    op.create_index("jobs_by_facet", "jobs", ["facet", "updated_at", *key])
    under_way = ["facet", "first_seen_at", "under_way", *key]
    op.create_index("jobs_under_way", "jobs", under_way, **_where("under_way"))
    op.create_index(
        "jobs_with_errors_due", "jobs", ["instance", "errors_at"], **_where("errors_at IS NOT NULL")
    )
    op.create_table(
        "key_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("failing_since", sa.BigInteger()),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "paces",
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("blocked_until", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("queued", sa.BigInteger()),
        sa.Column("queued_asked_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("instance"),
    )
    op.create_table(
        "questions",
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("id", _JOB, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance", "id"),
    )
    op.create_table(
        "record_errors",
        sa.Column("job", _JOB, nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job", "instance", "position"),
    )
    op.create_table(
        "refused_addresses",
        sa.Column("peer", sa.String(length=64), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("peer"),
    )
    op.create_table(
        "rejection_counts",
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "reason", "instance"),
    )
    op.create_table(
        "rejections",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("signature", sa.LargeBinary()),
        sa.Column("body", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("rejections_by_time", "rejections", ["at", "id"])
    op.create_table(
        "retention",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("bodies_before", sa.BigInteger(), nullable=False),
        sa.Column("events_before", sa.BigInteger(), nullable=False),
        sa.Column("errors_before", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "sessions",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("notice", sa.Text()),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("object", sa.Text()),
        sa.Column("file", sa.Text()),
        sa.Column("submitted", sa.BigInteger()),
        sa.Column("submitted_by", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("job", _JOB),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("submissions_by_state", "submissions", ["state", "at"])
    op.create_table(
        "timeline",
        sa.Column("n", _ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("job", _JOB, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("status", sa.Text()),
        sa.Column("changed", sa.Text(), nullable=False),
        sa.Column("note", sa.Text()),
        sa.PrimaryKeyConstraint("n"),
    )
    op.create_index("timeline_by_job", "timeline", ["instance", "job"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("instances", sa.Text()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "usual_times",
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("object", sa.String(length=200), nullable=False),
        sa.Column("ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance", "object"),
    )
    op.create_table(
        "watch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=32), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "signature_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger()),
        sa.Column("last_used_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(["instance"], ["instances.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )


def _make_outbound_tables() -> None:
    op.create_table(
        "outbound_deliveries",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subscription", sa.String(64)),
        sa.Column("type", sa.String(32)),
        sa.Column("instance", _NAME),
        sa.Column("job", _JOB),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), server_default="waiting", nullable=False),
        sa.Column("tries", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("next_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "outbound_waiting",
        "outbound_deliveries",
        ["host", "next_at", "kind"],
        **_where("next_at IS NOT NULL"),
    )
    op.create_index("outbound_by_job", "outbound_deliveries", ["job", "instance"])
    op.create_index(
        "outbound_once",
        "outbound_deliveries",
        ["webhook_id"],
        unique=True,
        **_where("job IS NULL OR type = 'job.overdue'"),
    )
    op.create_index(
        "outbound_by_subscription",
        "outbound_deliveries",
        ["subscription", "state", "id"],
        **_where("subscription IS NOT NULL"),
    )
    op.create_table(
        "outbound_attempts",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("delivery", _ROW_NUMBER, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.BigInteger()),
        sa.Column("error", sa.Text()),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["delivery"], ["outbound_deliveries.id"], ondelete="CASCADE"),
    )
    op.create_index("outbound_attempts_of", "outbound_attempts", ["delivery"])
    op.create_table(
        "schedules",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("instance", _NAME, nullable=False),
        sa.Column("object", sa.Text()),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("tz", sa.Text(), nullable=False),
        sa.Column("start_grace", sa.BigInteger(), nullable=False),
        sa.Column("run_grace", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("due_at", sa.BigInteger()),
        sa.Column("job", _JOB),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("judged_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "subscriptions",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("instances", sa.Text(), nullable=False),
        sa.Column("objects", sa.Text(), nullable=False),
        sa.Column("outcomes", sa.Text(), nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary()),
        sa.Column("previous_until", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.BigInteger()),
        sa.Column("disabled_for", sa.String(16)),
        sa.Column("failing_since", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name"),
    )
