"""How it stands is what counting the jobs would say, whoever wrote meanwhile."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from builders import Receiver, bulk, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from receiver.callbacks import store as store_module
from receiver.database import retention
from receiver.database.engine import Database
from receiver.database.models import Count, Facet, JobRow, UsualTime
from receiver.jobs.job import FILES_MS, OUTCOMES
from receiver.jobs.projection import NewObservation
from receiver.jobs.queries import Filters, list_jobs
from receiver.jobs.summary import MAX_COUNTED, gauges, overview, summary
from receiver.lib.clock import DAY_MS, HOUR_MS, iso
from receiver.openconnectors.notifications import Notification, parse

NOW = 497_000 * HOUR_MS + 1234  # ms
WORDS = ("CREATED", "RUNNING", "PAUSED", "COMPLETED", "ERROR", "CANCELLED")
turns = count()


def counted(database: Database) -> Counter:
    """What the counts say, by hour, outcome, whether the callback was lost, and instance."""
    place = Count.hour, Facet.outcome, Facet.callback_lost, Facet.instance
    statement = select(*place, func.sum(Count.n)).join(Facet, Facet.facet == Count.facet)
    rows = database.rows(statement.group_by(*place))
    return Counter({tuple(row[:4]): int(row[4]) for row in rows if row[4]})


def there(database: Database) -> Counter:
    """What counting jobs says."""
    found: Counter = Counter()
    statement = select(JobRow.files_expire_at, Facet.outcome, Facet.callback_lost, Facet.instance)
    jobs = statement.join(Facet, Facet.facet == JobRow.facet)
    for expires, *place in database.rows(jobs):
        found[0, *place] += 1
        if expires is not None:
            found[expires // HOUR_MS, *place] += 1
    return found


callbacks = st.builds(
    lambda job, status, facts: bulk(job, status, **facts),
    st.sampled_from("abcde"),
    st.sampled_from(WORDS),
    st.fixed_dictionaries(
        {"copy": st.integers(0, 3)},
        optional={
            "recordsFailedCount": st.integers(0, 2),
            "recordsCount": st.integers(0, 2),
            "objectName": st.sampled_from(["contact", "account"]),
            "job_reset_attempt": st.integers(0, 2),
            "completionTime": st.sampled_from([NOW - 1, NOW + 5 * HOUR_MS]),
        },
    ),
)
observations = st.builds(
    lambda body, due, source: NewObservation(
        "default", parse(body).replace(source=source), callback_due=due
    ),
    callbacks,
    st.booleans(),
    st.sampled_from(["poll", "submission"]),
)
unread = st.sampled_from([b"", b"[]", b"not JSON"])
batches = st.lists(st.lists(callbacks | callbacks | observations | unread, max_size=6), max_size=8)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
@given(batches=batches)
def test_after_any_batches_of_two_writers_at_once_counts_say_what_counting_says(
    batches, open_store, database_url
):
    """The database lives on from one example to the next, and so does what was counted."""
    nodes = [open_store(database_url) for _ in range(2)]
    turn = next(turns)

    def work(node: int) -> None:
        for place, batch in enumerate(batches):
            # Some of it goes to both.
            if place % 3 != node:
                nodes[node].now = NOW + place
                assert None not in nodes[node].write(
                    *(in_turn(item, turn) for item in batch)
                ) or any(isinstance(item, NewObservation) for item in batch)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, range(2)))
    assert counted(nodes[0].database) == there(nodes[0].database)
    for node in nodes:
        node.close()


def in_turn(item, turn: int):
    """The same, about jobs that no other example has, or about those that all of them have."""
    if turn % 2:
        return item
    if isinstance(item, bytes):
        return item.replace(b'{"id": "', b'{"id": "%d-' % turn)
    told = item.notification
    return NewObservation(
        item.instance, told.replace(job=f"{turn}-{told.job}"), callback_due=item.callback_due
    )


def test_hours_that_are_over_are_dropped_and_harm_nothing(open_store, database_url):
    stored = open_store(database_url)
    stored.write(bulk(completionTime=NOW - FILES_MS - HOUR_MS))
    with stored.database.write() as session:
        retention.delete_old_counts(session, NOW + retention.MAX_COUNT_HOURS * HOUR_MS)
    assert [hour for hour, *_ in counted(stored.database)] == [0]
    stored.write(bulk(completionTime=NOW))
    assert summary(stored.database, None, NOW + FILES_MS - HOUR_MS, 1).expiring_24h == 1
    assert summary(stored.database, None, NOW, 1).jobs["succeeded"] == 1


def test_beyond_its_facets_an_instance_has_one_for_each_outcome_and_its_jobs_are_found(
    open_store, database_url, monkeypatch
):
    monkeypatch.setattr(store_module, "MAX_FACETS", 5)
    stored = open_store(database_url)
    for n in range(20):
        word = "COMPLETED" if n % 2 else "ERROR"
        stored.write(bulk(str(n), word, objectName=f"object-{n}", jobDirection="UPLOAD"))
    with stored.database.read() as session:
        others = session.scalar(select(func.count()).select_from(Facet).where(Facet.other))
        assert (session.scalar(select(func.count()).select_from(Facet)), others) == (7, 2)
    assert counted(stored.database) == there(stored.database)
    for n in range(20):
        found = list_jobs(stored.database, Filters(objects=[f"object-{n}"]), 10)
        assert [job.id for job in found] == [str(n)]
    failed = list_jobs(stored.database, Filters(outcomes=["failed"]), 100)
    assert {job.id for job in failed} == {str(n) for n in range(0, 20, 2)}
    again = open_store(database_url)  # another process, which knows of no facet
    again.write(bulk("0", "ERROR", objectName="object-0", n=2), bulk("21", objectName="object-1"))
    assert counted(again.database) == there(again.database)


def test_no_count_is_below_zero_and_no_facet_twice(open_store, database_url):
    stored = open_store(database_url)
    for status in WORDS:
        stored.write(bulk("1", status), bulk("2", status, objectName="contact"))
    with stored.database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM counts WHERE n < 0")) == 0
        kept = [tuple(row)[1:] for row in session.execute(select(Facet.__table__))]
        assert len(kept) == len(set(map(json.dumps, kept)))
        assert session.scalar(select(func.count()).select_from(JobRow)) == 2


@pytest.mark.parametrize(
    "visible", [None, frozenset({"default"}), frozenset({"b"}), frozenset()], ids=str
)
def test_the_summary_is_what_counting_says_for_the_instances_that_a_token_sees(
    visible, any_receiver
):
    times = [NOW + hours * HOUR_MS + ms for hours in (0, 1, 23, 24) for ms in (-1235, -1, 0, 1, 99)]
    for number, at in enumerate(times):
        any_receiver.call_back(bulk(str(number), completionTime=at - FILES_MS))
    for word in ("PAUSED", "RUNNING"):
        any_receiver.call_back(bulk(f"under-way-{word}", word))
    any_receiver.call_back(b"unreadable")
    polled = Notification("bulk_job", "lost", "ERROR", source="poll")
    observation = NewObservation("default", polled, callback_due=True)
    any_receiver.services.intake.observe(observation)
    database = any_receiver.services.database
    seen = visible is None or "default" in visible
    told = summary(database, visible, NOW, 10)
    assert told.jobs == {
        outcome: seen * {"succeeded": 20, "failed": 1, "pending": 1, "unknown": 1}.get(outcome, 0)
        for outcome in OUTCOMES
    }
    assert told.expiring_24h == seen * sum(NOW < at < NOW + DAY_MS for at in times)
    assert (told.lost_callbacks, told.unreadable_events) == (seen, seen)
    assert (told.last_callback_at is not None) == seen
    _, last = first_and_last(any_receiver)
    assert summary(database, visible, last + 10, 10).overdue == 2 * seen


def first_and_last(receiver: Receiver) -> tuple[int, int]:
    """When the first and the last job was first heard of; PostgreSQL goes by its own clock."""
    first_seen = JobRow.first_seen_at
    (row,) = receiver.services.database.rows(select(func.min(first_seen), func.max(first_seen)))
    return row[0], row[1]


def test_overdue_goes_by_the_usual_time_of_an_object_be_it_longer_or_shorter(any_receiver):
    for name in ("quick", "slow", "other"):
        any_receiver.call_back(bulk(name, "RUNNING", objectName=name))
    database = any_receiver.services.database
    with database.write() as session:
        session.add(UsualTime(instance="default", object="quick", ms=10))
        session.add(UsualTime(instance="default", object="slow", ms=100_000))
    first, last = first_and_last(any_receiver)
    moments = (first + 9, last + 10, last + 50_000, last + 100_000)
    assert [summary(database, None, at, 50_000).overdue for at in moments] == [0, 1, 2, 3]
    assert gauges(database, last, 50_000).oldest_under_way == first


def front(receiver: Receiver, since: int, width: int = HOUR_MS, visible=None, now: int = NOW):
    with receiver.services.database.snapshot() as connection:
        return overview(connection, visible, now, 10, since, width, HOUR_MS)


def test_the_front_page_counts_what_ended_by_hour_and_by_day(any_receiver):
    day = NOW // DAY_MS * DAY_MS
    ends = [day, day + HOUR_MS - 1, day + HOUR_MS, day - 1, day - 2 * DAY_MS]
    for number, at in enumerate(ends):
        any_receiver.call_back(bulk(str(number), completionTime=at))
    by_hour = front(any_receiver, day - DAY_MS).ended
    assert by_hour == {
        (day, "succeeded"): 2,
        (day + HOUR_MS, "succeeded"): 1,
        (day - HOUR_MS, "succeeded"): 1,
    }
    by_day = front(any_receiver, day - DAY_MS, DAY_MS).ended
    assert by_day == {(day, "succeeded"): 3, (day - DAY_MS, "succeeded"): 1}
    assert front(any_receiver, day - DAY_MS, visible=frozenset({"other"})).ended == {}


def test_the_front_page_counts_no_more_overdue_jobs_than_it_must(any_receiver, monkeypatch):
    monkeypatch.setattr("receiver.jobs.summary.MAX_COUNTED", 2)
    for number in range(4):
        any_receiver.call_back(bulk(str(number), "RUNNING"))
    _, last = first_and_last(any_receiver)
    assert front(any_receiver, NOW, now=last + 10).summary.overdue == 3
    assert summary(any_receiver.services.database, None, last + 10, 10).overdue == 4
    assert MAX_COUNTED > 2


def test_the_last_callback_of_each_instance_is_its_newest_event(any_receiver):
    any_receiver.call_back(bulk("1", "RUNNING"))
    any_receiver.call_back(bulk("1"))
    found = gauges(any_receiver.services.database, NOW, 10)
    newest = any_receiver.services.database.rows(text("SELECT max(n) FROM events"))[0][0] >> 20
    assert found.last_callbacks == {"default": newest}
    assert found.summary.last_callback_at == iso(newest)
