"""The law of jobs: what a job is depends on what was said of it, and on nothing else.

The oracle computes each fact from the whole set of notifications, by the words of the law; the
code joins one notification after another. They must agree, whatever comes in whatever order.
"""

from functools import reduce
from typing import Any

import pytest
from builders import examples
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from oracle import DAY, TEXTS, Said, by_law, key

from receiver.jobs.job import OUTCOMES, Job, changes, encode, erase, is_ending, join, must_poll
from receiver.lib.clock import iso
from receiver.openconnectors.notifications import MAX_TIME_MS


def shown(job: Job) -> dict[str, Any]:
    """Everything a job shows, by the code."""
    shows = {name: job.text(name) for name in TEXTS}
    names = [name for name, value in vars(Job).items() if isinstance(value, property)]
    return shows | {name: getattr(job, name) for name in (*names, "attempt", "conflict")}


def merge(job: Job, said: Said) -> Job:
    return join(job, Job.of(said, said.received_at))


def fold(told: list[Said]) -> Job:
    return reduce(merge, told, Job())


def maybe(*values: object) -> st.SearchStrategy[Any]:
    return st.sampled_from([None, None, *values])


def said(status: str, **facts: Any) -> Said:
    return Said("bulk_job", "1234", status, **facts)


WORDS = (
    *("CREATED", "STARTED", "RUNNING", "running", "CANCELLATION_PENDING", "PAUSED", "paused", "ZZ"),
    *("CANCELLED", "CANCELED", "ABORTED", "aborted", "ERROR", "COMPLETED", "COMPLETE", "complete"),
    "Success",
)
counts = maybe(0, 1, 2, 3)
notifications = st.builds(
    said,
    status=st.sampled_from(WORDS) | st.sampled_from(["COMPLETED", "COMPLETE", "ERROR"]),
    attempt=st.sampled_from([0, 0, 1, 2]),
    completed_at=maybe(0, 1000, 2000),
    reported=counts,
    failed=counts,
    submitted=counts,
    asked_at=maybe(0, 100, 150, 250, 10**9),
    submitted_at=maybe(10, 20),
    created_at=maybe(0, 5, 6),
    message=maybe("", "a", "b"),
    object=maybe("contact", "list"),
    direction=maybe("UPLOAD"),
    file=maybe("/a.csv", "/b.csv"),
    callback_payload=maybe("{}", "1"),
    source=st.sampled_from(["callback", "poll", "submission"]),
    received_at=st.sampled_from([0, 100, 200, 300]),
)
histories = st.lists(notifications, max_size=7)


@settings(max_examples=examples(3000))
@given(histories, st.data())
def test_a_job_is_what_the_law_says_whatever_the_order_and_number_of_deliveries(told, data):
    again = data.draw(st.lists(st.sampled_from(told), max_size=4)) if told else []
    job = fold(data.draw(st.permutations(told + again)))
    event(f"{job.outcome}, conflict: {job.conflict}")
    assert shown(job) == by_law(told)


@settings(max_examples=examples(500))
@given(histories, st.data())
def test_two_nodes_that_saw_different_halves_agree_as_soon_as_they_meet(told, data):
    nodes = [data.draw(st.sampled_from(["one", "other", "both"])) for _ in told]
    one = fold([said for said, node in zip(told, nodes, strict=True) if node != "other"])
    other = fold([said for said, node in zip(told, nodes, strict=True) if node != "one"])
    assert join(one, other) == join(other, one) == fold(told)
    assert shown(join(one, other)) == by_law(told)


@settings(max_examples=examples(500))
@given(histories.map(fold), histories.map(fold), histories.map(fold))
def test_joining_is_commutative_associative_and_idempotent_and_begins_with_nothing(a, b, c):
    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == a
    assert join(a, Job()) == join(Job(), a) == a
    assert join(join(a, b), b) == join(a, b)


@given(histories.map(fold), notifications, notifications)
def test_merging_is_commutative_and_idempotent(job, one, other):
    assert merge(merge(job, one), other) == merge(merge(job, other), one)
    assert merge(merge(job, one), one) == merge(job, one)
    assert merge(job, one) == join(job, fold([one]))


@settings(max_examples=examples(500))
@given(histories, histories, st.integers(1, 10**13))
def test_nothing_that_is_said_before_or_after_brings_back_what_was_erased(before, after, at):
    job = reduce(merge, after, erase(fold(before), at))
    assert job == erase(fold(before + after), at) == join(fold(after), erase(fold(before), at))
    gone = dict.fromkeys(("message", "file", "callback_payload"))
    assert shown(job) == {**by_law(before + after), **gone, "erased_at": at}
    assert erase(job, at + 1) == job


@given(histories)
def test_a_job_survives_being_stored_as_json(told):
    job = fold(told)
    assert Job.decode(encode(job.registers)) == job


@given(histories, notifications)
def test_an_ended_job_stays_ended_until_it_runs_again(told, late):
    before, after = fold(told), fold([*told, late])
    runs_again = late.attempt > before.attempt
    assert after.ended >= before.ended or runs_again
    assert after.learnt_by is not None or not before.learnt_by or runs_again


@settings(max_examples=examples(1000))
@given(histories, notifications)
@example([], said("RUNNING"))
# One register alone, and what it has a say in.
@example([said("RUNNING")], said("CREATED", submitted=5))
@example([said("COMPLETED", reported=8)], said("CREATED", submitted=10))
@example([said("COMPLETED", completed_at=1)], said("COMPLETED", completed_at=1, failed=2))
@example([said("COMPLETED", reported=3)], said("ERROR", attempt=1))
def test_a_notification_changes_what_then_shows_differently_or_says_why_it_changed_nothing(
    told, late
):
    before = fold(told)
    after = merge(before, late)  # which keeps the registers that it does not change
    changed, note = changes(before, after, late)
    was, now = shown(before), shown(after)
    # Counts are one fact, `ended` and `files_expire_at` follow from others, `called_back` is ours.
    derived = {"ended", "files_expire_at", "called_back", "attempt"}
    records = {"submitted", "loaded", "failed", "reported"}
    differing = {name for name in was if was[name] != now[name]} - derived
    assert set(changed) == {"records" if name in records else name for name in differing}
    if now["conflict"] > was["conflict"]:
        assert note == f"contradicts another ending of this job ({before.status})"
    elif changed:
        assert note is None
    elif key(late) < max(map(key, told)):
        assert note == f"stale: the job was already {before.status}"
    else:
        assert note == "nothing new"


@pytest.mark.parametrize(
    ("lesser", "greater"),
    [
        ({"status": "CREATED"}, {"status": "STARTED"}),
        ({"status": "STARTED"}, {"status": "RUNNING"}),
        ({"status": "RUNNING"}, {"status": "AAA unknown"}),
        ({"status": "AAA unknown"}, {"status": "ZZZ unknown"}),
        ({"status": "ZZZ unknown"}, {"status": "CANCELLATION_PENDING"}),
        ({"status": "CANCELLATION_PENDING"}, {"status": "CANCELLED"}),
        ({"status": "CANCELLED"}, {"status": "ABORTED"}),
        ({"status": "ABORTED"}, {"status": "ERROR"}),
        ({"status": "ERROR"}, {"status": "COMPLETED"}),
        ({"status": "ERROR"}, {"status": "complete"}),
        ({"status": "COMPLETE"}, {"status": "COMPLETED"}),
        ({"status": "COMPLETED"}, {"status": "completed"}),
        ({"status": "COMPLETED"}, {"status": "CANCELLED", "completed_at": 1}),
        ({"status": "COMPLETED", "completed_at": 1}, {"status": "CANCELLED", "completed_at": 2}),
        ({"status": "COMPLETED", "completed_at": 9}, {"status": "CANCELLED", "attempt": 1}),
        ({"status": "RUNNING", "completed_at": 9}, {"status": "CANCELED"}),
        ({"status": "RUNNING", "completed_at": 9}, {"status": "running"}),
        ({"status": "COMPLETED", "completed_at": 9}, {"status": "CREATED", "attempt": 1}),
        ({"status": "ERROR"}, {"status": "success"}),
    ],
)
def test_the_greater_key_is_the_status(lesser, greater):
    told = [said(**lesser), said(**greater)]
    assert {fold(told).status, fold(told[::-1]).status} == {greater["status"]}


@pytest.mark.parametrize(
    ("status", "submitted", "reported", "failed", "outcome"),
    [
        ("COMPLETED", 10, 10, 0, "succeeded"),
        ("COMPLETED", None, None, None, "succeeded"),  # unknown counts prove nothing
        ("COMPLETED", 10, None, None, "succeeded"),
        ("COMPLETED", None, 10, None, "succeeded"),
        ("COMPLETED", None, 0, None, "succeeded"),
        ("COMPLETED", None, 0, 0, "succeeded"),
        ("COMPLETED", 0, 0, 0, "succeeded"),
        ("COMPLETED", 10, 12, 0, "succeeded"),
        ("COMPLETED", 10, 8, 2, "partial"),
        ("COMPLETED", None, 8, 2, "partial"),
        ("COMPLETED", None, None, 2, "partial"),
        ("COMPLETED", 10, None, 2, "partial"),
        ("COMPLETED", 10, 9, None, "partial"),
        ("COMPLETED", 10, 9, 0, "partial"),
        ("COMPLETED", 10, 0, 0, "failed"),
        ("COMPLETED", 10, 0, None, "failed"),
        ("COMPLETED", 0, 0, None, "succeeded"),
        ("COMPLETED", 10, 10, 2, "partial"),  # the total was reported
        ("COMPLETED", 10, 10, 10, "failed"),
        ("COMPLETED", 10, 1, 9, "partial"),
        ("COMPLETED", None, 2, 2, "failed"),
        ("success", 10, 10, 0, "succeeded"),
        ("COMPLETED", 10, 0, 10, "failed"),
        ("COMPLETED", None, 0, 1, "failed"),
        ("COMPLETED", 10, 0, 1, "failed"),
        ("COMPLETED", 10, None, 10, "failed"),
        ("COMPLETED", 10, 3, 10, "failed"),
        ("COMPLETED", 10, 3, 11, "failed"),
        ("COMPLETED", 0, 3, 1, "failed"),
        ("complete", 10, 8, 2, "partial"),
        ("ERROR", 10, 10, 0, "failed"),
        ("ABORTED", None, None, None, "failed"),
        ("aborted", 10, 8, 2, "failed"),
        ("CANCELLED", 10, 10, 0, "cancelled"),
        ("canceled", None, 0, 9, "cancelled"),
        ("CREATED", 10, None, None, "pending"),
        ("Started", 10, 10, 0, "pending"),
        ("RUNNING", 10, 0, 10, "pending"),
        ("CANCELLATION_PENDING", None, None, None, "pending"),
        ("SUSPENDED", 10, 8, 2, "unknown"),
        ("COMPLETED ", None, None, None, "unknown"),
        ("\u017ftarted", None, None, None, "unknown"),  # upper() would make it STARTED
    ],
)
def test_an_outcome_is_what_the_law_says(status, submitted, reported, failed, outcome):
    job = fold([said(status, submitted=submitted, reported=reported, failed=failed)])
    assert job.outcome == outcome
    assert outcome in OUTCOMES
    assert job.ended == is_ending(status) == (outcome not in ("pending", "unknown"))


@pytest.mark.parametrize(
    ("submitted", "failed", "reported", "loaded"),
    [
        (None, None, None, None),
        (10, 3, None, None),
        (10, None, 7, 7),
        (10, 0, 7, 7),
        (10, 0, 12, 12),
        (10, 3, 7, 7),
        (10, 3, 6, 6),
        (10, 3, 8, 5),
        (10, 3, 10, 7),
        (2, 2, 2, 0),
        (1, 1, 1, 0),
        (1, 3, 2, 0),
        (None, 3, 7, 7),
        (None, 3, 3, 0),
        (None, 3, 2, 2),
        (None, 3, 0, 0),
    ],
)
def test_what_was_loaded_is_worked_out_from_what_was_reported(submitted, failed, reported, loaded):
    facts = {"failed": failed, "reported": reported}
    for told in (
        [said("COMPLETED", submitted=submitted, **facts)],
        [said("COMPLETED", **facts), said("CREATED", submitted=submitted)],
    ):
        job = fold(told)
        assert (job.loaded, job.reported, job.failed) == (loaded, reported, failed)


def test_of_a_job_of_which_nothing_was_said_nothing_is_known():
    assert {name: value for name, value in shown(Job()).items() if value} == {"outcome": "pending"}


def test_counts_are_hidden_as_soon_as_the_status_moves_on():
    running = said("RUNNING", reported=5, failed=1, submitted=10)
    ended = fold([running, said("COMPLETED")])
    assert (ended.loaded, ended.failed, ended.submitted, ended.outcome) == (
        *(None, None, 10),
        "succeeded",
    )
    assert fold([running]).loaded == 5
    assert fold([running, said("STARTED", reported=9)]).loaded == 5


def test_counts_of_an_earlier_attempt_are_hidden():
    first = said("COMPLETED", reported=0, failed=10)
    assert fold([first, said("COMPLETED", attempt=1)]).failed is None
    assert fold([first, said("COMPLETED", attempt=1, failed=3, reported=7)]).failed == 3


def test_a_callback_without_counts_does_not_hide_those_of_the_same_ending():
    polled = said("COMPLETED", reported=8, failed=2, source="poll")
    job = fold([polled, said("COMPLETED", completed_at=1000)])
    assert (job.loaded, job.failed, job.outcome) == (8, 2, "partial")


def test_of_two_pairs_of_counts_one_is_kept_whole():
    job = fold([said("COMPLETED", reported=9, failed=1), said("COMPLETED", reported=1, failed=2)])
    assert (job.reported, job.failed) == (1, 2)


@pytest.mark.parametrize(
    ("endings", "conflict"),
    [
        ([("COMPLETED", 0)], False),
        ([("COMPLETED", 0), ("complete", 0), ("COMPLETE", 0)], False),
        ([("CANCELLED", 0), ("CANCELED", 0)], False),
        ([("COMPLETED", 0), ("ERROR", 0)], True),
        ([("CANCELLED", 1), ("ABORTED", 1)], True),
        ([("ERROR", 0), ("COMPLETED", 1)], False),
        ([("ERROR", 0), ("COMPLETED", 0), ("COMPLETED", 1)], False),
        ([("COMPLETED", 0), ("COMPLETED", 1), ("ERROR", 1)], True),
        ([("COMPLETED", 0), ("ERROR", 0), ("RUNNING", 1)], False),
        ([("COMPLETED", 0), ("Success", 0)], False),
        ([("COMPLETED", 0), ("SUSPENDED", 0)], False),
    ],
)
def test_only_endings_of_the_present_attempt_contradict_each_other(endings, conflict):
    assert fold([said(status, attempt=attempt) for status, attempt in endings]).conflict == conflict


POLLED = {"source": "poll", "received_at": 900}


def test_while_endings_contradict_each_other_the_latest_poll_decides():
    error = said("ERROR", completed_at=50, failed=9, reported=0, received_at=100)
    done = said("COMPLETED", received_at=200)
    first = said("CANCELLED", failed=1, reported=7, asked_at=300, **POLLED)
    last = said("COMPLETED", failed=2, reported=8, asked_at=400, **POLLED)
    job = fold([error, done])
    assert (job.status, job.conflict, job.failed, job.ended_at) == ("ERROR", True, 9, 50)
    job = fold([error, done, first])
    assert (job.status, job.failed, job.reported, job.ended_at) == ("CANCELLED", 1, 7, 900)
    job = fold([error, last, first, done])
    assert (job.status, job.failed, job.reported, job.ended_at) == ("COMPLETED", 2, 8, 900)


def test_a_poll_decides_by_when_it_was_asked_for_and_not_by_when_it_was_answered():
    late_answer = said("ERROR", asked_at=300, source="poll", received_at=900)
    early_answer = said("COMPLETED", asked_at=400, source="poll", received_at=500)
    assert fold([early_answer, late_answer]).status == "COMPLETED"


def test_a_clock_that_is_ahead_does_not_make_a_poll_the_latest_for_ever():
    ahead = said("ERROR", asked_at=10**12, source="poll", received_at=500)
    later = said("COMPLETED", asked_at=600, source="poll", received_at=700)
    assert fold([ahead, later]).status == "COMPLETED"


def test_without_a_contradiction_a_poll_is_a_word_like_any_other():
    timed = said("COMPLETED", completed_at=50, received_at=100)
    assert fold([timed, said("complete", asked_at=800, **POLLED)]).status == "COMPLETED"


def test_a_poll_decides_nothing_of_another_attempt():
    polled = said("CANCELLED", asked_at=800, **POLLED)
    again = [said("COMPLETED", attempt=1), said("ERROR", attempt=1)]
    assert fold([*again, polled]).status == "COMPLETED"
    assert fold([*again, polled.replace(attempt=1)]).status == "CANCELLED"


def test_a_poll_that_is_no_ending_decides_nothing():
    told = [said("COMPLETED"), said("ERROR", completed_at=1)]
    assert fold([*told, said("RUNNING", asked_at=800, **POLLED)]).status == "ERROR"


def test_a_deciding_poll_without_counts_leaves_those_told_of_the_same_ending():
    told = [said("COMPLETED", reported=8, failed=2), said("ERROR")]
    assert fold([*told, said("COMPLETED", asked_at=800, **POLLED)]).failed == 2
    assert fold([*told, said("ERROR", asked_at=800, **POLLED)]).failed is None


CALLBACK, POLL = said("ERROR", received_at=100), said("COMPLETED", asked_at=800, **POLLED)
OTHER_POLL = POLL.replace(status="ABORTED", asked_at=900)


@pytest.mark.parametrize(
    ("told", "late", "ask"),
    [
        ([], CALLBACK, None),
        ([CALLBACK], said("RUNNING"), None),
        ([CALLBACK], CALLBACK.replace(reported=7), None),
        ([CALLBACK], said("COMPLETED"), True),
        ([CALLBACK], POLL, True),  # two sources, two endings: once more
        ([CALLBACK, POLL], OTHER_POLL, False),
        ([CALLBACK, POLL], said("CANCELLED"), True),
        ([CALLBACK, POLL], said("RUNNING"), None),
        ([CALLBACK, POLL], said("RUNNING", attempt=1), False),
        ([CALLBACK, POLL], said("COMPLETED", attempt=1), False),
        ([CALLBACK, POLL.replace(attempt=1)], said("COMPLETED"), None),
        ([CALLBACK, POLL, said("RUNNING", attempt=1)], said("CANCELLED"), None),
        ([CALLBACK.replace(attempt=1), POLL.replace(attempt=1)], said("CANCELLED"), None),
    ],
)
def test_the_vendor_is_asked_when_endings_contradict_each_other_until_it_answers(told, late, ask):
    before = fold(told)
    assert must_poll(before, merge(before, late), late) is ask


def test_who_told_of_an_ending_first_is_who_received_it_earliest():
    early = said("ERROR", source="poll", received_at=100)
    late = said("COMPLETED", source="callback", received_at=200)
    under_way = said("RUNNING", source="callback", received_at=50)
    assert fold([late, early, under_way]).learnt_by == "poll"
    assert fold([late, under_way]).learnt_by == "callback"
    assert fold([under_way]).learnt_by is None


def test_who_told_of_the_ending_of_an_earlier_attempt_does_not_count():
    polled = said("ERROR", source="poll", received_at=100)
    called = said("COMPLETED", source="callback", attempt=1, received_at=200)
    assert (fold([polled, called]).learnt_by, fold([polled, called]).called_back) == (
        "callback",
        True,
    )
    again = fold([polled, called, said("RUNNING", attempt=2)])
    assert (again.learnt_by, again.called_back, again.outcome) == (None, False, "pending")


def test_a_job_ended_when_the_vendor_says_else_when_we_heard_of_the_winner():
    heard = [said("COMPLETED", received_at=300), said("COMPLETED", received_at=200)]
    error = said("ERROR", received_at=100)
    timed = said("COMPLETED", completed_at=50, received_at=400)
    assert fold([*heard, error]).ended_at == 200
    assert fold([*heard, error, timed]).ended_at == 50
    assert fold([said("RUNNING", completed_at=50, received_at=100)]).ended_at is None
    assert fold(heard).files_expire_at == 200 + 3 * DAY


def test_the_same_body_received_by_two_nodes_ended_when_it_came_first():
    body = said("COMPLETED", received_at=100)
    on_another_node = body.replace(received_at=90)
    assert fold([body, on_another_node]) == fold([on_another_node, body])
    assert fold([body, on_another_node]).ended_at == 90


def test_every_time_that_a_job_shows_can_be_written():
    job = fold([said("COMPLETED", completed_at=MAX_TIME_MS, created_at=MAX_TIME_MS)])
    assert iso(job.ended_at) == iso(job.created_at) == "9999-12-31T23:59:59.999Z"
    assert iso(job.files_expire_at) is not None


def test_null_is_no_value_but_an_empty_text_and_zero_are():
    kept = fold([said("RUNNING", message="a", created_at=5), said("COMPLETED")])
    assert (kept.text("message"), kept.created_at) == ("a", 5)
    emptied = fold([said("RUNNING", message="a"), said("COMPLETED", message="", created_at=0)])
    assert (emptied.text("message"), emptied.created_at) == ("", 0)


@pytest.mark.parametrize(
    ("told", "late", "changed", "note"),
    [
        ([], said("CREATED", submitted=10), ["status", "records"], None),
        ([said("RUNNING")], said("RUNNING"), [], "nothing new"),
        ([said("COMPLETED")], said("RUNNING"), [], "stale: the job was already COMPLETED"),
        ([said("RUNNING")], said("CREATED", object="list"), ["object"], None),
        ([said("RUNNING")], said("RUNNING", reported=5), ["records"], None),
        (
            [said("COMPLETED")],
            said("RUNNING", reported=5),
            [],
            "stale: the job was already COMPLETED",
        ),
        (
            [said("ERROR")],
            said("COMPLETED"),
            ["status", "outcome", "conflict"],
            "contradicts another ending of this job (ERROR)",
        ),
        (
            [said("COMPLETED")],
            said("ERROR"),
            ["conflict"],
            "contradicts another ending of this job (COMPLETED)",
        ),
        (
            [said("COMPLETED"), said("ERROR")],
            said("ABORTED"),
            [],
            "stale: the job was already COMPLETED",
        ),
        ([said("RUNNING")], said("CANCELED"), ["status", "outcome", "ended_at", "learnt_by"], None),
    ],
)
def test_the_timeline_says_what_changed_or_why_nothing_did(told, late, changed, note):
    before = fold(told)
    assert changes(before, merge(before, late), late) == (changed, note)


def test_a_notification_without_a_status_has_the_empty_word():
    assert merge(Job(), Said("bulk_job", "1")).status == ""
