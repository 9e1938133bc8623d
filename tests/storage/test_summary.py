"""How it stands is what counting the jobs would say, whoever wrote meanwhile."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from builders import Receiver, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from receiver.database.engine import Database
from receiver.database.models import Count, Facet, JobRow, UsualTime
from receiver.jobs.job import FILES_MS, OUTCOMES
from receiver.jobs.projection import NewObservation
from receiver.jobs.summary import MAX_COUNTED, gauges, overview, summary
from receiver.lib.clock import DAY_MS, HOUR_MS, iso
from receiver.openconnectors.notifications import Notification

NOW = 497_000 * HOUR_MS + 1234  # ms
WORDS = ("CREATED", "RUNNING", "PAUSED", "COMPLETED", "ERROR", "CANCELLED")


def body(job: str, status: str = "COMPLETED", **facts) -> bytes:
    return json.dumps({"id": job, "status": status, **facts}).encode()


@pytest.fixture
def receiver(make_receiver: Callable[..., Receiver], database_url: str) -> Receiver:
    return make_receiver(database_url)


def polled(job: str, status: str, *, due: bool = True) -> NewObservation:
    return NewObservation(
        "default", Notification("bulk_job", job, status, source="poll"), callback_due=due
    )


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
    body,
    st.sampled_from("abcde"),
    st.sampled_from(WORDS),
    copy=st.integers(0, 3),
    recordsFailedCount=st.integers(0, 2),
    recordsCount=st.integers(0, 2),
    job_reset_attempt=st.integers(0, 2),
    completionTime=st.sampled_from([NOW - 1, NOW + 5 * HOUR_MS]),
)
polls = st.builds(polled, st.sampled_from("abcde"), st.sampled_from(WORDS), due=st.booleans())


@settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
@given(items=st.lists(callbacks | callbacks | polls, max_size=30))
def test_counts_say_what_counting_says_after_any_two_writers_at_once(items, receiver, database_url):
    """The database lives on from one example to the next, and so does what was counted."""

    def write(item: bytes | NewObservation) -> None:
        if isinstance(item, bytes):
            assert receiver.call_back(item).status_code == 200
        else:
            receiver.services.intake.observe(item)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, items))
    assert counted(receiver.services.database) == there(receiver.services.database)


@pytest.mark.parametrize("visible", [None, frozenset({"default"}), frozenset({"b"})])
def test_the_summary_is_what_counting_says_for_the_instances_that_a_token_sees(visible, receiver):
    times = [NOW + hours * HOUR_MS + ms for hours in (0, 1, 23, 24) for ms in (-1235, -1, 0, 1, 99)]
    for number, at in enumerate(times):
        receiver.call_back(body(str(number), completionTime=at - FILES_MS))
    for word in ("PAUSED", "RUNNING"):
        receiver.call_back(body(f"under-way-{word}", word))
    receiver.call_back(b"unreadable")
    receiver.services.intake.observe(polled("lost", "ERROR"))
    database = receiver.services.database
    (seen,) = database.rows(select(func.max(JobRow.first_seen_at), func.max(JobRow.updated_at)))
    seen = 0 if visible == frozenset({"b"}) else 1
    told = summary(database, visible, NOW, 10)
    assert told.jobs == {
        outcome: seen * {"succeeded": 20, "failed": 1, "pending": 1, "unknown": 1}.get(outcome, 0)
        for outcome in OUTCOMES
    }
    assert told.expiring_24h == seen * sum(NOW < at < NOW + DAY_MS for at in times)
    assert (told.lost_callbacks, told.unreadable_events) == (seen, seen)
    assert (told.last_callback_at is not None) == bool(seen)


def first_and_last(receiver: Receiver) -> tuple[int, int]:
    """When the first and the last job was first heard of; PostgreSQL goes by its own clock."""
    first_seen = JobRow.first_seen_at
    (row,) = receiver.services.database.rows(select(func.min(first_seen), func.max(first_seen)))
    return row[0], row[1]


def test_overdue_goes_by_the_usual_time_of_an_object_be_it_longer_or_shorter(receiver):
    for name in ("quick", "slow", "other"):
        receiver.call_back(body(name, "RUNNING", objectName=name))
    database = receiver.services.database
    with database.write() as session:
        session.add(UsualTime(instance="default", object="quick", ms=10))
        session.add(UsualTime(instance="default", object="slow", ms=100_000))
    first, last = first_and_last(receiver)
    moments = (first + 9, last + 10, last + 50_000, last + 100_000)
    assert [summary(database, None, at, 50_000).overdue for at in moments] == [0, 1, 2, 3]
    assert gauges(database, last, 50_000).oldest_under_way == first


def front(receiver: Receiver, since: int, width: int = HOUR_MS, visible=None, now: int = NOW):
    with receiver.services.database.snapshot() as connection:
        return overview(connection, visible, now, 10, since, width, HOUR_MS)


def test_the_front_page_counts_what_ended_by_hour_and_by_day(receiver):
    day = NOW // DAY_MS * DAY_MS
    ends = [day, day + HOUR_MS - 1, day + HOUR_MS, day - 1, day - 2 * DAY_MS]
    for number, at in enumerate(ends):
        receiver.call_back(body(str(number), completionTime=at))
    by_hour = front(receiver, day - DAY_MS).ended
    assert by_hour == {
        (day, "succeeded"): 2,
        (day + HOUR_MS, "succeeded"): 1,
        (day - HOUR_MS, "succeeded"): 1,
    }
    by_day = front(receiver, day - DAY_MS, DAY_MS).ended
    assert by_day == {(day, "succeeded"): 3, (day - DAY_MS, "succeeded"): 1}
    assert front(receiver, day - DAY_MS, visible=frozenset({"other"})).ended == {}


def test_the_front_page_counts_no_more_overdue_jobs_than_it_must(receiver, monkeypatch):
    monkeypatch.setattr("receiver.jobs.summary.MAX_COUNTED", 2)
    for number in range(4):
        receiver.call_back(body(str(number), "RUNNING"))
    _, last = first_and_last(receiver)
    assert front(receiver, NOW, now=last + 10).summary.overdue == 3
    assert summary(receiver.services.database, None, last + 10, 10).overdue == 4
    assert MAX_COUNTED > 2


def test_the_last_callback_of_each_instance_is_its_newest_event(receiver):
    receiver.call_back(body("1", "RUNNING"))
    receiver.call_back(body("1"))
    found = gauges(receiver.services.database, NOW, 10)
    newest = receiver.services.database.rows(text("SELECT max(n) FROM events"))[0][0] >> 20
    assert found.last_callbacks == {"default": newest}
    assert found.summary.last_callback_at == iso(newest)
