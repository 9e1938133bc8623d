"""Lists: pages give each row once and in order, whatever is asked, and follow an index."""

import contextlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from builders import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, text, update

from receiver.callbacks.events import EventFilters, get_event, list_events
from receiver.database import engine
from receiver.database.engine import Database
from receiver.database.lookup import LookUp
from receiver.database.models import NUMBER_BITS, Event, Facet, JobRow, Retention, UsualTime
from receiver.errors import StoreError, TooSlow
from receiver.jobs.job import Job, encode
from receiver.jobs.projection import MAX_FACET_TEXT
from receiver.jobs.queries import Filters, find_jobs, list_jobs, position_of
from receiver.jobs.timeline import timeline
from receiver.lib.clock import DAY_MS
from receiver.openconnectors.notifications import Notification

NOW = 1_000_000_000
OVERDUE_AFTER = 20
LONG = "x" * 300
WORDS: Mapping[str, Sequence[str | None]] = {
    "instance": ["a", "b", "c", "rare"],
    "status": [None, "COMPLETED", "ERROR", LONG],
    "outcome": ["succeeded", "failed", "unknown", "pending"],
    "object": [None, "contact", "lead"],
    "direction": [None, "UPLOAD", "DOWNLOAD"],
}
NAMES = {name: f"{name}s" if name != "status" else "statuses" for name in WORDS}
ROWS = 1_000


def uneven(chance: random.Random, number: int) -> dict[str, Any]:
    return {name: chance.choice(words) for name, words in WORDS.items()}


def skewed(chance: random.Random, number: int) -> dict[str, Any]:
    """Nine tenths of one instance, and one outcome of all but one in a thousand."""
    usual = {"instance": "a", "status": "COMPLETED", "object": "contact", "direction": "UPLOAD"}
    instance = "a" if number % 10 else chance.choice(["b", "c", "rare"])
    outcome = "failed" if number == ROWS - 7 else "succeeded"
    return {**usual, "instance": instance, "outcome": outcome}


class Rows(list[dict[str, Any]]):
    """Rows that are not told one by one when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"


def rows_of(mixture: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Several changes in each millisecond; ids that other instances have too."""
    chance = random.Random(7)
    expiries = [None, *range(0, 300, 7), *range(NOW - 5, NOW + 30)]
    return Rows(
        {
            **mixture(chance, number),
            "id": f"{number * 7919 % 900:03}" + "-z" * (number > 900),
            "callback_lost": chance.random() < 0.2,
            "other": chance.random() < 0.1,
            "updated_at": chance.randrange(200),
            "first_seen_at": NOW - chance.randrange(40),
            "files_expire_at": chance.choice(expiries),
        }
        for number in range(ROWS)
    )


def usual(row: Mapping[str, Any]) -> int:
    known = None if row["other"] else row["object"]
    return 30 if (row["instance"], known) == ("a", "contact") else OVERDUE_AFTER


def fill(database: Database, rows: Sequence[dict[str, Any]]) -> None:
    """Write jobs as the store does, with facets that stand for one tuple or for all others."""
    facets: dict[tuple[Any, ...], int] = {}
    jobs = []
    for row in rows:
        words = ["status", "object", "direction"]
        tuple_ = [row[name] and row[name][:MAX_FACET_TEXT] for name in words]
        if row["other"]:
            tuple_ = [None] * 3
        place = (row["instance"], row["outcome"], row["callback_lost"], row["other"], *tuple_)
        facet = facets.setdefault(place, (len(facets) + 1) * 7919 - 2**63)
        facts = {"object": row["object"], "direction": row["direction"]}
        told = Notification("bulk_job", row["id"], row["status"], file=f"/{row['id']}.csv", **facts)
        own = ("id", "instance", "updated_at", "first_seen_at", "files_expire_at")
        jobs.append(
            {name: row[name] for name in own}
            | {"facet": facet, "revision": 1, "events": 1, "callback_due": True}
            | {"under_way": row["outcome"] in ("pending", "unknown")}
            | {"registers": encode(Job.of(told, 1).registers)}
        )
    names = ("instance", "outcome", "callback_lost", "other", "status", "object", "direction")
    with database.write() as session:
        numbered = [
            dict(zip(names, place, strict=True)) | {"facet": n} for place, n in facets.items()
        ]
        session.execute(insert(Facet), numbered)
        session.execute(insert(JobRow), jobs)
        session.add(UsualTime(instance="a", object="contact", ms=30))


@pytest.fixture(scope="module", params=["uneven", "skewed"])
def rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rows_of({"uneven": uneven, "skewed": skewed}[request.param])


@pytest.fixture
def filled(rows, database_url) -> Iterator[Database]:
    database = Database(database_url)
    fill(database, rows)
    yield database
    database.close()


def some(name: str) -> st.SearchStrategy[list[str]]:
    words = [word for word in WORDS[name] if word is not None]
    return st.just([]) | st.lists(st.sampled_from([*words, "none such"]), max_size=4)


filters = st.builds(
    Filters,
    **{plural: some(name) for name, plural in NAMES.items()},
    updated_after=st.none() | st.integers(0, 200),
    updated_before=st.none() | st.integers(0, 200),
    expires_before=st.none() | st.integers(0, 300) | st.integers(NOW - 9, NOW + 40),
    text=st.none() | st.sampled_from(["1", "00", "119", "x", "-"]),
    file=st.none() | st.sampled_from(["1", "/00", "9.csv", "x"]),
    show=st.sampled_from([None, None, None, "overdue", "expiring", "lost"]),
    now=st.just(NOW),
    overdue_after=st.just(OVERDUE_AFTER),
    visible=st.none() | st.frozensets(st.sampled_from(["a", "b", "rare", "z"])),
)


def fits(row: Mapping[str, Any], wanted: Filters) -> bool:
    after, before, expiry = wanted.updated_after, wanted.updated_before, wanted.expires_before
    expires = row["files_expire_at"]
    under_way = row["outcome"] in ("pending", "unknown")
    return (
        all(
            not getattr(wanted, plural) or row[name] in getattr(wanted, plural)
            for name, plural in NAMES.items()
        )
        and (wanted.visible is None or row["instance"] in wanted.visible)
        and (after is None or row["updated_at"] > after)
        and (before is None or row["updated_at"] < before)
        and (expiry is None or (expires is not None and expires < expiry))
        and (wanted.text or "") in row["id"]
        and (wanted.file or "") in f"/{row['id']}.csv"
        and {
            None: True,
            "lost": row["callback_lost"],
            "expiring": expires is not None and NOW < expires < NOW + DAY_MS,
            "overdue": under_way and row["first_seen_at"] + usual(row) <= NOW,
        }[wanted.show]
    )


def in_order(rows: Sequence[dict[str, Any]], wanted: Filters) -> list[tuple[int, str, str]]:
    time = {"overdue": "first_seen_at", "expiring": "files_expire_at"}.get(
        wanted.show or "", "updated_at"
    )
    places = [(row[time], row["id"], row["instance"]) for row in rows if fits(row, wanted)]
    return sorted(places, reverse=time == "updated_at")


@given(wanted=filters, limit=st.integers(1, 70), few=st.sampled_from([5, 1_000]))
@settings(
    max_examples=examples(120),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_pages_give_each_job_that_fits_once_and_in_order_both_ways(
    filled, rows, wanted, limit, few
):
    expected = in_order(rows, wanted)
    limit = max(limit, len(expected) // 15)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiver.jobs.queries.MAX_SORTED", few)
        seen: list[tuple[int, str, str]] = []
        while True:
            page = list_jobs(filled, wanted, limit, seen[-1] if seen else None)
            assert (
                all(record.overdue_by(NOW, OVERDUE_AFTER) is not None for record in page)
                or wanted.show != "overdue"
            )
            seen += [position_of(record, wanted.show) for record in page]
            if len(page) < limit:
                break
        assert seen == expected
        back: list[tuple[int, str, str]] = []
        last = seen[-1:]
        while last:
            page = list_jobs(filled, wanted, limit, before=last[0])
            back = [position_of(record, wanted.show) for record in page] + back
            last = back[:1] if len(page) == limit else []
        assert back == expected[:-1]


# Plans: what is read follows an index, and no table is read or sorted as a whole.


def plans(database: Database, ask: Callable[[], object]) -> list[str]:
    """The plans of the statements that a question asks."""
    asked: list[tuple[str, Any]] = []

    def note(_connection, _cursor, statement, parameters, *_):
        asked.append((statement, parameters))

    def by_sqlalchemy(self, connection, values=None):
        return connection.execute(self._statement, values).all()

    def by_itself(self, engine, values):
        with engine.connect() as connection:
            return by_sqlalchemy(self, connection, values)

    event.listen(database._read_engine, "before_cursor_execute", note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LookUp, "fetch", by_sqlalchemy)  # past which `note` would see nothing
        patch.setattr(LookUp, "fetch_alone", by_itself)
        ask()
    event.remove(database._read_engine, "before_cursor_execute", note)
    words = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    with database.snapshot() as connection:
        if not database.is_sqlite:  # which would rather read a small table than an index
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        explained = [connection.exec_driver_sql(words + sql, values).all() for sql, values in asked]
    return ["\n".join(str(row[-1]) for row in rows) for rows in explained]


def is_lazy(plan: str) -> bool:
    """Whether no large table is read from end to end, but one in the order of an index."""
    large = [line for line in plan.splitlines() if re.search(r"\b(jobs|events|timeline)\b", line)]
    scans = [line for line in large if re.search("SCAN|Seq Scan|Bitmap", line)]
    return all("USING" in line and "INDEX" in line for line in scans)


NO_FILTER: dict[str, Any] = {}


INDEXES: list[tuple[dict[str, Any], set[str]]] = [
    (NO_FILTER, {"jobs_by_change"}),
    ({"updated_after": 3, "updated_before": 30}, {"jobs_by_change"}),
    ({"text": "11"}, {"jobs_by_change"}),
    ({"expires_before": 60}, {"jobs_by_expiry", "jobs_by_change"}),
    ({"instances": ["a"]}, {"jobs_by_facet"}),
    ({"statuses": ["ERROR"], "objects": ["lead"]}, {"jobs_by_facet"}),
    ({"outcomes": ["failed"], "text": "11", "updated_after": 3}, {"jobs_by_facet"}),
    ({"show": "lost", "directions": ["UPLOAD"]}, {"jobs_by_facet"}),
    ({"show": "expiring", "outcomes": ["failed"]}, {"jobs_by_expiry"}),
    ({"show": "overdue", "instances": ["a", "b"]}, {"jobs_under_way"}),
]


@pytest.mark.parametrize("rows", ["uneven"], indirect=True)
def test_each_list_is_read_by_its_index(filled, monkeypatch):
    monkeypatch.setattr("receiver.jobs.queries.MAX_SORTED", 5)
    for (wanted, indexes), how in itertools.product(
        INDEXES, ({}, {"after": (20, "a", "050")}, {"before": (20, "a", "050")})
    ):
        filters = Filters(now=NOW, overdue_after=OVERDUE_AFTER, **wanted)
        found = plans(filled, lambda filters=filters, how=how: list_jobs(filled, filters, 9, **how))
        used = set(re.findall(r"\bjobs_(?:by|under|with)_\w+", "\n".join(found)))
        assert used == indexes, (wanted, how, found)
        assert all(map(is_lazy, found)), (wanted, how, found)


@pytest.mark.parametrize("rows", ["uneven"], indirect=True)
def test_a_job_and_its_timeline_are_looked_up_by_their_keys(filled):
    found = plans(filled, lambda: (find_jobs(filled, "001"), find_jobs(filled, "001", "a")))
    found += plans(filled, lambda: timeline(filled, "001", "a"))
    assert len(found) == 3
    assert all(map(is_lazy, found)), found
    assert not re.search(r"SCAN (jobs|events|timeline)|events_by_", "\n".join(found))


# Events


def event_row(number: int) -> dict[str, Any]:
    """Uneven mixtures; the oldest are forgotten."""
    kind = ["bulk_job", "bulk_job", "unreadable", "other"][number * 7 % 11 % 4]
    return {
        "n": (1_000 + number // 3 << NUMBER_BITS) + number % 3,
        "instance": ["a", "b", "c", "rare"][number * 49 % 11 % 4],
        "job": f"{number % 7}" if kind == "bulk_job" else "",
        "sha256": number.to_bytes(32, "big"),
        "kind": kind,
        "deliveries": 1,
        "last_received_at": 1,
        "key": "" if number < 30 else "k",
        "size": 2**40,
    }


EVENTS = [event_row(number) for number in range(300)]
event_filters = st.builds(
    EventFilters,
    instances=st.just([]) | st.lists(st.sampled_from(["a", "b", "rare", "none"]), max_size=3),
    kinds=st.just([]) | st.lists(st.sampled_from(["bulk_job", "unreadable", "other"]), max_size=3),
    jobs=st.just([]) | st.lists(st.sampled_from(["1", "2", "none"]), max_size=3),
    received_after=st.none() | st.integers(1_000, 1_100),
    received_before=st.none() | st.integers(1_000, 1_100),
    visible=st.none() | st.frozensets(st.sampled_from(["a", "b", "rare", "z"])),
)


@pytest.fixture
def with_events(database_url) -> Iterator[Database]:
    database = Database(database_url)
    facet = {"outcome": "pending", "callback_lost": False, "other": False}
    names = ["a", "b", "c", "rare"]
    with database.write() as session:
        session.execute(insert(Event), EVENTS)
        session.execute(update(Retention).values(events_before=1_010))
        rows = [facet | {"facet": n, "instance": name} for n, name in enumerate(names)]
        session.execute(insert(Facet), rows)
    yield database
    database.close()


def event_fits(row: Mapping[str, Any], wanted: EventFilters) -> bool:
    at = row["n"] >> NUMBER_BITS
    return (
        bool(row["key"])
        and (not wanted.instances or row["instance"] in wanted.instances)
        and (wanted.visible is None or row["instance"] in wanted.visible)
        and (not wanted.kinds or row["kind"] in wanted.kinds)
        and (not wanted.jobs or row["job"] in wanted.jobs)
        and (wanted.received_after is None or at > wanted.received_after)
        and (wanted.received_before is None or at < wanted.received_before)
    )


@given(wanted=event_filters, limit=st.integers(20, 70))
@settings(
    max_examples=examples(120),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_pages_give_each_event_that_fits_once_and_newest_first(with_events, wanted, limit):
    seen: list[str] = []
    while True:
        page = list_events(with_events, wanted, limit, seen[-1] if seen else None)
        seen += [record.id for record in page]
        if len(page) < limit:
            break
    fit = sorted((row["n"] for row in EVENTS if event_fits(row, wanted)), reverse=True)
    assert seen == [f"{n:016x}" for n in fit]


def test_each_list_of_events_is_read_by_its_index(with_events):
    for wanted, index in (
        (NO_FILTER, None),  # the table's own order
        ({"instances": ["a", "b"], "received_after": 3}, "events_by_instance"),
        ({"kinds": ["unreadable", "other"], "instances": ["a"]}, "events_by_kind"),
        ({"kinds": ["bulk_job"]}, None),
        ({"jobs": ["1"]}, "events_identity"),
    ):
        filters = EventFilters(**wanted)
        (found,) = plans(with_events, lambda it=filters: list_events(with_events, it, 9))
        assert is_lazy(found)
        if with_events.is_sqlite:  # of so few rows PostgreSQL may read all in their order
            used = set(re.findall(r"\bevents_(?:by_\w+|identity)", found))
            assert used == ({index} if index else set()), found


def test_an_event_is_the_same_in_a_list_and_alone(with_events):
    (listed, *_) = list_events(with_events, EventFilters(instances=["a"]), 5)
    assert listed == get_event(with_events, listed.id)
    assert len(listed.sha256) == 64
    assert listed.size == 2**40
    assert get_event(with_events, listed.id, frozenset("b")) is None
    for odd in ("", "x", "0", listed.id.upper() + "0", "f" * 16, "-" + "0" * 15, "\uff11" * 16):
        assert get_event(with_events, odd) is None
    forgotten = get_event(with_events, f"{EVENTS[0]['n']:016x}")
    assert forgotten is not None
    assert forgotten.key == ""


@pytest.mark.parametrize("rows", ["uneven"], indirect=True)
def test_a_job_that_is_looked_up_is_the_one_of_the_list(filled):
    listed = list_jobs(filled, Filters(), 1_000)
    by_id = {(job.instance, job.id): job for job in listed}
    for (instance, id_), job in by_id.items():
        (found,) = find_jobs(filled, id_, instance)
        assert (found, type(found.callback_lost)) == (job, bool)
    for id_ in {id_ for _, id_ in by_id}:
        assert {(job.instance, job.id): job for job in find_jobs(filled, id_)} == {
            place: job for place, job in by_id.items() if place[1] == id_
        }


# Time


def test_a_question_that_takes_too_long_is_503_and_says_so(any_receiver, monkeypatch):
    assert any_receiver.call_back(b'{"id": "1", "status": "RUNNING"}').status_code == 200
    database = any_receiver.services.database
    monkeypatch.setattr(engine, "READ_SECONDS", -1 if database.is_sqlite else 0.3)
    if database.is_sqlite:
        monkeypatch.setattr(engine, "_PROGRESS_STEPS", 1)
    hurried = Database(any_receiver.services.settings.database_url)
    slow = (
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT max(n) FROM n"
        if database.is_sqlite
        else "SELECT pg_sleep(20)"
    )
    with pytest.raises(TooSlow):
        hurried.rows(text(slow))
    with pytest.raises(TooSlow):
        hurried.rows(LookUp(text(slow)))
    with pytest.raises(TooSlow), hurried.snapshot() as connection:
        connection.execute(text(slow)).all()
    monkeypatch.undo()
    hurried.close()

    def slowly(*_):
        raise TooSlow("narrow the question")

    monkeypatch.setattr(database, "snapshot", slowly)
    answer = any_receiver.get("/jobs?q=x")
    assert (answer.status_code, answer.json["code"]) == (503, "too_slow")
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize("kind", ["postgresql18"])
def test_connections_that_the_server_closed_are_replaced_unnoticed(kind, make_database):
    database = Database(make_database(kind))
    others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    for _ in range(3):
        assert list_jobs(database, Filters(), 1) == find_jobs(database, "1") == []
        with database.write() as session:
            session.execute(text(others))
        assert find_jobs(database, "1") == []
    assert list_jobs(database, Filters(), 1) == []
    database.close()


@pytest.mark.parametrize("kind", ["postgresql18"])
def test_what_is_asked_often_stays_prepared(kind, make_database):
    database = Database(make_database(kind), connections=1)
    for _ in range(10):
        list_jobs(database, Filters(instances=["a"]), 1)
        find_jobs(database, "1")
    prepared = "SELECT statement FROM pg_prepared_statements"
    statements = [row.statement for row in database.rows(text(prepared))]
    database.close()
    assert any("FROM facets" in statement for statement in statements)
    assert any("jobs.id = $" in statement for statement in statements)


def test_readers_cannot_write(database_url):
    database = Database(database_url)
    for write in ("DELETE FROM jobs", "UPDATE retention SET next_at = 1"):
        with pytest.raises(StoreError), database.snapshot() as connection:
            connection.execute(text(write))
    database.close()


def test_readers_that_wait_leave_the_writers_connections_alone(database_url):
    database = Database(database_url, connections=2)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            connection = stack.enter_context(database.snapshot())
            connection.execute(text("SELECT 1"))
        database.check_writable()
    database.close()
