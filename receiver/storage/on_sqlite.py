"""The hot path's statements as SQLite takes them; what they do is told in `statements`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from receiver.clock import MINUTE_MS
from receiver.storage.models import FORGOTTEN
from receiver.storage.rows import Changes, EventRow, JobValues, KeptEvents, Place, StoredJob


class OnSQLite:
    """As SQLite takes them."""

    def __init__(self, cursor: Any) -> None:  # noqa: ANN401 - sqlite3's
        self._cursor = cursor

    def now(self, clock: Callable[[], int]) -> int:
        """See Statements."""
        return clock()

    def keep_events(self, rows: Sequence[EventRow], clock: Callable[[], int]) -> KeptEvents:
        """See Statements."""
        now = clock()
        version = self._cursor.execute(_KEY_VERSION).fetchone()[0]
        ids, forgotten = {}, set()
        for row in rows:
            if row.key_version == version:
                kept = self._cursor.execute(_SQLITE_EVENT, (now, *row[:-1])).fetchone()
                ids[row.instance, row.sha256] = kept[0]
                if kept[1] == FORGOTTEN:
                    forgotten.add((row.instance, row.sha256))
        return KeptEvents(now, version, ids, sorted({row.key for row in rows}), forgotten)

    def note_keys(self, keys: Iterable[str], now: int) -> None:
        """See Statements."""
        for key in keys:
            self._cursor.execute(_SQLITE_KEY, (now, key, now - MINUTE_MS))

    def known_jobs(self, places: Sequence[Place]) -> list[StoredJob]:
        """See Statements."""
        found = (self._cursor.execute(_SQLITE_JOB, place).fetchone() for place in places)
        return [StoredJob(*row) for row in found if row is not None]

    def add_jobs(self, rows: Sequence[JobValues]) -> list[StoredJob]:
        """See Statements. None was there: who holds the lock has looked."""
        self._cursor.executemany(_SQLITE_NEW_JOB, rows)
        return []

    def write(self, changes: Changes) -> None:
        """See Statements."""
        for statement, rows in zip(_SQLITE_CHANGES, changes, strict=True):
            if rows:
                self._cursor.executemany(statement, rows)


_KEY_VERSION = "SELECT version FROM key_version"
_SQLITE_EVENT = """
INSERT INTO events (received_at, last_received_at, id, instance, sha256, kind, job, deliveries, key,
                    size, webhook_id)
VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
ON CONFLICT (instance, sha256) DO UPDATE
SET deliveries = deliveries + excluded.deliveries,
    last_received_at = max(last_received_at, excluded.last_received_at)
RETURNING id, received_at"""
_SQLITE_KEY = """
UPDATE signature_keys SET last_used_at = ?1
WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at < ?3)"""
_SQLITE_JOB = """
SELECT id, instance, registers, revision, events, updated_at, outcome, files_expire_at,
       callback_due, callback_lost, client_url, errors_at, errors_tries
FROM jobs WHERE id = ? AND instance = ?"""
_SQLITE_NEW_JOB = """
INSERT INTO jobs (registers, revision, events, updated_at, status, outcome, object, direction,
                  learnt_by, files_expire_at, callback_due, callback_lost, client_url, errors_at,
                  errors_tries, id, instance, first_seen_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?4)"""
_SQLITE_CHANGES = (
    "INSERT INTO bodies (event, body) VALUES (?, ?)",
    """
UPDATE jobs SET registers = ?, revision = ?, events = ?, updated_at = ?, status = ?, outcome = ?,
                object = ?, direction = ?, learnt_by = ?, files_expire_at = ?, callback_due = ?,
                callback_lost = ?, client_url = ?, errors_at = ?, errors_tries = ?
WHERE id = ? AND instance = ?""",
    """
INSERT INTO timeline (job, instance, at, source, status, changed, note, event)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
    """
INSERT INTO counters (measure, bucket, instance, slot, n) VALUES (?, ?, ?, 0, ?)
ON CONFLICT (measure, bucket, instance, slot) DO UPDATE
SET n = CASE measure WHEN 'last_callback_at' THEN max(n, excluded.n) ELSE n + excluded.n END""",
)
