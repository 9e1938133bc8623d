"""The hot path's statements as PostgreSQL takes them; what they do is told in `statements`."""

import os
import socket
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from receiver.database.arrays import Blobs, Integers, Texts, Truths
from receiver.database.models import FORGOTTEN
from receiver.jobs.rows import Changes, EventRow, JobValues, KeptEvents, Place, StoredJob
from receiver.lib.clock import MINUTE_MS

SLOTS = 8  # of counters
_HOST = zlib.crc32(socket.gethostname().encode())


class OnPostgreSQL:
    """As PostgreSQL takes them."""

    def __init__(self, cursor: Any) -> None:  # noqa: ANN401 - psycopg's
        self._cursor = cursor

    def now(self, clock: Callable[[], int]) -> int:  # noqa: ARG002 - SQLite's way
        """See Statements."""
        return int(self._cursor.execute(_NOW).fetchone()[0])

    def keep_events(
        self,
        rows: Sequence[EventRow],
        clock: Callable[[], int],  # noqa: ARG002 - SQLite's way
    ) -> KeptEvents:
        """See Statements. The same trip tells the time and the keys' version."""
        columns = _columns(rows, _EVENT)
        found = self._cursor.execute(_EVENTS, [*columns, Texts(set(columns[6]))]).fetchall()
        now, version, keys = found[0][:3]
        kept = [row[3:] for row in found if row[3] is not None]
        ids = {(instance, sha256): id_ for instance, sha256, id_, _ in kept}
        forgotten = {(row[0], row[1]) for row in kept if row[3] == FORGOTTEN}
        return KeptEvents(now, version, ids, keys, forgotten)

    def note_keys(self, keys: Iterable[str], now: int) -> None:
        """See Statements."""
        for key in keys:
            self._cursor.execute(_KEY, (now, key, now - MINUTE_MS))

    def known_jobs(self, places: Sequence[Place]) -> list[StoredJob]:  # noqa: ARG002 - as it says
        """See Statements. None is: `add_jobs` tells it in a trip that it takes anyway."""
        return []

    def add_jobs(self, rows: Sequence[JobValues]) -> list[StoredJob]:
        """See Statements. One statement inserts and locks, as two could not keep the order."""
        found = self._cursor.execute(_NEW_JOBS, _columns(rows, _JOB)).fetchall()
        return [StoredJob(*row) for row in found]

    def write(self, changes: Changes) -> None:
        """See Statements."""
        bodies, jobs, entries, counts = map(_columns, changes, _WRITTEN)
        self._cursor.execute(_CHANGES, [*bodies, *jobs, *entries, _slot(), *counts])


def _slot() -> int:
    """Which rows of counters this process adds to, so that processes seldom wait for each other."""
    return (_HOST + os.getpid()) % SLOTS


def _columns(rows: Sequence[Any], types: Sequence[Any]) -> list[Any]:
    """Turn rows into an array for each column."""
    columns = zip(*rows, strict=True) if rows else [()] * len(types)
    return [array(column) for array, column in zip(types, columns, strict=True)]


_EVENT = (Texts, Texts, Blobs, Texts, Texts, Integers, Texts, Integers, Texts, Integers)
_JOB = (
    *(Texts, Integers, Integers, Integers, Texts, Texts, Texts, Texts, Texts),
    *(Integers, Truths, Truths, Texts, Integers, Integers, Texts, Texts),
)
_WRITTEN = (
    (Texts, Blobs),
    _JOB,
    (Texts, Texts, Integers, Texts, Texts, Texts, Texts, Texts),
    (Texts, Integers, Texts, Integers),
)

_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8"
_EVENTS = """
WITH instant AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8 AS now
), given AS (
    SELECT * FROM unnest(
        %s::text[], %s::text[], %s::bytea[], %s::text[], %s::text[], %s::int8[], %s::text[],
        %s::int8[], %s::text[], %s::int8[]
    ) WITH ORDINALITY AS g(id, instance, sha256, kind, job, deliveries, key, size, webhook_id,
                           key_version, place)
), present AS MATERIALIZED (
    SELECT now, version, ARRAY(
        SELECT id::text FROM signature_keys
        WHERE id = ANY(%s::text[]) AND (last_used_at IS NULL OR last_used_at < now - 60000)
        ORDER BY id
    ) AS keys
    FROM instant, key_version
), kept AS (
    INSERT INTO events (id, instance, sha256, kind, job, received_at, last_received_at, deliveries,
                        key, size, webhook_id)
    SELECT id, instance, sha256, kind, job, now, now, deliveries, key, size, webhook_id
    FROM given JOIN present ON key_version = version
    ORDER BY place
    ON CONFLICT (instance, sha256) DO UPDATE
    SET deliveries = events.deliveries + excluded.deliveries,
        last_received_at = greatest(events.last_received_at, excluded.last_received_at)
    RETURNING instance, sha256, id, received_at
)
SELECT now, version, keys, kept.* FROM present LEFT JOIN kept ON true"""
_KEY = """
UPDATE signature_keys SET last_used_at = %s
WHERE id = %s AND (last_used_at IS NULL OR last_used_at < %s)"""
# A revision below zero tells a job that was there from a new one; `_CHANGES` puts it right.
_NEW_JOBS = """
WITH locked AS (
    INSERT INTO jobs (registers, revision, events, updated_at, status, outcome, object, direction,
                      learnt_by, files_expire_at, callback_due, callback_lost, client_url,
                      errors_at, errors_tries, id, instance, first_seen_at)
    SELECT registers, revision, events, updated_at, status, outcome, object, direction, learnt_by,
           files_expire_at, callback_due, callback_lost, client_url, errors_at, errors_tries, id,
           instance, updated_at
    FROM unnest(
        %s::text[], %s::int8[], %s::int8[], %s::int8[], %s::text[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::int8[], %s::bool[], %s::bool[], %s::text[], %s::int8[],
        %s::int8[], %s::text[], %s::text[]
    ) WITH ORDINALITY AS g(registers, revision, events, updated_at, status, outcome, object,
                           direction, learnt_by, files_expire_at, callback_due, callback_lost,
                           client_url, errors_at, errors_tries, id, instance, place)
    ORDER BY place
    ON CONFLICT (id, instance) DO UPDATE SET revision = -1 - jobs.revision
    RETURNING id, instance, registers, revision, events, updated_at, outcome, files_expire_at,
              callback_due, callback_lost, client_url, errors_at, errors_tries
)
SELECT id, instance, registers, -1 - revision, events, updated_at, outcome, files_expire_at,
       callback_due, callback_lost, client_url, errors_at, errors_tries
FROM locked WHERE revision < 0"""
# Jobs by upsert, though all are there: that goes by the index whatever the planner thinks of a
# table that was empty when the statement was prepared.
_CHANGES = """
WITH new_bodies AS (
    INSERT INTO bodies (event, body) SELECT * FROM unnest(%s::text[], %s::bytea[])
), changed AS (
    INSERT INTO jobs (registers, revision, events, updated_at, status, outcome, object, direction,
                      learnt_by, files_expire_at, callback_due, callback_lost, client_url,
                      errors_at, errors_tries, id, instance, first_seen_at)
    SELECT *, 0 FROM unnest(
        %s::text[], %s::int8[], %s::int8[], %s::int8[], %s::text[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::int8[], %s::bool[], %s::bool[], %s::text[], %s::int8[],
        %s::int8[], %s::text[], %s::text[]
    )
    ON CONFLICT (id, instance) DO UPDATE
    SET registers = excluded.registers, revision = excluded.revision, events = excluded.events,
        updated_at = excluded.updated_at, status = excluded.status, outcome = excluded.outcome,
        object = excluded.object, direction = excluded.direction, learnt_by = excluded.learnt_by,
        files_expire_at = excluded.files_expire_at, callback_due = excluded.callback_due,
        callback_lost = excluded.callback_lost, client_url = excluded.client_url,
        errors_at = excluded.errors_at, errors_tries = excluded.errors_tries
), entries AS (
    INSERT INTO timeline (job, instance, at, source, status, changed, note, event)
    SELECT job, instance, at, source, status, changed, note, event
    FROM unnest(
        %s::text[], %s::text[], %s::int8[], %s::text[], %s::text[], %s::text[], %s::text[],
        %s::text[]
    ) WITH ORDINALITY AS g(job, instance, at, source, status, changed, note, event, place)
    ORDER BY place
)
INSERT INTO counters (measure, bucket, instance, slot, n)
SELECT measure, bucket, instance, %s::int8, n
FROM unnest(%s::text[], %s::int8[], %s::text[], %s::int8[])
     WITH ORDINALITY AS g(measure, bucket, instance, n, place)
ORDER BY place
ON CONFLICT (measure, bucket, instance, slot) DO UPDATE
SET n = CASE counters.measure WHEN 'last_callback_at' THEN greatest(counters.n, excluded.n)
        ELSE counters.n + excluded.n END"""
