"""Lists: pages give each row once and in order, follow an index, and never take for ever."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiving import Receiver
from sqlalchemy import func, insert, literal_column, select, text

from receiver.database import migrations, paging, reading
from receiver.database.engine import Database
from receiver.database.models import Event, JobRow, UsualTime
from receiver.database.reading import Statement
from receiver.errors import TooSlow
from receiver.jobs import lists
from receiver.jobs.queries import EventFilter, JobFilter
from receiver.jobs.watching import Watch, watched
from receiver.jobs.watching import place as place_of

KINDS = ("sqlite", "postgresql18", "postgresql15")
WORDS = {
    "instance": ["a", "b", "c", "rare"],
    "status": [None, "COMPLETED", "ERROR", "ODD"],
    "outcome": ["succeeded", "failed", "unknown"],
    "object": [None, "contact", "lead"],
    "direction": [None, "UPLOAD", "DOWNLOAD"],
}
ROWS = 150


def job_row(number: int) -> dict[str, Any]:
    """Facets in uneven mixtures, and several changes in each millisecond."""
    picked = {
        name: words[number * 7**n % 11 % len(words)]
        for n, (name, words) in enumerate(WORDS.items())
    }
    return {
        **picked,
        "id": f"{number % 120:03}",  # the last ones are other instances' jobs of the same id
        "instance": picked["instance"] if number < 120 else "z",
        "registers": "[]",
        "revision": 1,
        "events": 1,
        "first_seen_at": 1,
        "updated_at": number * 13 % 50,
        "files_expire_at": None if number % 3 else number * 5 % 60,
    }


JOBS = [job_row(number) for number in range(ROWS)]


@pytest.fixture(scope="module", autouse=True)
def _small_numbers() -> Iterator[None]:
    """So that few rows are many."""
    with pytest.MonkeyPatch.context() as patch:
        for name, number in {"DEPTH": 4, "FEW": 20, "MOST_MERGED": 2}.items():
            patch.setattr(paging, name, number)
        _forget()
        yield
    _forget()


def _forget() -> None:
    for cached in (paging._page, paging._reaches, paging._count):
        cached.cache_clear()


@pytest.fixture
def database(make_database: Callable[[str], str], request: pytest.FixtureRequest):
    opened = Database(make_database(request.param))
    migrations.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def filled(database: Database) -> Database:
    with database.write() as session:
        session.execute(insert(JobRow), JOBS)
    return database


on_each = pytest.mark.parametrize("database", KINDS, indirect=True)


def some(name: str) -> st.SearchStrategy[list[str]]:
    words = [word for word in WORDS[name] if word is not None]
    return st.lists(st.sampled_from([*words, "none such"]), max_size=4)


filters = st.builds(
    JobFilter,
    instances=some("instance"),
    statuses=some("status"),
    outcomes=some("outcome"),
    objects=some("object"),
    directions=some("direction"),
    updated_after=st.none() | st.integers(0, 50),
    updated_before=st.none() | st.integers(0, 50),
    expires_before=st.none() | st.integers(0, 70),
    text=st.none() | st.sampled_from(["1", "00", "119", "x"]),
)
visible_ = st.none() | st.frozensets(st.sampled_from(["a", "b", "rare", "z"]))


def fits(row: dict[str, Any], wanted: JobFilter, visible: frozenset[str] | None) -> bool:
    facets = {
        "instance": wanted.instances,
        "status": wanted.statuses,
        "outcome": wanted.outcomes,
        "object": wanted.objects,
        "direction": wanted.directions,
    }
    after, before, expiry = wanted.updated_after, wanted.updated_before, wanted.expires_before
    expires = row["files_expire_at"]
    return (
        all(not values or row[name] in values for name, values in facets.items())
        and (visible is None or row["instance"] in visible)
        and (after is None or row["updated_at"] > after)
        and (before is None or row["updated_at"] < before)
        and (expiry is None or (expires is not None and expires < expiry))
        and (wanted.text or "") in row["id"]
    )


def place(row: dict[str, Any]) -> tuple[int, str, str]:
    return row["updated_at"], row["id"], row["instance"]


@on_each
@given(wanted=filters, visible=visible_, limit=st.integers(1, 60))
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_pages_give_each_job_that_fits_once_and_in_order(filled, wanted, visible, limit):
    seen: list[tuple[int, str, str]] = []
    after = None
    while True:
        page = lists.jobs(filled.rows, wanted, visible, limit, after)
        seen += [(line.updated_at, line.id, line.instance) for line in page]
        if len(page) < limit:
            break
        after = seen[-1]
    assert seen == sorted((place(row) for row in JOBS if fits(row, wanted, visible)), reverse=True)


# What needs a look

NOW = 1_000_000
LOOKS = ("overdue", "expiring", "lost")


def in_need(number: int) -> dict[str, Any]:
    """As `job_row`, most of them under way, expiring or lost."""
    row = job_row(number)
    return {
        **row,
        "outcome": ("pending", "unknown", "failed")[number % 3],
        "first_seen_at": NOW - number * 7 % 40,
        "files_expire_at": None if number % 5 == 0 else NOW + number * 11 % 30 - 3,
        "callback_lost": number % 2 == 0,
    }


IN_NEED = [in_need(number) for number in range(ROWS)]


def usual(row: dict[str, Any]) -> int:
    return 30 if (row["instance"], row["object"]) == ("a", "contact") else 10


def is_looked_for(row: dict[str, Any], look: str) -> bool:
    if look == "overdue":
        return row["outcome"] != "failed" and row["first_seen_at"] + usual(row) <= NOW
    expires = row["files_expire_at"]
    return row["callback_lost"] if look == "lost" else expires is not None and expires > NOW


def order_of(row: dict[str, Any], look: str) -> tuple[int, str, str]:
    times = {"overdue": "first_seen_at", "expiring": "files_expire_at", "lost": "updated_at"}
    return row[times[look]], row["id"], row["instance"]


@pytest.fixture
def in_trouble(database: Database) -> Database:
    with database.write() as session:
        session.execute(insert(JobRow), IN_NEED)
        session.add(UsualTime(instance="a", object="contact", ms=30))
    return database


@on_each
@given(look=st.sampled_from(LOOKS), wanted=filters, visible=visible_, limit=st.integers(1, 60))
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_needs_a_look_comes_once_and_most_pressing_first(
    in_trouble, look, wanted, visible, limit
):
    watch = Watch(look, NOW, 10)
    wanted = replace(wanted, expires_before=None)
    seen: list[tuple[int, str, str]] = []
    after = None
    while True:
        page = watched(in_trouble.rows, watch, wanted, visible, limit=limit, after=after)
        seen += [place_of(line, watch) for line in page]
        if len(page) < limit:
            break
        after = seen[-1]
    fit = [row for row in IN_NEED if is_looked_for(row, look) and fits(row, wanted, visible)]
    assert seen == sorted((order_of(row, look) for row in fit), reverse=look == "lost")


@on_each
@pytest.mark.parametrize(
    ("look", "index"),
    [("overdue", "jobs_under_way"), ("expiring", "jobs_by_expiry"), ("lost", "jobs_lost")],
)
@pytest.mark.parametrize("after", [None, (20, "050", "a")])
def test_what_needs_a_look_is_read_in_the_order_of_its_index(in_trouble, look, index, after):
    for wanted in (JobFilter(), JobFilter(instances=["a"], outcomes=["pending"], text="1")):
        ask = partial(watched, watch=Watch(look, NOW, 10), wanted=wanted, visible=None)
        (plan,) = plans(in_trouble, lambda read, ask=ask: ask(read, limit=9, after=after))
        assert index in plan, plan
        assert is_lazy(plan.replace("Seq Scan on usual_times", "the few usual times")), plan
        # Two ways are merged by sorting a page of each.
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan or look == "overdue", plan


# Plans


def plans(database: Database, ask: Callable[[Any], object]) -> list[str]:
    """The plans of the statements that a question asks."""
    told: list[str] = []

    def explain(statement: Statement, values: dict[str, Any]) -> Sequence[Sequence[Any]]:
        connection = database._reader._engine.raw_connection()
        try:
            words = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
            sql = statement.sqlite if database.is_sqlite else statement.postgresql
            rows = connection.driver_connection.execute(words + sql, values).fetchall()
        finally:
            connection.close()
        told.append("\n".join(str(row[-1]) for row in rows))
        return database.rows(statement, values)

    ask(explain)
    return told


def is_lazy(plan: str) -> bool:
    """Whether no table is read from end to end, but one in the order of an index."""
    lines = [line for line in plan.splitlines() if "SCAN jobs" in line or "SCAN events" in line]
    return "Seq Scan" not in plan and "Bitmap" not in plan and all("USING" in x for x in lines)


@on_each
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (JobFilter(), "jobs_by_change"),
        (JobFilter(instances=["a"]), "jobs_by_instance"),
        (JobFilter(instances=["a", "rare"]), "jobs_by_instance"),
        (JobFilter(statuses=["ODD"]), "jobs_by_status"),
        (JobFilter(statuses=["ODD", "ERROR"]), "jobs_by_status"),
        (JobFilter(outcomes=["unknown"]), "jobs_by_outcome"),
        (JobFilter(outcomes=["unknown", "failed"], updated_after=3), "jobs_by_outcome"),
        (JobFilter(objects=["lead"]), "jobs_by_object"),
        (JobFilter(directions=["DOWNLOAD"], updated_before=40), "jobs_by_direction"),
        (JobFilter(updated_after=3, updated_before=30), "jobs_by_change"),
        (JobFilter(expires_before=1), "jobs_by_expiry"),
        (JobFilter(expires_before=60), "jobs_by_change"),
        (JobFilter(text="11"), "jobs_by_change"),
        (JobFilter(text="11", instances=["a"]), "jobs_by_instance"),
    ],
)
@pytest.mark.parametrize("after", [None, (20, "050", "a")])
def test_each_filter_follows_its_index(filled, wanted, index, after):
    found = plans(filled, lambda read: lists.jobs(read, wanted, None, 10, after))
    assert index in found[-1]
    assert all(map(is_lazy, found))


@on_each
def test_of_two_filters_the_rarer_one_leads(filled):
    newest = {**job_row(1), "instance": "a", "object": "often", "updated_at": 1000}
    alone = {**newest, "id": "solo", "instance": "solo"}
    with filled.write() as session:
        session.execute(insert(JobRow), [{**newest, "id": f"x{n}"} for n in range(300)] + [alone])
    for instance, object_, index in (
        ("a", "lead", "jobs_by_object"),
        ("solo", "often", "jobs_by_instance"),
    ):
        wanted = JobFilter(instances=[instance], objects=[object_])
        chosen = plans(filled, lambda read, asked=wanted: lists.jobs(read, asked, None, 9, None))
        assert index in chosen[-1]


@on_each
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (EventFilter(), "events_by_receipt"),
        (EventFilter(instances=["a"]), "events_by_instance"),
        (EventFilter(kinds=["unreadable"]), "events_by_kind"),
        (EventFilter(kinds=["unreadable", "other"]), "events_by_kind"),
        (EventFilter(kinds=["bulk_job"]), "events_by_receipt"),
        (EventFilter(jobs=["1"]), "events_by_job"),
        (EventFilter(received_after=1, received_before=9), "events_by_receipt"),
    ],
)
def test_each_filter_of_events_follows_its_index(database, wanted, index):
    found = plans(database, lambda read: lists.events(read, wanted, None, 10, None))
    assert index in found[-1]
    assert all(map(is_lazy, found))


@on_each
def test_a_job_and_who_asks_for_it_are_looked_up_by_their_keys(filled):
    asked = plans(filled, lambda read: lists.job_asked_for(read, "token", 1, "001", None))
    assert len(asked) == 1
    assert is_lazy(asked[0])
    assert "SCAN" not in asked[0]


# Time


@on_each
def test_an_index_that_is_gone_shows_in_the_plan(filled):
    with filled.write() as session:
        session.execute(text("DROP INDEX jobs_by_object"))
    wanted = JobFilter(objects=["lead"])
    (plan,) = plans(filled, lambda read: lists.jobs(read, wanted, None, 10, None))
    assert "jobs_by_object" not in plan


def test_a_question_that_takes_too_long_is_503_and_says_so(any_receiver, monkeypatch):
    assert any_receiver.call_back(b'{"id": "1", "status": "RUNNING"}').status_code == 200
    monkeypatch.setattr(reading, "_STEPS", 1)
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setitem(reading._SESSION, "statement_timeout", "300")
    if any_receiver.services.database.is_sqlite:
        answer = any_receiver.get("/jobs?q=x")
        assert (answer.status_code, answer.json["code"]) == (503, "too_slow")
        assert answer.headers["Retry-After"]
    else:
        hurried = Database(any_receiver.services.settings.database_url)
        with pytest.raises(TooSlow):
            hurried.rows(Statement(select(func.pg_sleep(literal_column("20")))), {})
        hurried.close()
    monkeypatch.undo()
    assert any_receiver.get("/jobs?q=1").json["jobs"]


@pytest.mark.parametrize("database", KINDS[1:], indirect=True)
def test_connections_that_the_server_closed_are_replaced_unnoticed(filled):
    wanted = JobFilter(text="119")
    held = [filled._reader._engine.raw_connection() for _ in range(3)]
    for connection in held:
        connection.close()
    with filled.write() as session:
        others = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
        session.execute(text(f"{others} AND datname = current_database()"))
    for _ in range(3):
        assert len(lists.jobs(filled.rows, wanted, None, 10, None)) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_readers_cannot_write(filled):
    connection = filled._reader._engine.raw_connection()
    with pytest.raises(Exception, match="readonly"):
        connection.driver_connection.execute("DELETE FROM jobs")
    connection.close()


# Who asks


def test_a_token_that_another_process_revoked_is_refused_at_the_next_request(any_receiver):
    url = any_receiver.services.settings.database_url
    any_receiver.call_back(b'{"id": "1", "status": "RUNNING"}')
    paths = ("/jobs/1", "/jobs", "/events", "/summary")
    assert [any_receiver.get(path).status_code for path in paths] == [200] * 4
    subprocess.run(
        [sys.executable, "-m", "receiver", "tokens", "revoke", "test"],
        env={**os.environ, "RECEIVER_DATABASE_URL": url},
        check=True,
    )
    assert [any_receiver.get(path).status_code for path in paths] == [401] * 4


def test_a_token_is_refused_from_the_moment_it_expires(make_receiver, make_database):
    now = [1_000]
    receiver: Receiver = make_receiver(make_database("sqlite"), clock=lambda: now[0])
    with receiver.services.database.write() as session:
        session.execute(text("UPDATE tokens SET expires_at = 2000"))
    for time, statuses in ((1_999, [404, 200]), (2_000, [401, 401])):
        now[0] = time
        assert [receiver.get(path).status_code for path in ("/jobs/1", "/jobs")] == statuses


@on_each
def test_a_limited_token_sees_its_instances_alone(database):
    from receiver.instances import tokens  # noqa: PLC0415 - only here

    row = {**job_row(1), "id": "1"}
    with database.write() as session:
        session.execute(insert(JobRow), [{**row, "instance": name} for name in ("a", "b")])
        token = tokens.create_token(session, "one", "read", 1, only=["b"])
    who, found = lists.job_asked_for(database.rows, token, 2, "1", None)
    assert who is not None
    assert [line.instance for line in found] == ["b"]
    assert lists.job_asked_for(database.rows, token, 2, "1", "a")[1] == []
    assert lists.job_asked_for(database.rows, "another", 2, "1", None) == (None, [])


@on_each
def test_a_text_is_searched_for_in_its_own_letters(database):
    with database.write() as session:
        rows = [{**job_row(1), "id": name} for name in ("abc", "ABC", "a%c", "a_c")]
        session.execute(insert(JobRow), rows)
    for asked, found in {"b": ["abc"], "B": ["ABC"], "%": ["a%c"], "_": ["a_c"]}.items():
        jobs = lists.jobs(database.rows, JobFilter(text=asked), None, 10, None)
        assert [line.id for line in jobs] == found


@on_each
def test_an_event_is_the_same_in_a_list_and_alone(database):
    row = {
        "id": "evt-1", "instance": "a", "sha256": bytes(range(32)), "kind": "other", "job": None,
        "received_at": 2, "last_received_at": 3, "deliveries": 3, "key": "k", "size": 2**40,
    }  # fmt: skip
    with database.write() as session:
        session.execute(insert(Event), [row])
    (listed,) = lists.events(database.rows, EventFilter(), None, 10, None)
    assert listed == lists.event(database.rows, "evt-1", None)
    assert (listed.sha256, listed.size) == (bytes(range(32)).hex(), 2**40)
    assert lists.event(database.rows, "evt-1", frozenset("b")) is None
