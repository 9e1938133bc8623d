"""What is done beside answering costs the same however much is stored: the plans of its statements.

SQLite's, which knows nothing of how rows are spread and so plans for few as for a million.
"""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from builders import KEY
from fakes import ENCRYPTION_KEY
from instances_named import names_the_instance
from sqlalchemy import Engine, event

from receiver.app import _app, _close
from receiver.callbacks import statements
from receiver.callbacks.statements import Statement
from receiver.database.models import UNDER_WAY
from receiver.database.retention import Retention
from receiver.instances import registry
from receiver.instances.encryption import SecretBox
from receiver.lib.clock import now_ms
from receiver.reconcile.reconciler import Reconciler
from receiver.settings import Settings
from receiver.web.ops import Measurements

GROWING = ("jobs", "events", "timeline", "audit", "submissions", "outbound_deliveries")
# Few rows at any time: indexes of those alone which meet a condition.
SMALL = ("events_unreadable", "jobs_with_errors_due", "jobs_under_way")
WHOLE = re.compile(
    rf"SCAN ({'|'.join(GROWING)})\b(?!.*({'|'.join(SMALL)}))"
    # One word of a few: that may be half of all jobs.
    r"|SEARCH jobs .*jobs_by_(outcome|status|direction|object) \(\w+=\?\)$"
)


FIRST = "ORDER BY outbound_deliveries.id"  # of which a batch is read


class Statements(dict[str, Any]):
    """What was asked, and with which values."""

    def of(self, work) -> dict[str, Any]:
        before = set(self)
        work()
        return {asked: values for asked, values in self.items() if asked not in before}


@pytest.fixture
def asked(monkeypatch) -> Iterator[Statements]:
    found = Statements()

    def note(_connection, _cursor, statement, values, _context, many):
        found.setdefault(statement, values[0] if many else values)

    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


def read_whole(connection, statements: dict[str, Any]) -> list[str]:
    """Those that read a table that grows, or an index of all of it, from end to end."""
    found = []
    for statement, values in statements.items():
        asks = re.match(r"\s*(SELECT|UPDATE|DELETE|WITH)", statement)
        # Those under way are few, in any order.
        if asks and UNDER_WAY not in statement and FIRST not in statement:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            found += [f"{row[-1]}: {statement}" for row in plan if WHOLE.match(row[-1])]
    return found


def no_vendor(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("nobody is there", request=request)


@pytest.mark.slow
def test_no_work_in_the_background_reads_a_table_that_grows_from_end_to_end(make_database, asked):
    settings = Settings(
        database_url=make_database("sqlite"), default_keys=(KEY,), encryption_keys=(ENCRYPTION_KEY,)
    )
    app, background = _app(settings, now_ms, httpx.MockTransport(no_vendor), None)
    services = app.extensions["receiver"]
    database = services.database
    with database.write() as session:
        secrets = {"element_token": b"e-1", "user_secret": b"u-1", "organization_secret": b"o-1"}
        registry.add_instance(session, SecretBox(settings.encryption_keys), "a", 1, **secrets)
    reconciler = Reconciler(settings, database, services.intake, services.vendor)
    works = {
        **{f"task {number}": task.run for number, task in enumerate(background.tasks)},
        "beat": background.beat,
        "measure": Measurements(settings, database, now_ms).read,
        "reconcile": lambda: reconciler.one_pass(everything=True, redeliver=True),
        "retention": lambda: list(Retention(settings, database, now_ms).run()),
    }
    try:
        statements = {name: asked.of(work) for name, work in works.items()}
        connection = database.engine.raw_connection()
        slow = {name: read_whole(connection, found) for name, found in statements.items()}
        connection.close()
    finally:
        _close(background, services.intake, database)
    watch = f"task {len(background.tasks) - 1}"
    assert len(statements[watch]) > 5
    assert len(statements["reconcile"]) > 3
    assert {name: found for name, found in slow.items() if found} == {}


def test_each_statement_of_the_hot_path_that_goes_by_a_job_names_its_instance():
    found = {name: it for name, it in vars(statements).items() if isinstance(it, Statement)}
    assert len(found) > 8
    for name, statement in found.items():
        of_a_job = {"job", "id"} & {*re.findall(r"\w+", statement.sqlite)}
        assert not of_a_job or "instance" in statement.sqlite, name
        assert not of_a_job or "instance" in statement.postgresql, name


@pytest.mark.parametrize(
    ("statement", "right"),
    [
        ("UPDATE jobs SET instance = ? WHERE jobs.id = ?", False),
        ("DELETE FROM record_errors WHERE record_errors.job IN (?)", False),
        ("SELECT events.body FROM events WHERE events.job = ?", False),
        ("DELETE FROM record_errors WHERE job = ? AND instance = ?", True),
        ("SELECT jobs.instance, jobs.id FROM jobs WHERE jobs.id = ?", True),
        ("UPDATE signature_keys SET retired_at = ? WHERE signature_keys.id = ?", True),
    ],
)
def test_a_statement_by_a_jobs_id_alone_would_be_found(statement, right):
    assert names_the_instance(statement) is right
