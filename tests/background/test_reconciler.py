"""Where callbacks never came: every outcome by asking, each job once, no vendor asked too often."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import httpx
import pytest
from builders import Stored
from fakes import BAD_ROWS, ROWS, Between, between, impatient, made_elsewhere, until
from nodes import DEADLINE
from sqlalchemy import select, update
from structlog.testing import capture_logs

from receiver.app import create_app
from receiver.background import Background, Task
from receiver.database.models import Instance, JobRow, Pace
from receiver.errors import CircuitOpen, StoreUnavailable
from receiver.instances import registry
from receiver.instances.encryption import SecretBox
from receiver.jobs.projection import NewObservation
from receiver.jobs.usual_times import ENOUGH_TO_LEARN
from receiver.lib.clock import now_ms
from receiver.openconnectors.client import VendorClient
from receiver.openconnectors.notifications import Notification
from receiver.reconcile import claims, pacing
from receiver.reconcile import reconciler as reconciling
from receiver.reconcile.reconciler import MAX_LIST_PAGES, Reconciler
from receiver.reconcile.results import Report
from receiver.settings import Settings

STATUSES = "GET /bulk/{id}/status"
ERRORS = "GET /bulk/{id}/errors"
MINUTE = 60_000
RAREST_PASS = 2 * MINUTE  # in deploy/kubernetes
SHARED = ("sqlite", "postgresql18")  # each kind of database that several nodes can share

shared = pytest.mark.parametrize("kind", SHARED)


class Later:
    """A clock that stands still, `ahead` of when it was made."""

    def __init__(self, ahead: int = 0) -> None:
        self._made, self.ahead = now_ms(), ahead

    def __call__(self) -> int:
        return self._made + self.ahead


def dropped(relay: Between, count: int, **given) -> list[str]:
    """Jobs that have ended at the vendor, and whose callbacks never came."""
    relay.faults(drop_callbacks=True)
    ids = [relay.uploaded(**given) for _ in range(count)]
    relay.ended_at_vendor(*ids)
    return ids


def outcomes(relay: Between, ids: list[str]) -> Counter:
    jobs = [relay.job(job_id) for job_id in ids]
    return Counter((job["outcome"], job["learnt_by"]) for job in jobs)


# --- what is asked for, and what is learnt


def test_with_all_callbacks_dropped_every_outcome_is_learnt_by_polling_alone(relay):
    good = dropped(relay, 12)
    bad = dropped(relay, 3, content=BAD_ROWS)
    relay.faults(drop_callbacks=True, final_status="ERROR")
    failed = [relay.uploaded()]
    relay.ended_at_vendor(*failed)
    report = relay.reconciler().one_pass(everything=True)
    assert (report.asked, report.ended, report.found, report.blocked) == (16, 16, 0, [])
    assert outcomes(relay, good) == {("succeeded", "poll"): 12}
    assert outcomes(relay, bad) == {("partial", "poll"): 3}
    assert outcomes(relay, failed) == {("failed", "poll"): 1}
    assert {relay.asked(STATUSES, job_id) for job_id in good + bad + failed} == {1}
    assert relay.summary()["lost_callbacks"] == 16
    assert relay.get("/events").json["events"] == []  # a poll is no event


def test_with_all_callbacks_dropped_every_outcome_is_right_within_half_an_hour(relay):
    """By the settings as they are, and the rarest passes that `deploy/` has."""
    good, bad = dropped(relay, 6), dropped(relay, 3, content=BAD_ROWS)
    clock = Later()

    def sleep(seconds: float) -> None:
        clock.ahead += round(1000 * seconds)

    settings = Settings(encryption_keys=relay.services.settings.encryption_keys)
    reconciler = relay.reconciler(clock=clock, sleep=sleep, settings=settings)
    asked = 0
    while clock.ahead < 30 * MINUTE - RAREST_PASS:
        for _ in range(RAREST_PASS * 2 // MINUTE):
            clock.ahead += MINUTE // 2
            reconciler.beat()  # as workers do; or it would look like an outage of ours
        asked += reconciler.one_pass().asked
    assert clock.ahead <= 30 * MINUTE
    assert asked == 0  # the job list tells it
    assert outcomes(relay, good) == {("succeeded", "poll"): 6}
    assert outcomes(relay, bad) == {("partial", "poll"): 3}


@pytest.mark.parametrize("shape", ["v2", "v3", "list"])
def test_polls_feed_the_same_door_in_every_shape(make_database, shape):
    with between(make_database("sqlite"), shape=shape) as relay:
        ids = dropped(relay, 2, content=BAD_ROWS)
        relay.reconciler().one_pass(everything=True)
        assert outcomes(relay, ids) == {("partial", "poll"): 2}
        assert relay.job(ids[0])["records"] == {
            "submitted": 4,
            "loaded": 2,
            "failed": 2,
            "reported": 2,
        }


def test_a_lost_callback_that_comes_late_is_lost_no_longer(relay):
    (job_id,) = dropped(relay, 1)
    relay.reconciler().one_pass(everything=True)
    assert relay.summary()["lost_callbacks"] == 1
    body = json.dumps({"id": job_id, "status": "COMPLETED", "recordsCount": 2}).encode()
    assert relay.call_back(body, "gooddata").json["duplicate"] is False
    assert relay.summary()["lost_callbacks"] == 0
    job = relay.job(job_id)
    assert (job["outcome"], job["learnt_by"], job["events"]) == ("succeeded", "poll", 1)


def unlisted(relay: Between, count: int) -> None:
    """Jobs under way at a vendor who does not list them."""
    for number in range(count):
        body = {"id": f"unlisted-{number}", "status": "RUNNING", "objectName": "contact"}
        relay.call_back(json.dumps(body).encode(), "gooddata")


def test_what_is_not_overdue_is_left_alone(relay):
    unlisted(relay, 3)
    clock = Later(14 * MINUTE)
    assert relay.reconciler(clock=clock).one_pass().asked == 0
    clock.ahead += MINUTE
    assert relay.reconciler(clock=clock).one_pass().asked == 3


def took_100_s(relay: Between, count: int) -> None:
    for number in range(count):
        for at, status in ((1_000_000, "RUNNING"), (1_100_000, "COMPLETED")):
            told = Notification("bulk_job", f"old-{number}", status, object="contact")
            stored = Stored(relay.services.database, now=at)
            stored.write(NewObservation("gooddata", told))


def test_where_an_objects_usual_time_is_known_that_tells_what_is_overdue(relay):
    """Ten jobs took 100 s: one that takes twice as long is overdue, long before 15 minutes."""
    took_100_s(relay, 10)
    unlisted(relay, 3)
    clock = Later(0)
    assert relay.reconciler(clock=clock).one_pass().asked == 0  # and learns
    clock.ahead = 140_000
    assert relay.reconciler(clock=clock).one_pass().asked == 0
    assert relay.summary()["overdue"] == 0
    clock.ahead = 205_000
    assert relay.reconciler(clock=clock).one_pass().asked == 3


def test_too_few_jobs_teach_no_usual_time(relay):
    took_100_s(relay, ENOUGH_TO_LEARN - 1)
    unlisted(relay, 1)
    clock = Later(0)
    relay.reconciler(clock=clock).one_pass()
    clock.ahead = 250_000
    assert relay.reconciler(clock=clock).one_pass().asked == 0


def test_a_job_still_under_way_is_asked_for_ever_more_seldom(make_database, monkeypatch):
    monkeypatch.setattr(claims, "OUTAGE_MS", 10**12)  # hours without a heartbeat are none
    with between(make_database("sqlite"), job_seconds=3600) as relay, _one_instance(relay):
        job_id = relay.uploaded()
        clock = Later(15 * MINUTE)
        node = relay.reconciler(clock=clock)
        assert node.one_pass().asked == 1
        for quarters in (1, 2, 4, 8, 16, 24, 24):  # never more seldom than every six hours
            clock.ahead += quarters * 15 * MINUTE - 1
            assert node.one_pass().asked == 0
            clock.ahead += 1
            assert node.one_pass().asked == 1
        assert relay.asked(STATUSES, job_id) == 8


def test_an_ended_job_is_asked_for_no_more(relay):
    job_id = relay.uploaded()
    relay.ended(job_id)
    for _ in range(3):
        assert relay.reconciler().one_pass(everything=True).asked == 0
    assert relay.asked(STATUSES, job_id) == 0


def test_a_job_that_runs_again_is_asked_for(relay):
    (job_id,) = dropped(relay, 1)
    for told in ({"status": "ERROR"}, {"status": "RUNNING", "job_reset_attempt": 1}):
        relay.call_back(json.dumps({"id": job_id, **told}).encode(), "gooddata")
    assert relay.job(job_id)["outcome"] == "pending"
    clock = Later(15 * MINUTE + 5_000)
    assert relay.reconciler(clock=clock).one_pass().asked == 1


@pytest.mark.parametrize("contradicting", ["ERROR", "CANCELLED"])
def test_where_endings_contradict_each_other_the_vendor_is_asked_at_once(relay, contradicting):
    (job_id,) = dropped(relay, 1)
    late = {"completionTime": 2_000_000_000_000}
    for told in ({"status": "ABORTED"}, {"status": contradicting, **late}):
        relay.call_back(json.dumps({"id": job_id, **told}).encode(), "gooddata")
    job = relay.job(job_id)
    assert (job["status"], job["conflict"]) == (contradicting, True)
    report = relay.reconciler().one_pass()
    assert (report.asked, report.ended) == (1, 1)
    job = relay.job(job_id)
    assert (job["status"], job["outcome"], job["conflict"]) == ("COMPLETED", "succeeded", True)
    assert relay.reconciler().one_pass(everything=True).asked == 0
    relay.call_back(json.dumps({"id": job_id, "status": "ERROR", "more": 1}).encode(), "gooddata")
    assert relay.job(job_id)["status"] == "COMPLETED"
    assert relay.reconciler().one_pass().asked == 1  # for what has been said since


def test_the_job_list_teaches_what_differs_of_jobs_that_are_known(relay):
    (job_id,) = dropped(relay, 1)
    report = relay.reconciler().one_pass()  # which is not overdue
    assert (report.asked, report.found) == (0, 0)
    assert outcomes(relay, [job_id]) == {("succeeded", "poll"): 1}
    entries = relay.get(f"/jobs/{job_id}/events?instance=gooddata").json["timeline"]
    assert entries[-1]["note"] == "found in the vendor's job list"
    relay.reconciler().one_pass()
    after = relay.get(f"/jobs/{job_id}/events?instance=gooddata").json["timeline"]
    assert len(after) == len(entries)


def test_an_odd_id_stops_nobody_else_either(relay):
    for odd in (".", "..", "~", "a:b", "-rf", "0" * 200):
        relay.call_back(json.dumps({"id": odd, "status": "RUNNING"}).encode(), "gooddata")
    ids = dropped(relay, 1)
    report = relay.reconciler().one_pass(everything=True)
    assert (report.ended, report.blocked) == (1, [])
    assert outcomes(relay, ids) == {("succeeded", "poll"): 1}


# --- the job list


def test_jobs_that_nobody_told_us_of_are_found_in_the_job_list(relay):
    ours = relay.uploaded()
    relay.ended(ours)
    theirs = [made_elsewhere(relay), made_elsewhere(relay, rows=BAD_ROWS + b",E\n")]
    other = made_elsewhere(relay, "freshbooks")
    relay.ended_at_vendor(*theirs, other)
    assert relay.reconciler().one_pass().found == 3
    assert outcomes(relay, theirs) == {("succeeded", "poll"): 1, ("partial", "poll"): 1}
    assert relay.job(other, "freshbooks")["outcome"] == "succeeded"
    assert relay.summary()["lost_callbacks"] == 0  # none was due for these
    note = relay.get(f"/jobs/{other}/events?instance=freshbooks").json["timeline"][0]["note"]
    assert note == "found in the vendor's job list"
    assert relay.reconciler().one_pass().found == 0


def answering(
    relay: Between, answer: Callable[[httpx.Request], httpx.Response | None]
) -> VendorClient:
    """A way to the stand-in on which some requests are answered by somebody else."""
    onward = httpx.HTTPTransport()

    class Detour(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return answer(request) or onward.handle_request(request)

        def close(self) -> None:
            onward.close()

    vendor = VendorClient(relay.services.settings.vendor_url, Detour())
    vendor._retrying.sleep = lambda _: None
    return vendor


@contextmanager
def odd_vendor(relay: Between, path: str, **answer) -> Iterator[VendorClient]:
    """A vendor that answers a path oddly, and otherwise as it should."""
    vendor = answering(
        relay, lambda request: httpx.Response(**answer) if request.url.path.endswith(path) else None
    )
    yield vendor
    vendor.close()


@pytest.mark.parametrize("path", ["/bulk/jobs", "/deliveries"])
@pytest.mark.parametrize(
    "answer",
    [
        {"status_code": 404, "json": {"message": "no such path"}},
        {"status_code": 405, "content": b""},
        {"status_code": 200, "content": b"<h1>Sign in</h1>"},
        {"status_code": 200, "json": {"jobs": []}},
    ],
)
def test_a_vendor_without_a_job_list_or_queue_is_fine(relay, path, answer):
    ids = dropped(relay, 2, content=BAD_ROWS)
    with odd_vendor(relay, path, **answer) as vendor:
        report = relay.reconciler(vendor=vendor).one_pass(everything=True)
    assert (report.ended, report.found, report.queued, report.errors) == (2, 0, 0, 4)
    assert report.blocked == []
    assert outcomes(relay, ids) == {("partial", "poll"): 2}


def test_wrong_secrets_are_told_though_nothing_is_due(relay):
    with odd_vendor(relay, "/bulk/jobs", status_code=401, json={"message": "bad"}) as vendor:
        assert relay.reconciler(vendor=vendor).one_pass().blocked == ["freshbooks", "gooddata"]


def test_the_job_list_is_not_read_without_end(relay):
    def newer(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("/bulk/jobs"):
            return None
        number = int(request.url.params.get("nextPage", "0"))
        following = {"elements-next-page-token": str(number + 1)}
        return httpx.Response(200, json=[{"id": number, "status": "RUNNING"}], headers=following)

    vendor = answering(relay, newer)
    report = relay.reconciler(vendor=vendor).one_pass()
    vendor.close()
    assert report.found == 2 * MAX_LIST_PAGES  # of two instances


# --- several nodes


@contextmanager
def nodes(relay: Between, count: int, **given) -> Iterator[list[Reconciler]]:
    """Other nodes' reconcilers, each with a database connection and a writer of its own."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            found = create_app(relay.services.settings).extensions["receiver"]
            stack.callback(found.database.close)
            stack.callback(found.intake.writer.close)
            stack.callback(found.vendor.close)
            chosen = {"sleep": lambda _: None, **given}
            made.append(
                Reconciler(found.settings, found.database, found.intake, found.vendor, **chosen)
            )
        yield made


def at_once(reconcilers: list[Reconciler]) -> Report:
    """One pass of each, begun together; give what they did in all."""
    start = threading.Barrier(len(reconcilers))

    def one(reconciler: Reconciler) -> Report:
        start.wait()
        return reconciler.one_pass()

    total = Report()
    with ThreadPoolExecutor(len(reconcilers)) as pool:
        for report in pool.map(one, reconcilers):
            total.add(report)
    return total


@pytest.fixture
def by_our_clock(monkeypatch):
    """Have nodes go by the tests' clock on PostgreSQL too."""
    for module in (pacing, reconciling):
        monkeypatch.setattr(module, "database_time", lambda _session, clock: clock())


@shared
def test_four_nodes_at_once_ask_for_each_job_once(make_database, kind, by_our_clock):
    with between(make_database(kind)) as relay:
        ids = dropped(relay, 20)
        with nodes(relay, 4, clock=Later(16 * MINUTE)) as four:
            report = at_once(four)
        assert (report.asked, report.ended, report.blocked) == (20, 20, [])
        assert Counter(relay.asked(STATUSES, job_id) for job_id in ids) == {1: 20}
        assert outcomes(relay, ids) == {("succeeded", "poll"): 20}
        assert relay.summary()["lost_callbacks"] == 20


@shared
def test_jobs_that_go_on_are_asked_for_once_by_four_nodes_too(make_database, kind, by_our_clock):
    with between(make_database(kind), job_seconds=3600) as relay:
        ids = [relay.uploaded() for _ in range(20)]
        with nodes(relay, 4, clock=Later(16 * MINUTE)) as four:
            assert at_once(four).asked == 20
            assert at_once(four).asked == 0  # not due again yet
        assert Counter(relay.asked(STATUSES, job_id) for job_id in ids) == {1: 20}


@shared
def test_four_nodes_at_once_fetch_each_jobs_errors_once(make_database, kind):
    with between(make_database(kind)) as relay:
        ids = [relay.uploaded(BAD_ROWS) for _ in range(10)]
        for job_id in ids:
            relay.ended(job_id)
        with nodes(relay, 4) as four:
            assert at_once(four).errors == 20
        assert Counter(relay.asked(ERRORS, job_id) for job_id in ids) == {1: 10}


@shared
def test_all_nodes_together_keep_an_instances_pace(make_database, kind, by_our_clock):
    """Time stands still, so the turns handed out are the waits; each is a request of its own."""
    with between(make_database(kind), vendor_rate=4.0) as relay:
        dropped(relay, 12)
        now = now_ms() + 16 * MINUTE
        waits: dict[str, list[float]] = {}

        def sleep(seconds: float) -> None:
            waits.setdefault(threading.current_thread().name, []).append(seconds)

        with nodes(relay, 4, clock=lambda: now, sleep=sleep) as four:
            report = at_once(four)
        assert report.asked == 12
        requests = relay.sandbox.stage.requests
        asked = sum(count for path, count in requests.items() if not path.startswith("POST"))
        turns = sorted(wait for each in waits.values() for wait in each)
        assert len(turns) == asked
        # Two instances, each with a pace of its own: 1/4 s apart.
        with relay.services.database.read() as session:
            ends = dict(session.execute(select(Pace.instance, Pace.next_at)).all())
        handed_out = {name: (end - now) // 250 for name, end in ends.items()}
        assert sum(handed_out.values()) == asked
        expected = [0.25 * turn for count in handed_out.values() for turn in range(count)]
        assert turns == sorted(expected)


def test_what_is_sent_again_waits_for_a_turn_too(relay):
    dropped(relay, 2)
    impatient(relay)
    relay.faults(drop_callbacks=True, answer={"status": 502, "times": 2})
    with nodes(relay, 1) as (node,):
        node._vendor._retrying.sleep = lambda _: None
        turns = []
        node.pacer = replace(node.pacer, sleep=turns.append)
        report = node.one_pass(everything=True)
    assert (report.ended, report.blocked) == (2, [])
    requests = relay.sandbox.stage.requests
    assert len(turns) == sum(n for path, n in requests.items() if not path.startswith("POST"))


# --- failing vendors


def failing_for(jobs: list[str], status: int) -> Callable[[httpx.Request], httpx.Response | None]:
    """A vendor that fails for the status of some jobs."""
    paths = tuple(f"/bulk/{job}/status" for job in jobs)

    def answer(request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(status) if request.url.path.endswith(paths) else None

    return answer


@pytest.mark.parametrize("status", [400, 500, 503, 504])
def test_one_jobs_fault_is_that_jobs_alone_and_backs_it_off(relay, status):
    odd, *others = dropped(relay, 4)
    clock, asked = Later(16 * MINUTE), []
    fault = failing_for([odd], status)

    def counted(request: httpx.Request) -> httpx.Response | None:
        asked.extend([1] * request.url.path.endswith(f"/{odd}/status"))
        return fault(request)

    def list_less(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/bulk/jobs"):
            return httpx.Response(404)
        return counted(request)

    vendor = answering(relay, list_less)
    node = relay.reconciler(vendor=vendor, clock=clock)
    report = node.one_pass()
    assert (report.asked, report.ended, report.blocked) == (4, 3, [])
    assert [each["job"] for each in report.failed] == [odd]
    assert outcomes(relay, others) == {("succeeded", "poll"): 3}
    tries = len(asked)
    clock.ahead += MINUTE
    assert (node.one_pass().asked, len(asked)) == (0, tries)
    clock.ahead += 15 * MINUTE
    assert node.one_pass().asked == 1
    vendor.close()


def test_several_jobs_faults_in_a_row_are_the_instances(relay):
    ids = dropped(relay, 10)
    vendor, clock = answering(relay, failing_for(ids, 500)), Later()
    report = relay.reconciler(vendor=vendor, clock=clock).one_pass(everything=True)
    assert (report.asked, report.blocked) == (3, ["gooddata"])
    assert relay.reconciler(clock=clock).one_pass(everything=True).asked == 0
    vendor.close()


@pytest.mark.parametrize("named", ["120", "a date", "999999"])
def test_no_node_asks_before_the_time_that_the_vendor_named(relay, named):
    ids = dropped(relay, 3)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=130), usegmt=True)
    retry_after = date if named == "a date" else named
    waits = 3600 if named == "999999" else 120  # an hour at most
    asked = []

    def limited(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(429, headers={"Retry-After": retry_after})

    vendor = answering(relay, limited)
    clock = Later()
    report = relay.reconciler(vendor=vendor, clock=clock).one_pass(everything=True)
    assert (len(asked), report.blocked) == (2, ["freshbooks", "gooddata"])  # one an instance
    clock.ahead += 1000 * (waits - 60)
    for node in (relay.reconciler(clock=clock), relay.reconciler(clock=clock)):
        assert node.one_pass(everything=True).asked == 0
    clock.ahead += 1000 * 80
    assert relay.reconciler(clock=clock).one_pass(everything=True).ended == 3
    assert outcomes(relay, ids) == {("succeeded", "poll"): 3}
    vendor.close()


def test_an_answer_that_was_under_way_closes_no_circuit_that_another_node_opened(relay):
    pacer = relay.reconciler(clock=Later()).pacer
    pacer.wait_turn("gooddata")
    pacer.open_circuit("gooddata", "it failed", retry_after=120)
    pacer.close_circuit("gooddata")
    with pytest.raises(CircuitOpen) as refusal:
        pacer.wait_turn("gooddata")
    assert refusal.value.retry_after == 120


def test_whoever_asks_by_hand_waits_for_a_turn_no_longer_than_a_thread_can(make_database):
    """At a request a second many ask at once; time stands still, so turns are waits."""
    now, waits = now_ms(), []
    with between(make_database("sqlite"), vendor_rate=1.0) as relay:
        (job_id,) = dropped(relay, 1)
        node = relay.reconciler(clock=lambda: now, sleep=waits.append)
        refused = []
        for _ in range(20):
            try:
                node.ask("gooddata", job_id, "me", max_wait=5_000)
            except CircuitOpen as error:
                refused.append((error.status, error.retry_after))
        assert sorted(waits) == [0, 1, 2, 3, 4, 5]
        assert refused == [(503, 1)] * 14


def test_a_dead_instance_holds_up_nobody_and_is_backed_off(relay):
    good = dropped(relay, 3)
    bad = [relay.uploaded(instance="freshbooks") for _ in range(3)]
    relay.ended_at_vendor(*bad)
    tried: list[int] = []
    clock = Later()

    def dead(request: httpx.Request) -> httpx.Response | None:
        if "freshbooks-element" not in request.headers["Authorization"]:
            return None
        tried.append(clock.ahead)
        raise httpx.ConnectError("refused")

    vendor = answering(relay, dead)
    node = relay.reconciler(vendor=vendor, clock=clock)
    first = node.one_pass(everything=True)
    assert (first.ended, first.blocked) == (3, ["freshbooks"])
    assert outcomes(relay, good) == {("succeeded", "poll"): 3}
    for _ in range(30):  # minutes
        clock.ahead += MINUTE
        assert node.one_pass(everything=True).blocked == ["freshbooks"]
    vendor.close()
    times = sorted(set(tried))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) < 12  # not 31
    assert max(gaps) > 4 * gaps[0]

    clock.ahead += 2 * 60 * MINUTE
    report = relay.reconciler(clock=clock).one_pass(everything=True)
    assert (report.ended, report.blocked) == (3, [])


def test_while_an_instance_is_blocked_nothing_is_claimed(relay):
    ids = dropped(relay, 2)
    impatient(relay)
    relay.faults(drop_callbacks=True, answer={"status": 429, "times": 1000})
    node = relay.reconciler(clock=Later())
    node.one_pass(everything=True)
    for _ in range(5):
        assert node.one_pass(everything=True).blocked == ["freshbooks", "gooddata"]
    with relay.services.database.read() as session:
        assert sorted(session.scalars(select(JobRow.polls))) == [0, 1]
    assert sum(relay.asked(STATUSES, job_id) for job_id in ids) == 1


def test_secrets_that_cannot_be_opened_block_their_instance_alone(relay):
    ids = dropped(relay, 1)
    with relay.services.database.write() as session:
        session.execute(
            update(Instance).where(Instance.name == "freshbooks").values(user_secret=b"garbage")
        )
    report = relay.reconciler().one_pass(everything=True)
    assert report.blocked == ["freshbooks"]
    assert outcomes(relay, ids) == {("succeeded", "poll"): 1}


def test_an_instance_without_secrets_is_left_out(relay):
    with relay.services.database.write() as session:
        registry.add_instance(session, SecretBox(()), "bare", 1)
    assert relay.reconciler().one_pass(everything=True).blocked == []


def test_a_vendor_that_answers_html_is_blocked_and_changes_nothing(relay):
    ids = dropped(relay, 2)
    relay.faults(drop_callbacks=True, html=1000)
    report = relay.reconciler().one_pass(everything=True)
    assert (report.ended, report.blocked) == (0, ["freshbooks", "gooddata"])
    assert outcomes(relay, ids) == {("pending", None): 2}


# --- after an outage of ours


def test_after_an_outage_of_ours_all_polls_come_first(relay):
    unlisted(relay, 4)
    clock = Later()
    node = relay.reconciler(clock=clock)
    node.beat()
    clock.ahead += 4 * MINUTE
    assert node.one_pass().asked == 0  # no outage, and none is overdue
    clock.ahead += 6 * MINUTE
    assert node.one_pass().asked == 4


def test_a_beat_that_notices_an_outage_leaves_the_asking_to_whoever_comes(relay):
    dropped(relay, 2)
    clock = Later()
    node = relay.reconciler(clock=clock)
    node.beat()
    clock.ahead += 6 * MINUTE
    node.beat()  # a worker that comes back
    clock.ahead += 1000
    assert relay.reconciler(clock=clock).one_pass().asked == 2


@shared
def test_an_outage_is_noticed_by_one_node(make_database, kind):
    with between(make_database(kind)) as relay:
        database, now = relay.services.database, now_ms()
        for moment, expected in ((now, 0), (now + 6 * MINUTE, 1), (now + 7 * MINUTE, 0)):
            with ThreadPoolExecutor(4) as pool:

                def beat(_: int, moment: int = moment) -> bool:
                    with database.write() as session:
                        return claims.beat(session, moment)

                assert sum(pool.map(beat, range(4))) == expected


# --- errors


def test_errors_of_several_pages_are_kept_and_grouped(relay):
    rows = b"".join(b"bad-%d,x\n" % number for number in range(250))
    job_id = relay.uploaded(b"email,name\n" + rows + b",y\n" * 170 + b"ok@example.com,z\n")
    relay.ended(job_id)
    report = relay.reconciler().one_pass()
    assert (report.errors, relay.asked(ERRORS, job_id)) == (420, 3)
    found = relay.get(f"/jobs/{job_id}/errors?instance=gooddata&limit=1000").json
    assert [entry["row"] for entry in found["errors"]] == list(range(1, 421))
    groups = [(each["message"], each["count"], len(each["examples"])) for each in found["groups"]]
    assert groups == [
        ("The e-mail address is malformed.", 250, 3),
        ("The e-mail address is missing.", 170, 3),
    ]
    assert relay.reconciler().one_pass().errors == 0
    assert relay.asked(ERRORS, job_id) == 3


def test_errors_are_fetched_again_after_a_reset(relay):
    job_id = relay.uploaded(BAD_ROWS)
    relay.ended(job_id)
    assert relay.reconciler().fetch_errors() is True
    httpx.post(f"{relay.sandbox.url}/sandbox/jobs/{job_id}/reset", trust_env=False)
    until(lambda: relay.job(job_id)["events"] == 2)
    assert relay.reconciler().fetch_errors() is True
    assert relay.asked(ERRORS, job_id) == 2
    found = relay.get(f"/jobs/{job_id}/errors?instance=gooddata").json
    assert len(found["errors"]) == 2  # in the place of those that were there
    assert relay.reconciler().fetch_errors() is False


def test_the_same_ending_told_twice_fetches_no_errors_again(relay):
    job_id = relay.uploaded(BAD_ROWS)
    relay.ended(job_id)
    assert relay.reconciler().fetch_errors() is True
    again = {
        "id": job_id,
        "status": "COMPLETED",
        "recordsCount": 2,
        "recordsFailedCount": 2,
        "x": 1,
    }
    relay.call_back(json.dumps(again).encode(), "gooddata")
    assert relay.reconciler().fetch_errors() is False


def test_errors_that_a_node_died_fetching_are_fetched_by_another(relay):
    job_id = relay.uploaded(BAD_ROWS)
    relay.ended(job_id)
    clock = Later()
    with relay.services.database.write() as session:
        (fetch,) = claims.due_errors(session, "gooddata", clock())
        assert claims.claim_errors(session, clock(), fetch)
    assert relay.reconciler(clock=clock).fetch_errors() is False
    clock.ahead += MINUTE
    assert relay.reconciler(clock=clock).fetch_errors() is True
    assert len(relay.get(f"/jobs/{job_id}/errors?instance=gooddata").json["errors"]) == 2


def test_a_long_fetch_keeps_its_claim(relay):
    job_id = relay.uploaded(b"email\n" + b"bad\n" * 601)
    relay.ended(job_id)
    clock = Later()

    def sleep(_: float) -> None:
        clock.ahead += 50_000  # four pages take longer than one lease

    relay.reconciler(clock=clock, sleep=sleep).fetch_errors()
    with relay.services.database.read() as session:
        row = session.scalars(select(JobRow)).one()
        assert (row.errors_at, row.errors_tries) == (None, 1)


def test_errors_the_vendor_has_no_longer_are_given_up(relay):
    relay.call_back(
        b'{"id": "5", "status": "COMPLETED", "recordsCount": 1, "recordsFailedCount": 1}',
        "gooddata",
    )
    assert relay.reconciler().fetch_errors() is False
    assert relay.reconciler(clock=Later(10**9)).fetch_errors() is False
    assert relay.asked(ERRORS, "5") == 1


@pytest.mark.parametrize("status", [401, 403])
def test_errors_refused_for_our_secrets_are_not_given_up(relay, status):
    relay.ended(relay.uploaded(BAD_ROWS))
    relay.faults(answer={"status": status, "times": 1})
    assert relay.reconciler().fetch_errors() is False
    assert relay.reconciler(clock=Later(10 * MINUTE)).fetch_errors() is True


# --- what the vendor holds back


def test_queued_deliveries_are_counted_and_sent_again_on_demand(make_database):
    with between(make_database("sqlite"), retries=0) as relay:
        up = relay.app

        def down(_: object, start: Callable[..., object]) -> list[bytes]:
            start("503 Service Unavailable", [("Content-Length", "0")])
            return []

        def lost(state: str) -> str:
            answer = relay.upload()
            job_id = str(answer.json()["id"])
            stage = relay.sandbox.stage
            held = stage.deliveries
            until(
                lambda: [
                    each for each in held.listing({"status": state}) if each["jobId"] == job_id
                ]
            )
            return job_id

        def half(environ, start):
            callback = environ["PATH_INFO"].startswith("/callbacks")
            return down(environ, start) if callback else up(environ, start)

        relay.answer_with(half)
        lost("failed")  # its subscription is deactivated by this
        ids = [lost("queued"), lost("queued")]
        relay.answer_with(up)
        assert relay.summary()["queued_at_vendor"] is None
        with _one_instance(relay):
            report = relay.reconciler().one_pass()
            assert (report.queued, report.redelivered) == (2, 0)
            assert relay.summary()["queued_at_vendor"] == 2
            report = relay.reconciler().one_pass(redeliver=True)
            assert (report.queued, report.redelivered) == (2, 2)
            until(lambda: all(relay.job(job_id)["events"] for job_id in ids))
            assert relay.reconciler().one_pass(redeliver=True).redelivered == 0
            assert relay.summary()["queued_at_vendor"] == 0


def test_serve_looks_at_the_vendors_queue_by_itself_and_again_after_a_redelivery(relay):
    held = [2, 0, 1]
    asked: list[str] = []

    def queue(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("/deliveries"):
            return None
        asked.append(request.method)
        count = 0 if request.method == "PUT" else held.pop(0)
        return httpx.Response(200, json=[{"id": n} for n in range(count)])

    clock = Later()
    with _one_instance(relay):
        vendor = answering(relay, queue)
        nodes_ = [relay.reconciler(vendor=vendor, clock=clock) for _ in range(2)]
        assert nodes_[0].resend("gooddata", max_wait=5_000) == 2
        assert (asked, relay.summary()["queued_at_vendor"]) == (["GET", "PUT", "GET"], 0)
        for _ in range(2):
            for node in nodes_:
                node.check_queues()
        assert len(asked) == 3  # it was looked at a moment ago
        clock.ahead += 5 * MINUTE
        for node in nodes_:
            node.check_queues()
        assert (asked[3:], relay.summary()["queued_at_vendor"]) == (["GET"], 1)
        vendor.close()


@contextmanager
def _one_instance(relay: Between) -> Iterator[None]:
    """The stand-in has one queue for everybody: ask for one instance only."""
    with relay.services.database.write() as session:
        session.execute(
            update(Instance).where(Instance.name == "freshbooks").values(user_secret=None)
        )
    yield


# --- results


def test_results_are_saved_once_before_they_go(relay, tmp_path):
    relay.ended(relay.uploaded())
    wanted = {"objectName": "contact"}
    job_id = relay.vendors("POST", "/bulk/download", json=wanted).json()["id"]
    relay.ended(job_id)
    folder = tmp_path / "results"
    folder.mkdir()
    assert relay.reconciler().one_pass(results=folder).results == 1
    (saved,) = folder.iterdir()
    assert saved.name == f"gooddata.{job_id}.csv"
    assert saved.read_bytes().replace(b"\r\n", b"\n") == ROWS
    assert relay.reconciler().one_pass(results=folder).results == 0
    template = "GET /bulk/{id}/{objectName}"
    assert relay.asked(template, job_id) == 1
    saved.unlink()
    expired = relay.reconciler(clock=Later(4 * 24 * 60 * MINUTE))
    assert expired.one_pass(results=folder).results == 0


ODD_IDS = [
    ".",
    "..",
    "...",
    "~",
    "~root",
    "-rf",
    "a:b",
    "CON",
    ".hidden",
    "x.csv",
    "0" * 200,
    "1-2",
]


def downloads(relay: Between, ids: list[str], instance: str = "gooddata") -> None:
    facts = {"status": "COMPLETED", "objectName": "contact", "jobDirection": "DOWNLOAD"}
    for job_id in ids:
        body = json.dumps({"id": job_id, **facts, "instance": instance}).encode()
        assert relay.call_back(body, instance).status_code == 200


def test_no_job_id_leads_out_of_the_folder_of_results(relay, tmp_path):
    downloads(relay, ODD_IDS)

    def file(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/contact"):
            return httpx.Response(200, content=request.url.raw_path)
        return None

    folder = tmp_path / "results"
    folder.mkdir()
    vendor = answering(relay, file)
    report = relay.reconciler(vendor=vendor).one_pass(results=folder)
    vendor.close()
    dots = 2  # "." and ".." name nothing at the vendor
    assert (report.results, report.blocked) == (len(ODD_IDS) - dots, [])
    assert len(list(folder.iterdir())) == len(ODD_IDS) - dots
    assert list(tmp_path.iterdir()) == [folder]
    assert all(each.name.startswith("gooddata.") for each in folder.iterdir())


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_result_that_is_gone_leaves_nothing_behind(relay, tmp_path, status):
    downloads(relay, ["7", "8"])
    with odd_vendor(relay, "/contact", status_code=status) as vendor:
        report = relay.reconciler(vendor=vendor).one_pass(results=tmp_path)
    assert (report.results, report.blocked) == (0, [])
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_breaks_off_or_is_html_is_not_kept(relay, tmp_path):
    class Broken(httpx.SyncByteStream):
        def __iter__(self):
            yield b"email\n"
            raise httpx.ReadError("cut")

    folder = tmp_path / "results"
    folder.mkdir()
    downloads(relay, ["7"])
    html = {"content": b"<h1>Sign in</h1>", "headers": {"content-type": "text/html"}}
    for number, answer in enumerate(({"stream": Broken()}, html), 1):
        with odd_vendor(relay, "/contact", status_code=200, **answer) as vendor:
            clock = Later(number * 60 * MINUTE)
            report = relay.reconciler(vendor=vendor, clock=clock).one_pass(results=folder)
        assert (report.results, [each["job"] for each in report.failed]) == (0, ["7"])
        assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(relay, tmp_path):
    downloads(relay, ["7"])
    with odd_vendor(relay, "/contact", status_code=200, content=b"x") as vendor:
        report = relay.reconciler(vendor=vendor).one_pass(results=tmp_path / "absent")
    assert (report.results, report.blocked) == (0, ["gooddata"])


# --- submissions of unknown fate


def test_a_database_that_fails_for_an_instance_is_told_as_blocked(relay, monkeypatch):
    dropped(relay, 1)

    def down(*_: object, **__: object) -> None:
        raise StoreUnavailable("down")

    monkeypatch.setattr(claims, "due_polls", down)
    assert relay.reconciler().one_pass().blocked == ["freshbooks", "gooddata"]


# --- what a worker does beside answering


def test_slow_work_stops_neither_other_work_nor_the_heart(monkeypatch):
    monkeypatch.setattr("receiver.background.BEAT_SECONDS", 0.01)
    release, beats, done = threading.Event(), [], []

    def slow() -> bool:
        return release.wait(DEADLINE) and False

    def failing() -> bool:
        done.append(len(done))
        raise (StoreUnavailable if len(done) % 2 else ValueError)("odd row")

    tasks = [Task(slow, pause=0.01), Task(failing, pause=0.01)]
    background = Background(tasks, lambda: beats.append(1))
    background.start()
    background.start()  # once for a process, however often it is asked to
    until(lambda: len(beats) > 3 and len(done) > 3)
    background.close()
    release.set()


def test_an_outage_is_a_line_for_all_work_and_its_end_another():
    runs, is_away = Counter(), True

    def work(name: str) -> Callable[[], bool]:
        def run() -> bool:
            runs[name] += 1
            if is_away:
                raise StoreUnavailable("the server is gone")
            return False

        return run

    tasks = [Task(work(name), pause=0.001) for name in "abcd"]
    background = Background(tasks, lambda: None)
    with capture_logs() as lines:
        background.start()
        until(lambda: len(runs) == 4 and min(runs.values()) > 5)
        is_away = False
        until(lambda: any("goes on" in line["event"] for line in lines))
        before = min(runs.values())
        until(lambda: min(runs.values()) > before + 5)
        background.close()
    assert [(line["event"], line.get("error")) for line in lines] == [
        ("background work waits for the database", "the server is gone"),
        ("background work goes on: the database is back", None),
    ]


def test_work_goes_on_without_pauses_while_there_is_more(monkeypatch):
    waits: list[float] = []
    left = list(range(100))

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return not left and super().wait(60)

    def work() -> bool:
        left.pop()
        return bool(left)

    background = Background([Task(work, pause=3600.0)], lambda: None)
    background._closed = Closed()
    background.start()
    until(lambda: not left)
    background.close()
    assert waits.count(0) == 99


def test_what_tasks_hold_is_given_back_at_the_end():
    given_back: list[int] = []
    background = Background([Task(lambda: False, 3600.0, lambda: given_back.append(1))], str)
    background.close()  # it was not started here
    assert given_back == []
    background.start()
    background.close()
    assert given_back == [1]


def test_a_turn_that_a_wrong_clock_took_is_begun_anew(relay):
    """And so is one of a vendor that failed: nothing sleeps for as long as the clock was ahead."""
    dropped(relay, 3)
    ahead, waits = Later(401 * 24 * 60 * MINUTE), []
    assert relay.reconciler(clock=ahead).one_pass(everything=True).asked == 3
    with relay.services.database.write() as session:
        session.execute(update(Pace).values(blocked_until=ahead() + MINUTE, failures=3))
    report = relay.reconciler(sleep=waits.append).one_pass(everything=True)
    assert report.blocked == []
    assert max(waits) < 60


def test_failed_records_claimed_by_a_wrong_clock_are_fetched(relay):
    job_id = relay.uploaded(BAD_ROWS)
    relay.ended(job_id)
    with relay.services.database.write() as session:
        (fetch,) = claims.due_errors(session, "gooddata", now_ms())
        assert claims.claim_errors(session, now_ms() + 24 * 60 * MINUTE, fetch)
    assert relay.reconciler().fetch_errors() is True


def test_the_vendors_queue_is_asked_with_the_organizations_secret(relay):
    """The vendor has it so: `User <secret>, Organization <secret>` opens the deliveries alone."""
    with relay.services.database.write() as session:
        secret_box = SecretBox(relay.services.settings.encryption_keys)
        secrets = {"element_token": b"e-1", "user_secret": b"u-1", "organization_secret": b"o-1"}
        registry.add_instance(session, secret_box, "queued", 1, **secrets)
    given = {}

    def note(asked: httpx.Request) -> None:
        if "User u-1" in asked.headers["Authorization"]:
            given[asked.url.path.rpartition("/")[2]] = asked.headers["Authorization"]

    vendor = answering(relay, note)
    report = relay.reconciler(vendor=vendor).one_pass()
    assert (given["jobs"], report.blocked) == ("Element e-1, User u-1", [])
    assert given["deliveries"] == "User u-1, Organization o-1"
