"""Big tables quickly: a hundred jobs made by callbacks, then multiplied by SQL.

Columns come from our models, so a new column is copied like the others; what must differ from row
to row is named below. Tables that are not named stay as the first hundred callbacks left them.
"""

from collections.abc import Mapping

from bench import Bench
from bodies import FIRST_JOB, STYLES
from contenders import Contender, serve
from databases import Base
from machine import PYTHON, BenchError, free_port, run
from wrk import post

from receiver.database.models import Base as Models
from receiver.lib.clock import now_ms

DAYS = 180  # over which the rows' times are spread
FIRST = 100  # jobs made by callbacks
INSTANCES = 20
_STEP_ROWS = 100_000  # in one transaction
_TIMES = ("at", "received_at", "last_received_at", "first_seen_at", "updated_at", "files_expire_at")
_TABLES = ("events", "bodies", "jobs", "timeline")  # in the order of their foreign keys

_NOW = now_ms()
# An id begins with its time, so that rows of one time lie together as they would in earnest.
_ID = {
    "sqlite": "printf('%012x', {0}) || substr({1}, 13, 12) || printf('%08x', n)",
    "postgresql": "lpad(to_hex({0}), 12, '0') || substr({1}, 13, 12) || lpad(to_hex(n), 8, '0')",
}
_SHA256 = {
    "sqlite": "randomblob(32)",
    "postgresql": "sha256(convert_to(b.id || n::text, 'UTF8'))",
}
_NUMBERS = {
    "sqlite": "(WITH RECURSIVE c(n) AS (VALUES ({}) UNION ALL SELECT n + 1 FROM c WHERE n < {})"
    " SELECT n FROM c)",
    "postgresql": "generate_series({}, {}) AS s(n)",
}
_QUICK = {
    "sqlite": ["PRAGMA synchronous=OFF"],
    "postgresql": ["SET synchronous_commit=off"],
}
_TIDY = {
    "sqlite": ["PRAGMA wal_checkpoint(TRUNCATE)"],
    "postgresql": ["VACUUM ANALYZE", "CHECKPOINT"],
}


def seed(bench: Bench, contender: Contender, jobs: int) -> Base:
    """A database of ours with that many jobs, and five events with bodies for four of them."""
    base = bench.databases.migrated(str(contender.database))
    _first(bench, contender, base)
    times = jobs // FIRST
    statements = [*_QUICK[base.kind], *map(_copy, _TABLES)]
    step = _STEP_ROWS // FIRST
    for start in range(1, times, step):
        end = min(start + step, times) - 1
        numbers = _NUMBERS[base.kind].format(start, end)
        statements += [_multiply(base.kind, name, numbers, times) for name in _TABLES]
    statements += [f"DROP TABLE first_{name}" for name in _TABLES]
    base.execute([*statements, *_TIDY[base.kind]])
    # Copies of rows count nothing; this puts the counters right.
    run([PYTHON, "-m", "receiver", "db", "upgrade"], {"RECEIVER_DATABASE_URL": base.url()})
    found = base.rows("SELECT count(*) FROM jobs")[0][0]
    if found != times * FIRST:
        raise BenchError(f"seeded {found} jobs instead of {times * FIRST}")
    return base


def _first(bench: Bench, contender: Contender, base: Base) -> None:
    """Have our own receiver take callbacks until FIRST jobs are known, and keep only these."""
    port = free_port()
    with bench.started(serve(port, base), port, "/readyz", 200):
        bodies = bench.bodies.file("vendor")
        header = STYLES["vendor"].header
        post(port, contender.path, bodies, header, connections=4, seconds=1)
    first = ", ".join(f"'{FIRST_JOB + number}'" for number in _first_jobs())
    base.execute(
        [
            f"DELETE FROM bodies WHERE event IN (SELECT id FROM events WHERE job NOT IN ({first}))",
            f"DELETE FROM events WHERE job NOT IN ({first})",
            f"DELETE FROM timeline WHERE job NOT IN ({first})",
            f"DELETE FROM jobs WHERE id NOT IN ({first})",
            "UPDATE jobs SET errors_at = NULL",
        ]
    )
    # Numbered without gaps, so that any number in a range is a job.
    renumbering = []
    for place, number in enumerate(_first_jobs()):
        old, new = f"'{FIRST_JOB + number}'", f"'{FIRST_JOB + place}'"
        for table, column in (("events", "job"), ("timeline", "job"), ("jobs", "id")):
            renumbering.append(f"UPDATE {table} SET {column} = {new} WHERE {column} = {old}")
    base.execute(renumbering)


def _first_jobs() -> list[int]:
    """The numbers of the first jobs in the file of bodies: each fifth is no job of its own."""
    return [number for number in range(2 * FIRST) if number % 5 != 4][:FIRST]


def _copy(name: str) -> str:
    return f"CREATE TEMPORARY TABLE first_{name} AS SELECT * FROM {name}"


def _multiply(kind: str, name: str, numbers: str, times: int) -> str:
    columns = _differing(kind, name, times)
    names, values = ", ".join(columns), ", ".join(columns.values())
    return (
        f"INSERT INTO {name} ({names}) SELECT {values} FROM first_{name} AS b CROSS JOIN {numbers}"
    )


def _differing(kind: str, name: str, times: int) -> Mapping[str, str]:
    """Each column of a table, and what the n-th copy has in it."""
    table = Models.metadata.tables[name]
    apart = DAYS * 86_400_000 // times
    earlier = f"({times} - n) * CAST({apart} AS BIGINT)"
    values = {column.name: f"b.{column.name}" for column in table.columns}
    if table.autoincrement_column is not None:
        del values[table.autoincrement_column.name]  # the database numbers these itself
    job = f"CAST(CAST(b.{{}} AS BIGINT) + n * {FIRST} AS TEXT)"
    event = _ID[kind].format(f"{_NOW} - {earlier}", "{}")
    special = {
        "events": {"id": event.format("b.id"), "job": job.format("job"), "sha256": _SHA256[kind]},
        "bodies": {"event": event.format("b.event")},
        "jobs": {"id": job.format("id"), "errors_at": "NULL"},
        "timeline": {"job": job.format("job"), "event": event.format("b.event")},
    }
    shared = {"instance": f"'i' || CAST(n - n / {INSTANCES} * {INSTANCES} AS TEXT)"}
    shared |= {time: f"b.{time} - {earlier}" for time in _TIMES}
    known = {**shared, **special[name]}
    return {column: known.get(column, value) for column, value in values.items()}
