"""The counters behind the summary say what counting the jobs would say, whoever wrote meanwhile."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from receiver.callbacks.store import NewEvent, record
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.database.models import CounterRow, Event, JobRow, UsualTime
from receiver.jobs import counters
from receiver.jobs import glance as glance_module
from receiver.jobs.glance import Glance, glance
from receiver.jobs.job import FILES_KEPT_MS
from receiver.jobs.overview import summary
from receiver.jobs.projection import NewObservation
from receiver.openconnectors.notifications import Notification, parse

HOUR = 3_600_000
NOW = 497_000 * HOUR + 1234  # ms
WORDS = ("CREATED", "RUNNING", "PAUSED", "COMPLETED", "ERROR", "CANCELLED")
INSTANCES = ("default", "gooddata")
numbers = count()


def new_event(body: bytes, instance: str = "default") -> NewEvent:
    digest = hashlib.sha256(body).digest()
    return NewEvent(os.urandom(16).hex(), instance, body, digest, parse(body), "environment", 0)


def body(job: str, status: str = "COMPLETED", **facts) -> bytes:
    return json.dumps({"id": job, "status": status, **facts}).encode()


@pytest.fixture
def open_database(database_url) -> Iterator[Callable[[], Database]]:
    made: list[Database] = []

    def make() -> Database:
        made.append(migrations.opened(database_url))
        return made[-1]

    yield make
    for database in made:
        database.close()


@pytest.fixture
def database(open_database) -> Database:
    return open_database()


def look(read, visible, now: int, since: int = NOW - NOW % HOUR, width: int = HOUR) -> Glance:
    return glance(read, visible, now, 10, since, width, HOUR)


def write(database: Database, *items, now: int = NOW) -> None:
    with database.transaction() as connection:
        record(connection, items, lambda: now)


def counted(database: Database) -> Counter:
    """What the counters say, by measure, bucket and instance."""
    place = CounterRow.measure, CounterRow.bucket, CounterRow.instance
    with database.read() as session:
        rows = session.execute(
            select(*place, func.sum(CounterRow.n))
            .where(CounterRow.measure.not_in(("last_callback_at", "recounts")))
            .group_by(*place)
        )
        return Counter({tuple(row[:3]): int(row[3]) for row in rows if row[3]})


def there(database: Database) -> Counter:
    """What counting jobs says."""
    found: Counter = Counter()
    with database.read() as session:
        for job in session.scalars(select(JobRow)):
            found[job.outcome, 0, job.instance] += 1
            found["lost_callbacks", 0, job.instance] += job.callback_lost
            if job.files_expire_at is not None:
                found[job.outcome, job.files_expire_at // HOUR, job.instance] += 1
    return +found


def last_callbacks(database: Database) -> tuple[dict, dict]:
    """When the last callback came, by instance: by the counters and by the events."""
    latest = CounterRow.measure == "last_callback_at"
    by_counters = select(CounterRow.instance, func.max(CounterRow.n)).where(latest)
    by_events = select(Event.instance, func.max(Event.last_received_at))
    with database.read() as session:
        return (
            dict(map(tuple, session.execute(by_counters.group_by(CounterRow.instance)))),
            dict(map(tuple, session.execute(by_events.group_by(Event.instance)))),
        )


callbacks = st.builds(
    lambda instance, job, status, facts: new_event(body(job, status, **facts), instance),
    st.sampled_from(INSTANCES),
    st.sampled_from("abcde"),
    st.sampled_from(WORDS),
    st.fixed_dictionaries(
        {"copy": st.integers(0, 3)},
        optional={
            "recordsFailedCount": st.integers(0, 2),
            "recordsCount": st.integers(0, 2),
            "job_reset_attempt": st.integers(0, 2),
            "completionTime": st.sampled_from([NOW - 1, NOW + 5 * HOUR]),
        },
    ),
)
polls = st.builds(
    lambda event_, due, source: NewObservation(
        event_.instance, replace(event_.notification, source=source), callback_due=due
    ),
    callbacks,
    st.booleans(),
    st.sampled_from(["poll", "submission"]),
)
unread = st.builds(new_event, st.sampled_from([b"", b"[]", b"not JSON"]))
batches = st.lists(st.lists(callbacks | callbacks | polls | unread, max_size=6), max_size=8)


@settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False
)
@given(batches=batches)
def test_after_any_batches_of_two_writers_at_once_counters_say_what_counting_says(
    batches, open_database
):
    """The database lives on from one example to the next, and so does what was counted."""
    turn = next(numbers)
    batches = [[in_turn(item, turn) for item in batch] for batch in batches]
    nodes = [open_database() for _ in range(2)]

    def work(node: int) -> None:
        for place, batch in enumerate(batches):
            # Some of it goes to both.
            if place % 3 != node:
                write(nodes[node], *(fresh_id(item) for item in batch), now=NOW + place)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))
    assert counted(nodes[0]) == there(nodes[0])
    by_counters, by_events = last_callbacks(nodes[0])
    assert by_counters == by_events
    assert counters.recount(nodes[1], NOW) == 0
    for node in nodes:
        node.close()


def in_turn(item, turn: int):
    """The same, about jobs that no other example has, or about those that all of them have."""
    if turn % 2 or item.notification.kind != "bulk_job":
        return item
    job = f"{item.notification.job}-{turn}"
    return replace(item, notification=replace(item.notification, job=job))


def fresh_id(item):
    return replace(item, id=os.urandom(16).hex()) if isinstance(item, NewEvent) else item


def test_what_an_older_release_changed_is_put_right_by_a_recount(database):
    write(database, *(new_event(body(str(number), "RUNNING")) for number in range(5)))
    with database.write() as session:
        some = update(JobRow).where(JobRow.id.in_(["0", "1"]))
        ended = {"outcome": "failed", "files_expire_at": NOW + HOUR, "callback_lost": True}
        session.execute(some.values(**ended))
    assert counted(database) != there(database)
    assert counters.recount(database, NOW) == 4  # pending, failed, lost, and that hour
    assert counted(database) == there(database)
    assert counters.recount(database, NOW) == 0


def test_hours_that_are_over_are_forgotten_by_a_recount_and_harm_nothing(database):
    write(database, new_event(body("1", completionTime=NOW - FILES_KEPT_MS - HOUR)))
    later = NOW + counters.KEPT_HOURS * HOUR
    counters.recount(database, later)
    assert not [place for place in counted(database) if place[1]]
    write(database, new_event(body("1", completionTime=NOW)))
    assert counted(database)["succeeded", (NOW + FILES_KEPT_MS) // HOUR, "default"] == 1
    assert counters.recount(database, later) == 0
    told = summary(database.rows, None, NOW + FILES_KEPT_MS - HOUR, 1)
    assert told["expiring_24h"] == 1


def miscount(database: Database, n: int) -> None:
    with database.write() as session:
        wrong = {"measure": "failed", "bucket": 0, "instance": "default", "slot": 0, "n": n}
        session.add(CounterRow(**wrong))


def test_of_two_recounts_that_saw_the_same_one_puts_it_right(open_database, monkeypatch):
    late, early = open_database(), open_database()
    miscount(late, 7)
    write_late = late.write

    def overtaken():
        assert counters.recount(early, NOW) == 1
        return write_late()

    monkeypatch.setattr(late, "write", overtaken)
    assert counters.recount(late, NOW) == 0
    assert counted(late) == there(late)


def test_a_recount_while_others_write_is_as_good_as_one_alone(open_database):
    nodes = [open_database() for _ in range(2)]
    miscount(nodes[0], -7)

    def work(node: int) -> list[int]:
        found = []
        for turn in range(20):
            if node:
                found.append(counters.recount(nodes[1], NOW))
            else:
                write(nodes[0], *(new_event(body(f"{turn}-{n}", "ERROR")) for n in range(3)))
        return found

    with ThreadPoolExecutor(2) as threads:
        _, found = threads.map(work, range(2))
    assert sum(found) == 1
    assert counted(nodes[0]) == there(nodes[0])


def test_the_migration_counts_the_jobs_that_are_there(database):
    words = [new_event(body(str(n), word), "ab"[n % 2]) for n, word in enumerate(WORDS * 3)]
    polled = Notification("bulk_job", "lost", "COMPLETED", source="poll")
    write(database, *words, NewObservation("a", polled, callback_due=True))
    before = counted(database), last_callbacks(database)
    migrations.downgrade(database, "0003")
    migrations.upgrade(database)
    assert (counted(database), last_callbacks(database)) == before
    assert counters.recount(database, NOW) == 0


@pytest.mark.parametrize("visible", [None, frozenset({"b"}), frozenset()])
def test_the_summary_is_what_counting_says_for_the_instances_that_a_token_may_see(
    visible, database
):
    times = [NOW + hours * HOUR + ms for hours in (0, 1, 23, 24) for ms in (-1235, -1, 0, 1, 99)]
    ended = [body(str(n), completionTime=at - FILES_KEPT_MS) for n, at in enumerate(times)]
    polled = Notification("bulk_job", "lost", "ERROR", source="poll")
    write(
        database,
        *(new_event(each, instance) for each in ended for instance in "ab"),
        *(new_event(body(f"under-way-{word}", word), "b") for word in ("PAUSED", "RUNNING")),
        *(new_event(b"unreadable", instance) for instance in "ab"),
        NewObservation("b", polled, callback_due=True),
        now=NOW,
    )
    shown = {"a", "b"} if visible is None else visible
    with database.read() as session:
        jobs = [job for job in session.scalars(select(JobRow)) if job.instance in shown]
        last = max((job.first_seen_at for job in jobs), default=None)
        # PostgreSQL goes by its own clock.
        due = max((job.first_seen_at for job in jobs), default=NOW) + 10
    told = summary(database.rows, visible, NOW, 10)
    later = summary(database.rows, visible, due, 10)
    found = Counter(job.outcome for job in jobs)
    assert told["jobs"] == {outcome: found[outcome] for outcome in told["jobs"]}
    expire = [job.files_expire_at for job in jobs if job.files_expire_at is not None]
    assert told["expiring_24h"] == sum(NOW < at < NOW + 24 * HOUR for at in expire)
    assert told["lost_callbacks"] == len(shown & {"b"})
    assert told["unreadable_events"] == len(shown)
    assert (told["last_callback_at"] is None) == (not shown)
    assert later["overdue"] == 2 * len(shown & {"b"})
    for at, counts in ((NOW, told), (due, later)):
        glanced = look(database.rows, visible, at).counts
        assert glanced == {**counts, "last_callback_at": None}
    assert last is None or later["last_callback_at"] <= due


def test_overdue_goes_by_the_usual_time_of_an_object_be_it_longer_or_shorter(database):
    for name in ("quick", "slow", "other"):
        write(database, new_event(body(name, "RUNNING", objectName=name)))
    with database.write() as session:
        session.add(UsualTime(instance="default", object="quick", ms=10))
        session.add(UsualTime(instance="default", object="slow", ms=1000))
    with database.read() as session:
        first = session.scalar(select(func.min(JobRow.first_seen_at)))
        last = session.scalar(select(func.max(JobRow.first_seen_at)))
        overdue = [
            summary(database.rows, None, at, 100)["overdue"]
            for at in (first + 9, last + 10, last + 100, last + 1000)
        ]
    assert overdue == [0, 1, 2, 3]


def test_the_front_page_counts_what_ended_by_hour_and_by_day(database):
    day = NOW // (24 * HOUR) * 24 * HOUR
    ends = [day, day + HOUR - 1, day + HOUR, day - 1, day - 48 * HOUR]
    write(database, *(new_event(body(str(n), completionTime=at)) for n, at in enumerate(ends)))
    by_hour = look(database.rows, None, NOW, day - 24 * HOUR).ended
    by_day = look(database.rows, None, NOW, day - 24 * HOUR, 24 * HOUR).ended
    assert by_hour == {
        (day, "succeeded"): 2,
        (day + HOUR, "succeeded"): 1,
        (day - HOUR, "succeeded"): 1,
    }
    assert by_day == {(day, "succeeded"): 3, (day - 24 * HOUR, "succeeded"): 1}
    assert look(database.rows, frozenset({"other"}), NOW, day - 24 * HOUR).ended == {}


def test_the_front_page_counts_no_more_overdue_jobs_than_it_must(database, monkeypatch):
    monkeypatch.setattr("receiver.jobs.glance.MOST_COUNTED", 2)
    glance_module._glance.cache_clear()
    for n in range(4):
        write(database, new_event(body(str(n), "RUNNING")))
    with database.read() as session:
        due = session.scalar(select(func.max(JobRow.first_seen_at))) + 10
    assert look(database.rows, None, due).counts["overdue"] == 3
    glance_module._glance.cache_clear()
    assert summary(database.rows, None, due, 10)["overdue"] == 4


def test_the_summary_looks_at_no_table_of_jobs_or_events_as_a_whole(make_database):
    database = migrations.opened(make_database("sqlite"))
    asked: list[tuple[str, object]] = []

    def read(statement, values):
        asked.append((statement.sqlite, values))
        return database.rows(statement, values)

    for visible in (None, frozenset({"a", "b"})):
        summary(read, visible, NOW, 10)
        look(read, visible, NOW)
    with database.read() as session:
        cursor = session.connection().connection.cursor()
        steps = [
            step[3]
            for statement, parameters in asked
            for step in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    database.close()
    on_large = {step for step in steps if step.split()[1] in ("jobs", "events", "timeline")}
    limited = (
        "COVERING INDEX jobs_under_way",
        "COVERING INDEX events_unreadable",
        "jobs_by_expiry",
    )
    assert on_large
    assert {step for step in on_large if not any(name in step for name in limited)} == set()
