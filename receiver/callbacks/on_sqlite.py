"""The hot path's statements as SQLite takes them; what they do is told in `statements`.

Many rows go into one statement, since sqlite3 lets go of the interpreter's lock at each: a loop
over rows would hand it to and fro with the thread that takes callbacks, at the cost of both. They
say OR FAIL since a batch that fails is rolled back whole: else SQLite keeps a journal for each of
these statements, so as to undo that one alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec

from receiver.database.models import FORGOTTEN
from receiver.jobs.rows import Changes, EventRow, JobValues, KeptEvents, Place, StoredJob
from receiver.lib.clock import MINUTE_MS

_MOST_ROWS = 32  # of a statement


class OnSQLite:
    """As SQLite takes them."""

    def __init__(self, cursor: Any) -> None:  # noqa: ANN401 - sqlite3's
        self._cursor = cursor

    def now(self, clock: Callable[[], int]) -> int:
        """See Statements."""
        return clock()

    def keep_events(self, rows: Sequence[EventRow], clock: Callable[[], int]) -> KeptEvents:
        """See Statements. Who holds the lock may look first."""
        now = clock()
        version, unnoted = self._cursor.execute(_KEYS, (now - MINUTE_MS,)).fetchone()
        current = [row for row in rows if row.key_version == version]
        ids = {(row.instance, row.sha256): row.id for row in current}
        found = list(self._selected(_KNOWN_EVENTS, list(ids)))
        known = {row[:2] for row in found}
        ids |= {(instance, sha256): id_ for instance, sha256, id_, _ in found}
        new = [row for row in current if (row.instance, row.sha256) not in known]
        again = [row for row in current if (row.instance, row.sha256) in known] if known else ()
        self._insert(_NEW_EVENTS, [(*row[:-1], now, now) for row in new])
        if again:
            seen = [(row.deliveries, now, row.instance, row.sha256) for row in again]
            self._cursor.executemany(_EVENT_AGAIN, seen)
        forgotten = {row[:2] for row in found if row[3] == FORGOTTEN}
        keys = {row.key for row in current} & set(msgspec.json.decode(unnoted))
        return KeptEvents(now, version, ids, sorted(keys), forgotten)

    def note_keys(self, keys: Iterable[str], now: int) -> None:
        """See Statements."""
        for key in keys:
            self._cursor.execute(_KEY, (now, key, now - MINUTE_MS))

    def known_jobs(self, places: Sequence[Place]) -> list[StoredJob]:
        """See Statements."""
        return [StoredJob(*row) for row in self._selected(_KNOWN_JOBS, places)]

    def add_jobs(self, rows: Sequence[JobValues]) -> list[StoredJob]:
        """See Statements. None was there: who holds the lock has looked."""
        self._insert(_NEW_JOBS, [(*row, row.updated_at) for row in rows])
        return []

    def write(self, changes: Changes) -> None:
        """See Statements."""
        self._insert(_NEW_BODIES, changes.bodies)
        if changes.jobs:
            self._cursor.executemany(_CHANGED_JOB, changes.jobs)
        self._insert(_NEW_ENTRIES, changes.entries)
        self._insert(_COUNTS, changes.counts)

    def _selected(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        for some in _pieces(rows):
            yield from self._cursor.execute(*_with_rows(statement, some)).fetchall()

    def _insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for some in _pieces(rows):
            self._cursor.execute(*_with_rows(statement, some))


def _pieces(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (rows[start : start + _MOST_ROWS] for start in range(0, len(rows), _MOST_ROWS))


def _with_rows(statement: str, rows: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """Give a statement for so many rows, and its values.

    Up to a power of two there are rows of NULLs, which join nothing and are not inserted: so few
    different statements are prepared, and each batch takes one of each kind.
    """
    columns = len(rows[0])
    slots = 1 << (len(rows) - 1).bit_length()
    values = list(chain.from_iterable(rows))
    return _text(statement, slots, columns), values + [None] * ((slots - len(rows)) * columns)


@lru_cache
def _text(statement: str, rows: int, columns: int) -> str:
    row = ", ".join("?" * columns)
    return statement.replace(":rows", ", ".join([f"({row})"] * rows))


_KEYS = """
SELECT version, (SELECT json_group_array(id) FROM signature_keys
                 WHERE last_used_at IS NULL OR last_used_at < ?)
FROM key_version"""
_KNOWN_EVENTS = """
WITH given (instance, sha256) AS (VALUES :rows)
SELECT events.instance, events.sha256, events.id, events.received_at
FROM given CROSS JOIN events USING (instance, sha256)"""
_NEW_EVENTS = """
INSERT OR FAIL INTO events (id, instance, sha256, kind, job, deliveries, key, size, webhook_id,
                            received_at, last_received_at)
SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL"""
_EVENT_AGAIN = """
UPDATE events SET deliveries = deliveries + ?, last_received_at = max(last_received_at, ?)
WHERE instance = ? AND sha256 = ?"""
_KEY = """
UPDATE signature_keys SET last_used_at = ?1
WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at < ?3)"""
_KNOWN_JOBS = """
WITH given (id, instance) AS (VALUES :rows)
SELECT jobs.id, jobs.instance, registers, revision, events, updated_at, outcome, files_expire_at,
       callback_due, callback_lost, client_url, errors_at, errors_tries
FROM given CROSS JOIN jobs USING (id, instance)"""
_NEW_JOBS = """
INSERT OR FAIL INTO jobs (registers, revision, events, updated_at, status, outcome, object,
                          direction, learnt_by, files_expire_at, callback_due, callback_lost,
                          client_url, errors_at, errors_tries, id, instance, first_seen_at)
SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL"""
_NEW_BODIES = """
INSERT OR FAIL INTO bodies (event, body)
SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL"""
_CHANGED_JOB = """
UPDATE jobs SET registers = ?, revision = ?, events = ?, updated_at = ?, status = ?, outcome = ?,
                object = ?, direction = ?, learnt_by = ?, files_expire_at = ?, callback_due = ?,
                callback_lost = ?, client_url = ?, errors_at = ?, errors_tries = ?
WHERE id = ? AND instance = ?"""
_NEW_ENTRIES = """
INSERT OR FAIL INTO timeline (job, instance, at, source, status, changed, note, event)
SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL"""
_COUNTS = """
INSERT INTO counters (measure, bucket, instance, slot, n)
SELECT column1, column2, column3, 0, column4 FROM (VALUES :rows) WHERE column1 IS NOT NULL
ON CONFLICT (measure, bucket, instance, slot) DO UPDATE
SET n = CASE measure WHEN 'last_callback_at' THEN max(n, excluded.n) ELSE n + excluded.n END"""
