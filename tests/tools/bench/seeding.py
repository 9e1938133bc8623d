"""Big tables quickly: a hundred jobs made by callbacks, then multiplied by SQL.

Columns come from our models, so a new column is copied like the others; what must differ from row
to row is named below. Tables that are not named stay as the first hundred callbacks left them.
"""

from collections.abc import Mapping, Sequence

from bench import Bench
from bodies import FIRST_JOB, STYLES
from contenders import Contender, serve
from databases import Base
from processes import ToolError, free_port
from wrk import post

from receiver.database.models import NUMBER_BITS
from receiver.database.models import Base as Models
from receiver.jobs.projection import FacetKey
from receiver.lib.clock import now_ms

DAYS = 180  # over which the rows' times are spread
FIRST = 100  # jobs made by callbacks
INSTANCES = 20
_STEP_ROWS = 100_000  # in one transaction
_TIMES = ("last_received_at", "first_seen_at", "updated_at", "files_expire_at")
_TABLES = ("events", "jobs")

_NOW = now_ms()
_SHA256 = {
    "sqlite": "randomblob(32)",
    "postgresql": "sha256(convert_to(b.n::text || s.n::text, 'UTF8'))",
}
_NUMBERS = {
    "sqlite": "(WITH RECURSIVE c(n) AS (VALUES ({}) UNION ALL SELECT n + 1 FROM c WHERE n < {})"
    " SELECT n FROM c)",
    "postgresql": "generate_series({}, {}) AS s(n)",
}
_QUICK = {"sqlite": ["PRAGMA synchronous=OFF"], "postgresql": ["SET synchronous_commit=off"]}
_TIDY = {
    "sqlite": ["PRAGMA wal_checkpoint(TRUNCATE)"],
    "postgresql": ["VACUUM ANALYZE", "CHECKPOINT"],
}


_INSTANCE = f"'i' || CAST(n - n / {INSTANCES} * {INSTANCES} AS TEXT)"
_COUNTED = "INSERT INTO counts (hour, facet, slot, n) SELECT {0}, facet, 0, count(*) FROM jobs"
_HOUR = "files_expire_at / 3600000"
_COUNT = (
    "DELETE FROM counts",
    f"{_COUNTED.format(0)} GROUP BY facet",
    f"{_COUNTED.format(_HOUR)} WHERE files_expire_at IS NOT NULL GROUP BY {_HOUR}, facet",
)


def seed(bench: Bench, contender: Contender, jobs: int, tables: Sequence[str] = _TABLES) -> Base:
    """A database of ours with that many jobs, and five events with bodies for four of them.

    tables -- that are filled.
    """
    base = bench.databases.migrated(str(contender.database))
    _first(bench, contender, base)
    times = jobs // FIRST
    statements = [*_QUICK[base.kind], *_facets(base), *map(_copy, tables)]
    step = _STEP_ROWS // FIRST
    for start in range(1, times, step):
        end = min(start + step, times) - 1
        numbers = _NUMBERS[base.kind].format(start, end)
        statements += [_multiply(base.kind, name, numbers, times) for name in tables]
    statements += [f"DROP TABLE first_{name}" for name in (*tables, "facets")]
    base.execute([*statements, *_COUNT, *_TIDY[base.kind]])
    found = base.rows("SELECT count(*) FROM jobs")[0][0]
    if found != times * FIRST:
        raise ToolError(f"seeded {found} jobs instead of {times * FIRST}")
    return base


def _first(bench: Bench, contender: Contender, base: Base) -> None:
    """Have our own receiver take callbacks until FIRST jobs are known, and keep only these."""
    port = free_port()
    with bench.started(serve(port, base), port, "/readyz", 200):
        bodies = bench.bodies.file("vendor")
        header = STYLES["vendor"].header
        post(port, contender.path, bodies, header, connections=4, seconds=3)
    first = ", ".join(f"'{FIRST_JOB + number}'" for number in _first_jobs())
    base.execute(
        [
            f"DELETE FROM events WHERE job NOT IN ({first})",
            f"DELETE FROM jobs WHERE id NOT IN ({first})",
            "UPDATE jobs SET errors_at = NULL",
        ]
    )
    # Numbered without gaps, so that any number in a range is a job.
    renumbering = []
    for place, number in enumerate(_first_jobs()):
        old, new = f"'{FIRST_JOB + number}'", f"'{FIRST_JOB + place}'"
        for table, column in (("events", "job"), ("jobs", "id")):
            renumbering.append(f"UPDATE {table} SET {column} = {new} WHERE {column} = {old}")
    base.execute(renumbering)


def _facets(base: Base) -> list[str]:
    """Make the facets of each instance, and a table of which stands for which of the first."""
    columns = "facet BIGINT, instance VARCHAR(64), other BIGINT, PRIMARY KEY (facet, instance)"
    statements = [f"CREATE TEMPORARY TABLE first_facets ({columns})"]
    names = ", ".join(("facet", *FacetKey._fields))
    for facet, *words in base.rows(f"SELECT {names} FROM facets"):
        for number in range(INSTANCES):
            key = FacetKey(f"i{number}", *words[1:-2], *map(bool, words[-2:]))
            values = ", ".join(map(_literal, (key.number(), *key)))
            statements += [
                f"INSERT INTO facets ({names}) VALUES ({values})",
                f"INSERT INTO first_facets VALUES ({facet}, 'i{number}', {key.number()})",
            ]
    return statements


def _literal(value: str | int | None) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def _first_jobs() -> list[int]:
    """The numbers of the first jobs in the file of bodies: each fifth is no job of its own."""
    return [number for number in range(2 * FIRST) if number % 5 != 4][:FIRST]


def _copy(name: str) -> str:
    return f"CREATE TEMPORARY TABLE first_{name} AS SELECT * FROM {name}"


def _multiply(kind: str, name: str, numbers: str, times: int) -> str:
    columns = _differing(kind, name, times)
    names, values = ", ".join(columns), ", ".join(columns.values())
    rows = f"first_{name} AS b CROSS JOIN (SELECT n, {_INSTANCE} AS i FROM {numbers}) AS s"
    if name == "jobs":
        rows += " JOIN first_facets AS f ON f.facet = b.facet AND f.instance = s.i"
    return f"INSERT INTO {name} ({names}) SELECT {values} FROM {rows}"


def _differing(kind: str, name: str, times: int) -> Mapping[str, str]:
    """Each column of a table, and what the n-th copy has in it."""
    table = Models.metadata.tables[name]
    apart = DAYS * 86_400_000 // times
    earlier = f"({times} - s.n) * CAST({apart} AS BIGINT)"
    values = {column.name: f"b.{column.name}" for column in table.columns}
    job = f"CAST(CAST(b.{{}} AS BIGINT) + s.n * {FIRST} AS TEXT)"
    special = {
        "events": {
            "n": f"b.n - {earlier} * {1 << NUMBER_BITS}",
            "job": job.format("job"),
            "sha256": _SHA256[kind],
        },
        "jobs": {"id": job.format("id"), "facet": "f.other"},
    }
    known = {"instance": "s.i", **{time: f"b.{time} - {earlier}" for time in _TIMES}}
    known |= special[name]
    return {column: known.get(column, value) for column, value in values.items()}
