"""The hot path's statements: what they cost in trips, and that values arrive as they were sent."""

import hashlib
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.callbacks.on_postgresql import OnPostgreSQL
from receiver.callbacks.store import NewEvent, record
from receiver.database import migrations
from receiver.database.postgresql import Blobs, Integers, Texts, Truths
from receiver.database.models import JobRow
from receiver.openconnectors.notifications import parse

int8s = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
ARRAYS = {
    "int8": (Integers, int8s),
    "text": (Texts, texts),
    "bytea": (Blobs, st.binary()),
    "boolean": (Truths, st.booleans()),
}


def new_event(job: str, **facts) -> NewEvent:
    body = json.dumps({"id": job, "status": "RUNNING", **facts}).encode()
    digest = hashlib.sha256(body).digest()
    return NewEvent(os.urandom(16).hex(), "default", body, digest, parse(body), "environment", 0)


@pytest.fixture(params=["postgresql18", "postgresql15"])
def database(request, make_database):
    opened = migrations.opened(make_database(request.param))
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", ARRAYS)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_array_arrives_as_it_was_sent(kind, data, database):
    array, elements = ARRAYS[kind]
    sent = data.draw(st.lists(st.none() | elements))
    with database.engine.connect() as connection:
        cursor = connection.connection.cursor()
        found = cursor.execute(f"SELECT %s::{kind}[], pg_typeof(%s)::text", [array(sent)] * 2)
        assert found.fetchone() == (sent, f"{kind}[]".replace("int8", "bigint"))


def test_a_batch_takes_three_trips_however_many_jobs_there_are_new_and_known(database, monkeypatch):
    trips: list[int] = []
    init = OnPostgreSQL.__init__

    class Counting:
        def __init__(self, cursor) -> None:
            self._cursor = cursor

        def execute(self, *words):
            trips[-1] += 1
            return self._cursor.execute(*words)

    monkeypatch.setattr(OnPostgreSQL, "__init__", lambda run, cursor: init(run, Counting(cursor)))
    for size, jobs in ((1, 1), (1, 1), (40, 10), (40, 60)):
        trips.append(0)
        batch = [new_event(str(n % jobs), size=size, n=n, of=jobs) for n in range(size)]
        with database.transaction() as connection:
            record(connection, batch, lambda: 0)
    assert trips == [3, 2, 3, 3]  # the second is the first again


def test_a_job_that_was_locked_is_never_left_with_the_mark_of_it(database):
    """The mark is a revision below zero."""
    for turn in range(3):
        with database.transaction() as connection:
            record(connection, [new_event("1", turn=turn), new_event(f"new-{turn}")], lambda: 0)
    with database.read() as session:
        revisions = {row.id: row.revision for row in session.query(JobRow)}
    assert revisions == {"1": 3, "new-0": 1, "new-1": 1, "new-2": 1}
