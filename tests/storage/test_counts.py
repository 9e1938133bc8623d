"""The counts behind the summary say what counting the jobs would say, whoever wrote meanwhile."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from builders import NOW, bulk, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from test_summary import counted, there

from receiver.callbacks import store as store_module
from receiver.database import retention
from receiver.database.models import Facet, JobRow
from receiver.jobs.job import FILES_MS
from receiver.jobs.projection import NewObservation
from receiver.jobs.queries import Filters, list_jobs
from receiver.jobs.summary import summary
from receiver.openconnectors.notifications import Notification, parse

HOUR = 3_600_000
WORDS = ("CREATED", "RUNNING", "PAUSED", "COMPLETED", "ERROR", "CANCELLED")
turns = count()


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
            "completionTime": st.sampled_from([NOW - 1, NOW + 5 * HOUR]),
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
    stored.write(bulk(completionTime=NOW - FILES_MS - HOUR))
    with stored.database.write() as session:
        retention.delete_old_counts(session, NOW + retention.MAX_COUNT_HOURS * HOUR)
    assert [hour for hour, *_ in counted(stored.database)] == [0]
    stored.write(bulk(completionTime=NOW))
    assert summary(stored.database, None, NOW + FILES_MS - HOUR, 1).expiring_24h == 1
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


@pytest.mark.parametrize("visible", [None, frozenset({"default"}), frozenset()])
def test_the_summary_is_what_counting_says_for_the_instances_that_a_token_may_see(
    visible, open_store, database_url
):
    stored = open_store(database_url)
    times = [NOW + hours * HOUR + ms for hours in (0, 1, 23, 24) for ms in (-1235, -1, 0, 1, 99)]
    polled = Notification("bulk_job", "lost", "ERROR", source="poll")
    stored.write(
        *(bulk(str(n), completionTime=at - FILES_MS) for n, at in enumerate(times)),
        *(bulk(f"under-way-{word}", word) for word in ("PAUSED", "RUNNING")),
        b"unreadable",
        NewObservation("default", polled, callback_due=True),
    )
    shown = visible is None or "default" in visible
    jobs = list_jobs(stored.database, Filters(), 1000) if shown else []
    found = summary(stored.database, visible, NOW, 10)
    by_outcome = Counter(job.outcome for job in jobs)
    assert found.jobs == {outcome: by_outcome[outcome] for outcome in found.jobs}
    expire = [job.files_expire_at for job in jobs if job.files_expire_at is not None]
    assert found.expiring_24h == sum(NOW < at < NOW + 24 * HOUR for at in expire)
    assert (found.lost_callbacks, found.unreadable_events) == (shown, shown)
    assert (found.last_callback_at is None) == (not shown)
    due = max((job.first_seen_at for job in jobs), default=NOW) + 10
    assert summary(stored.database, visible, due, 10).overdue == 2 * shown


def test_no_count_is_below_zero_and_no_facet_twice(open_store, database_url):
    stored = open_store(database_url)
    for status in WORDS:
        stored.write(bulk("1", status), bulk("2", status, objectName="contact"))
    with stored.database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM counts WHERE n < 0")) == 0
        kept = [tuple(row)[1:] for row in session.execute(select(Facet.__table__))]
        assert len(kept) == len(set(map(json.dumps, kept)))
        assert session.scalar(select(func.count()).select_from(JobRow)) == 2
