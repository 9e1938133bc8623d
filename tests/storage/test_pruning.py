"""Retention: what is too old goes, hashes and outcomes stay, and nobody waits long for it."""

import hashlib
import threading
import time
from collections.abc import Iterator
from itertools import count as counter

import hypothesis
import pytest
from builders import Clock, bulk, examples
from hypothesis import event as note
from hypothesis import given
from hypothesis import strategies as st
from nodes import eventually
from prometheus_client import REGISTRY
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from receiver.app import _app
from receiver.callbacks.deliveries import Delivery, Judged
from receiver.callbacks.store import Store
from receiver.cli.commands import run
from receiver.database import audit, migrations, retention
from receiver.database import models as tables
from receiver.database.engine import Database
from receiver.database.leases import ClockGuard
from receiver.database.models import (
    NUMBER_BITS,
    Event,
    JobRow,
    RecordError,
    Rejection,
    Submission,
    TimelineEntry,
)
from receiver.database.models.outbound import OutboundAttempt, OutboundDelivery
from receiver.database.retention import LEASE_MS, LOOK_SECONDS, PERIOD_MS, Retention
from receiver.errors import ClockStepped, StoreUnavailable
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.jobs.job import Job
from receiver.jobs.projection import NewObservation
from receiver.lib.clock import now_ms
from receiver.openconnectors.notifications import parse
from receiver.openconnectors.signatures import SignatureKey
from receiver.outbound.queue import Message, enqueue
from receiver.settings import FOREVER, Settings

MINUTE = 60_000
DAY = 24 * 60 * MINUTE
EVER = 1_000 * DAY


def count(receiver, table: type) -> int:
    with receiver.services.database.read() as session:
        return session.scalar(select(func.count()).select_from(table))


def reject(receiver, body: bytes) -> None:
    """Send a delivery that is rejected, which is recorded after it was answered."""
    before = count(receiver, Rejection)
    receiver.call_back(body, key=SignatureKey("x", b"another"))
    eventually(lambda: count(receiver, Rejection) > before, "the rejection")


def bodies(receiver) -> int:
    with receiver.services.database.read() as session:
        return session.scalar(select(func.count()).where(Event.body.is_not(None)))


def age(receiver, ms: int) -> None:
    """Let the time pass for what is there: events become `older`."""
    with receiver.services.database.write() as session:
        for table, *names in (
            (JobRow, "updated_at", "first_seen_at"),
            (Submission, "at"),
            (Rejection, "at"),
            (OutboundDelivery, "at"),
        ):
            columns = [getattr(table, name) for name in names]
            session.execute(update(table).values({column: column - ms for column in columns}))
        for table in (Event, TimelineEntry):
            session.execute(update(table).values(n=table.n - (ms << NUMBER_BITS)))
        session.execute(update(Event).values(last_received_at=Event.last_received_at - ms))
        for column, unit in (
            (tables.RejectionCount.minute, 60_000),
            (tables.RejectedAddress.since, 1),
        ):
            session.execute(update(column.class_).values({column: column - ms // unit}))
        state = retention.lock_retention(session)
        for mark in ("bodies_before", "events_before", "errors_before"):
            setattr(state, mark, max(0, getattr(state, mark) - ms))


def older(event: str, ms: int) -> str:
    """The id of an event that has aged."""
    return f"{int(event, 16) - (ms << NUMBER_BITS):016x}"


def state(receiver) -> tables.Retention:
    with receiver.services.database.read() as session:
        found = session.scalars(select(tables.Retention)).one()
        session.expunge(found)
        return found


def kept(receiver, bodies: int = EVER, events: int = EVER) -> Retention:
    given_ = Settings(keep_bodies=bodies, keep_events=events)
    return Retention(given_, receiver.services.database, now_ms, sleep=lambda _: None)


def went(passing: Iterator[tuple[str, int]]) -> dict[str, int]:
    gone: dict[str, int] = {}
    for kind, rows in passing:
        gone[kind] = gone.get(kind, 0) + rows
    return {kind: rows for kind, rows in gone.items() if rows}


def prune(receiver, bodies: int = EVER, events: int = EVER) -> dict[str, int]:
    return went(kept(receiver, bodies, events).run())


def test_bodies_go_and_all_that_was_learnt_from_them_stays(any_receiver):
    receipts = [any_receiver.call_back(bulk(str(n), recordsCount=3)).json for n in range(3)]
    jobs = any_receiver.get("/jobs").json["jobs"]
    age(any_receiver, 91 * DAY)
    assert prune(any_receiver, bodies=90 * DAY) == {"bodies": 3}
    after = any_receiver.get("/jobs").json["jobs"]
    assert [{**job, "updated_at": None} for job in after] == [
        {**job, "updated_at": None} for job in jobs
    ]
    for receipt in receipts:
        id_ = older(receipt["event"], 91 * DAY)
        event = any_receiver.get(f"/events/{id_}")
        assert (event.status_code, event.json["deliveries"]) == (200, 1)
        body = any_receiver.get(f"/events/{id_}/body")
        assert (body.status_code, body.json["code"]) == (410, "body_pruned")
    assert len(any_receiver.get("/jobs/1/events").json["timeline"]) == 1
    assert prune(any_receiver, bodies=90 * DAY) == {}


def test_of_an_old_event_hardly_more_than_its_hash_is_kept(any_receiver):
    receipt = any_receiver.call_back(bulk("1", recordsCount=3)).json
    any_receiver.call_back(b"\xff")
    job = any_receiver.get("/jobs/1").json
    age(any_receiver, 401 * DAY)
    assert prune(any_receiver, events=400 * DAY) == {"bodies": 2, "events": 2}
    assert any_receiver.get("/jobs/1").json == {
        **job,
        "updated_at": any_receiver.get("/jobs/1").json["updated_at"],
    }
    assert any_receiver.get("/jobs/1/events").json["timeline"] == []
    for path in ("", "/body"):
        gone = any_receiver.get(f"/events/{older(receipt['event'], 401 * DAY)}{path}")
        assert (gone.status_code, gone.json["code"]) == (410, "event_pruned")
    assert any_receiver.get("/events").json == {"events": [], "next": None}
    assert any_receiver.get("/events?kind=other&job=1").json["events"] == []
    assert any_receiver.get("/summary").json["unreadable_events"] == 0
    with any_receiver.services.database.read() as session:
        rows = session.scalars(select(Event)).all()
        left = {(row.key, row.size, row.webhook_id, row.changed, row.body) for row in rows}
        assert {(row.instance, row.job, row.deliveries) for row in rows} == {
            ("default", "1", 1),
            ("default", "", 1),
        }
    assert left == {("", 0, None, None, None)}


@pytest.mark.parametrize("ages", [{"bodies": DAY}, {"events": DAY}], ids=["body", "event"])
def test_a_replay_after_pruning_is_still_a_duplicate_and_changes_nothing(any_receiver, ages):
    first = any_receiver.call_back(bulk("1")).json
    age(any_receiver, 2 * DAY)
    prune(any_receiver, **ages)
    job = any_receiver.get("/jobs/1").json
    again = any_receiver.call_back(bulk("1"))
    event = older(first["event"], 2 * DAY)
    assert (again.status_code, again.json) == (200, {"event": event, "duplicate": True})
    tables_ = (Event, JobRow, OutboundDelivery, TimelineEntry)
    assert [count(any_receiver, table) for table in tables_] == [1, 1, 0, 0]
    assert bodies(any_receiver) == 0
    assert any_receiver.get("/jobs/1").json == job
    gone = any_receiver.get(f"/events/{event}/body")
    assert gone.status_code == 410
    if "events" in ages:
        assert "2 deliveries" in gone.json["detail"]


def test_a_replay_of_a_forgotten_event_is_marked_as_stale(any_receiver):
    def stale() -> float:
        return REGISTRY.get_sample_value(f"{name}_total", {"connector": "default"}) or 0

    name, before = "receiver_stale_replays", None
    receipt = any_receiver.call_back(bulk("1")).json
    before = stale()
    with capture_logs() as logs:
        any_receiver.call_back(bulk("1"))
    assert (stale(), logs) == (before, [])
    age(any_receiver, 2 * DAY)
    prune(any_receiver, events=DAY)
    with capture_logs() as logs:
        any_receiver.call_back(bulk("1"))
    assert stale() == before + 1
    told = {
        "event": "stale replay",
        "instance": "default",
        "kept_as": older(receipt["event"], 2 * DAY),
    }
    assert logs == [{**told, "log_level": "warning"}]


def test_what_is_young_stays(any_receiver):
    receipt = any_receiver.call_back(bulk("1")).json
    reject(any_receiver, bulk("2"))
    assert prune(any_receiver, DAY, DAY) == {}
    assert any_receiver.get(f"/events/{receipt['event']}/body").data == bulk("1")
    assert len(any_receiver.get("/rejections").json["rejections"]) == 1


def test_what_is_kept_for_ever_never_goes(any_receiver):
    any_receiver.call_back(bulk("1"))
    reject(any_receiver, bulk("2"))
    age(any_receiver, 5_000 * DAY)
    assert prune(any_receiver, FOREVER, FOREVER) == {"addresses": 1}


def test_no_body_outlives_its_event(any_receiver):
    any_receiver.call_back(bulk("1"))
    age(any_receiver, 2 * DAY)
    assert prune(any_receiver, bodies=EVER, events=DAY)["bodies"] == 1
    assert bodies(any_receiver) == 0


def test_nor_does_one_that_was_received_before_the_time_up_to_which_bodies_are_gone(any_receiver):
    any_receiver.call_back(bulk("1"))
    age(any_receiver, 2 * DAY)
    with any_receiver.services.database.write() as session:
        retention.lock_retention(session).bodies_before = now_ms()
    prune(any_receiver, bodies=DAY)
    assert bodies(any_receiver) == 1
    prune(any_receiver, events=DAY)
    assert bodies(any_receiver) == 0


def test_the_quarantine_and_its_counts_go(any_receiver):
    for number in range(3):
        reject(any_receiver, bulk(str(number)))
    age(any_receiver, 2 * 3_600_000)
    assert prune(any_receiver, bodies=DAY) == {"addresses": 1}
    age(any_receiver, 2 * DAY)
    gone = prune(any_receiver, bodies=DAY)
    assert gone.pop("counts") in (1, 2)  # minutes
    assert gone == {"rejections": 3}
    assert any_receiver.get("/rejections").json["rejections"] == []


def test_deliveries_go_with_their_attempts_but_not_those_still_to_be_made(any_receiver):
    later = now_ms() + DAY
    with any_receiver.services.database.write() as session:
        for at, next_at in ((1, None), (2, 3), (3, None), (later, None)):
            enqueue(
                session.connection(),
                [Message("callback", "https://x.example.com", b"", f"m{at}")],
                at,
            )
            row = session.scalars(select(OutboundDelivery).filter_by(at=at)).one()
            row.next_at = next_at
            session.add(OutboundAttempt(delivery=row.id, at=at, duration_ms=1, answer=b""))
    assert prune(any_receiver, bodies=DAY) == {"outbound": 2}
    with any_receiver.services.database.read() as session:
        assert set(session.scalars(select(OutboundDelivery.at))) == {2, later}
        assert set(session.scalars(select(OutboundAttempt.at))) == {2, later}


def failed(receiver, job: str, records: int) -> None:
    receiver.call_back(bulk(job, recordsFailedCount=records))
    with receiver.services.database.write() as session:
        for position in range(records):
            row = {"entry": "{}", "message": "", "position": position}
            session.add(RecordError(job=job, instance="default", **row))


def test_failed_records_go_with_the_last_change_of_their_job(any_receiver, monkeypatch):
    monkeypatch.setattr(retention, "BATCH", 3)
    for number in range(10):
        failed(any_receiver, f"old-{number}", number)
    age(any_receiver, 2 * DAY)
    failed(any_receiver, "new", 4)
    any_receiver.call_back(bulk("old-9", "ERROR", job_reset_attempt=1))
    gone = prune(any_receiver, bodies=DAY)
    assert gone["errors"] == sum(range(9))
    assert count(any_receiver, RecordError) == 9 + 4
    age(any_receiver, 2 * DAY)
    assert prune(any_receiver, bodies=DAY)["errors"] == 9 + 4


def test_timelines_and_submissions_go_with_the_events(any_receiver):
    states = ("sending", "taken", "refused", "unclear", "dismissed")
    with any_receiver.services.database.write() as session:
        for number, state in enumerate(states):
            row = {"instance": "a", "submitted_by": "b", "at": now_ms()}
            session.add(Submission(id=str(number), state=state, **row))
    any_receiver.call_back(bulk("1"))
    poll = NewObservation("default", parse(bulk("1")))
    any_receiver.services.intake.observe(poll)
    age(any_receiver, 2 * DAY)
    assert prune(any_receiver, bodies=DAY) == {"bodies": 1}
    gone = prune(any_receiver, events=DAY)
    assert gone == {"events": 1, "timeline": 1, "submissions": 5}
    assert any_receiver.get("/jobs/1/events").json["timeline"] == []


def test_a_count_beforehand_is_what_then_goes(any_receiver):
    for number in range(3):
        failed(any_receiver, str(number), 2)
        reject(any_receiver, bulk("x"))
    age(any_receiver, 2 * DAY)
    any_receiver.call_back(bulk("new"))
    told = kept(any_receiver, DAY, DAY).count_expired()
    assert prune(any_receiver, DAY, DAY) == {kind: rows for kind, rows in told.items() if rows}
    assert (told["bodies"], told["events"], told["errors"], told["timeline"]) == (3, 3, 6, 0)
    assert set(kept(any_receiver, DAY, DAY).count_expired().values()) == {0}


def test_batches_are_short_transactions_with_a_rest_after_each(any_receiver, monkeypatch):
    for number in range(23):
        any_receiver.call_back(bulk(str(number)))
    age(any_receiver, 2 * DAY)
    monkeypatch.setattr(retention, "BATCH", 5)
    rests: list[float] = []
    given_ = Settings(keep_events=DAY)
    passing = Retention(given_, any_receiver.services.database, now_ms, sleep=rests.append).run()
    seen = [(kind, rows, bodies(any_receiver)) for kind, rows in passing]
    assert [each for each in seen if each[0] == "bodies"] == [
        ("bodies", rows, 23 - sum((5, 5, 5, 5, 3)[: place + 1]))
        for place, rows in enumerate((5, 5, 5, 5, 3))
    ]
    assert [rows for kind, rows, _ in seen if kind == "events"] == [5, 5, 5, 5, 3]
    assert len(rests) == len(seen) - len(retention.KINDS)
    assert min(rests) >= retention.MIN_REST_SECONDS


def test_rows_that_did_not_go_are_not_looked_through_again(any_receiver, monkeypatch):
    """The next pass begins where the bodies of the last one ended, short of the latest minutes."""
    for number in range(5):
        any_receiver.call_back(bulk(str(number)))
    age(any_receiver, 2 * DAY)
    prune(any_receiver, bodies=DAY)
    done = state(any_receiver)
    assert done.bodies_before == pytest.approx(now_ms() - DAY, abs=60_000)
    assert done.errors_before == pytest.approx(now_ms() - DAY, abs=60_000)
    assert went(kept(any_receiver).run(1_000)) == {"events": 5}
    done = state(any_receiver)
    assert done.bodies_before == pytest.approx(now_ms() - retention.SETTLED_MS, abs=60_000)
    assert prune(any_receiver, bodies=DAY) == {}
    assert state(any_receiver).bodies_before == done.bodies_before  # never back


def test_an_interrupted_pass_goes_on_where_it_stood(any_receiver, monkeypatch):
    for number in range(20):
        any_receiver.call_back(bulk(str(number)))
    age(any_receiver, 2 * DAY)
    monkeypatch.setattr(retention, "BATCH", 5)
    cut = kept(any_receiver, bodies=DAY).run()
    assert [next(cut), next(cut)] == [("bodies", 5)] * 2
    cut.close()
    assert prune(any_receiver, bodies=DAY) == {"bodies": 10}
    assert bodies(any_receiver) == 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql18"])
def test_nodes_that_prune_at_once_share_the_work(make_receiver, make_database, kind, monkeypatch):
    url = make_database(kind)
    nodes = [make_receiver(url) for _ in range(3)]
    for number in range(60):
        nodes[0].call_back(bulk(str(number)))
    age(nodes[0], 2 * DAY)
    monkeypatch.setattr(retention, "BATCH", 5)
    gone: list[dict[str, int]] = []

    def work(node) -> None:
        gone.append(prune(node, DAY, DAY))

    threads = [threading.Thread(target=work, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    total = {kind: sum(each.get(kind, 0) for each in gone) for kind in ("bodies", "events")}
    assert (len(gone), total) == (3, {"bodies": 60, "events": 60})
    assert bodies(nodes[0]) == 0


def test_an_event_that_is_being_repeated_is_left_for_the_next_pass(make_receiver, make_database):
    receiver = make_receiver(make_database("postgresql18"))
    ids = [receiver.call_back(bulk(str(number))).json["event"] for number in range(3)]
    age(receiver, 2 * DAY)
    with receiver.services.database.write() as session:
        repeated = update(Event).where(Event.n == int(older(ids[1], 2 * DAY), 16))
        session.execute(repeated.values(deliveries=2))
        assert prune(receiver, events=DAY)["events"] == 2
    assert receiver.get(f"/events/{older(ids[1], 2 * DAY)}").json["deliveries"] == 2
    assert prune(receiver, events=DAY)["events"] == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql18"])
def test_callbacks_are_taken_while_a_pass_is_under_way(
    make_receiver, make_database, kind, monkeypatch
):
    receiver = make_receiver(make_database(kind))
    for number in range(30):
        receiver.call_back(bulk(str(number)))
    age(receiver, 2 * DAY)
    monkeypatch.setattr(retention, "BATCH", 2)
    answers = [
        receiver.call_back(bulk("new", recordsCount=number)).json["duplicate"]
        for number, _ in enumerate(kept(receiver, DAY, DAY).run())
    ]
    assert answers == [False] * len(answers)
    assert len(answers) > 2 * 15
    assert receiver.get("/jobs/new").json["events"] == len(answers)


def node(receiver, clock: Clock, **settings_) -> Retention:
    given_ = Settings(**settings_)
    return Retention(given_, receiver.services.database, clock, sleep=lambda _: None)


def steps(worker: Retention) -> int:
    done = 0
    while worker.step():
        done += 1
    return done


def prunes(receiver) -> list[tables.AuditEntry]:
    with receiver.services.database.read() as session:
        entries = audit.list_entries(session, 100)
        return [entry for entry in entries if entry.action == "prune"]


LOOK_MS = 1000 * LOOK_SECONDS


def test_a_server_makes_a_pass_each_hour(receiver):
    clock = Clock(now_ms())
    receiver.call_back(bulk("1"))
    age(receiver, 100 * DAY)
    worker = node(receiver, clock)
    began = clock.now
    assert steps(worker) == len(retention.KINDS)
    assert state(receiver).next_at == began + PERIOD_MS
    assert [entry.subject for entry in prunes(receiver)] == ["1 bodies"]
    for _ in range(PERIOD_MS // LOOK_MS - 1):
        clock.now += LOOK_MS
        assert steps(worker) == 0
    clock.now += LOOK_MS
    assert steps(worker) == len(retention.KINDS)
    assert len(prunes(receiver)) == 1  # this one deleted nothing


def test_a_server_does_it_by_itself(make_receiver, make_database, monkeypatch):
    url = make_database("sqlite")
    receiver = make_receiver(url)
    receiver.call_back(bulk("1"))
    age(receiver, 100 * DAY)
    monkeypatch.setattr("receiver.app.LOOK_SECONDS", 0)
    _, background = _app(Settings(database_url=url), now_ms, None, None)
    background.start()
    try:
        eventually(lambda: bodies(receiver) == 0)
    finally:
        background.close()


def test_of_all_nodes_one_makes_the_pass_and_a_dead_ones_is_taken_up(receiver):
    clock = Clock(now_ms())
    one, other = node(receiver, clock), node(receiver, clock)
    assert one.step()
    assert not other.step()
    clock.now += LEASE_MS - 1
    assert not other.step()
    assert one.step()  # which keeps its claim
    clock.now += LEASE_MS - 1
    assert not other.step()
    clock.now += 1  # and now it died
    assert steps(other) == len(retention.KINDS)


def test_the_pass_is_claimed_by_one_node_on_postgresql_too(make_receiver, make_database):
    receiver = make_receiver(make_database("postgresql18"))
    workers = [node(receiver, Clock(now_ms())) for _ in range(4)]
    at_once = threading.Barrier(4)
    done: list[int] = []

    def work(worker: Retention) -> None:
        at_once.wait(60)
        done.append(steps(worker))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [0, 0, 0, len(retention.KINDS)]


def test_a_pass_that_failed_is_due_again_soon(receiver, monkeypatch):
    clock = Clock(now_ms())
    worker = node(receiver, clock)
    assert worker.step()
    with monkeypatch.context() as fault:

        def fails(*_) -> None:
            raise StoreUnavailable("a fault")

        fault.setattr(retention.Kind, "delete", fails)
        with pytest.raises(StoreUnavailable):
            worker.step()
    assert not worker.step()
    clock.now += LEASE_MS
    assert steps(worker) == len(retention.KINDS)
    assert state(receiver).next_at == clock.now + PERIOD_MS


# -- clocks that are wrong


def test_a_clock_that_jumps_deletes_nothing(receiver):
    """Whether it jumps before a pass or in the middle of one, and however long it stays wrong."""
    for number in range(3):
        receiver.call_back(bulk(str(number)))
    clock, guard = Clock(now_ms()), ClockGuard()
    worker = node(receiver, clock)

    def beat() -> bool:
        with receiver.services.database.write() as session:
            return guard.check(session, clock.now)

    assert beat()
    clock.now += 401 * DAY
    assert not beat()
    assert steps(worker) == 0
    clock.now -= 401 * DAY
    assert worker.step()
    clock.now += 401 * DAY
    with pytest.raises(ClockStepped):
        steps(worker)
    assert steps(node(receiver, clock)) == 0  # nor does one that starts meanwhile
    assert bodies(receiver) == 3
    clock.now -= 401 * DAY
    assert beat()
    assert not worker.step()  # another may have gone on with it
    clock.now += LEASE_MS
    assert steps(worker) == len(retention.KINDS)
    assert bodies(receiver) == 3


def test_a_pass_planned_by_a_clock_that_was_ahead_is_made_now(receiver):
    clock = Clock(now_ms())
    clock.now += 401 * DAY
    assert steps(node(receiver, clock, keep_bodies=EVER, keep_events=EVER)) == len(retention.KINDS)
    clock.now -= 401 * DAY
    assert steps(node(receiver, clock)) == len(retention.KINDS)


@pytest.mark.usefixtures("capfd")  # a command sets up the log
@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("server", [True, False], ids=["server", "command"])
def test_a_node_whose_clock_is_an_hour_wrong_deletes_by_the_databases(
    make_receiver, make_database, monkeypatch, hours, server
):
    """By its own, the fresh body would be too old an hour ahead, the other too young behind."""
    url, keep, wrong = make_database("postgresql18"), 45 * MINUTE, hours * 60 * MINUTE
    receiver = make_receiver(url)
    receiver.call_back(bulk("1"))
    age(receiver, 90 * MINUTE)
    fresh = receiver.call_back(bulk("fresh")).json["event"]
    if server:
        assert steps(node(receiver, Clock(now_ms() + wrong), keep_bodies=keep))
    else:
        now = time.time_ns
        with monkeypatch.context() as patched:
            patched.setattr(time, "time_ns", lambda: now() + wrong * 10**6)
            patched.setenv("RECEIVER_DATABASE_URL", url)
            assert run(["prune", "--older-than", "45m", "--yes"]) == 0
    assert (bodies(receiver), count(receiver, Event)) == (1, 2)
    assert receiver.get(f"/events/{fresh}/body").status_code == 200


def test_a_step_that_nobody_undoes_for_a_day_is_believed(any_receiver):
    passed = [0.0]
    guard = ClockGuard(lambda: passed[0] + 1)

    def beat(now: int) -> bool:
        with any_receiver.services.database.write() as session:
            return guard.check(session, now)

    assert beat(100 * DAY)
    assert beat(101 * DAY)
    assert not beat(103 * DAY)
    passed[0] += 86_000
    assert not beat(104 * DAY)
    passed[0] += 500
    assert beat(104 * DAY)
    assert beat(104 * DAY + 1)
    assert not beat(100 * DAY)  # back is a step too


# -- the law: pruning changes no answer and no outcome ---------------------------------------------

WORDS = ("CREATED", "RUNNING", "COMPLETED", "ERROR")
deliveries = st.tuples(st.just("deliver"), st.integers(0, 7), st.just(0))
prunings = st.tuples(st.just("prune"), st.integers(0, 3), st.integers(0, 3))
histories = st.lists(deliveries | prunings, max_size=20)
numbers = counter()


@pytest.fixture(scope="module")
def law_clock() -> Clock:
    return Clock(now_ms())


@pytest.fixture(scope="module", params=["sqlite", "postgresql18"])
def law_database(request, tmp_path_factory) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path_factory.mktemp('law') / 'law.db'}"
    if request.param != "sqlite":
        url = request.getfixturevalue(request.param).replace("://", "+psycopg://", 1)
    database = Database(url)
    migrations.upgrade(database)
    yield database
    database.close()


def replayed(database: Database, clock: Clock, told: list[tuple], *, pruned: bool) -> dict:
    """Deliver and prune in turn, a minute apart, to an instance of its own; give what is seen."""
    name = f"i{next(numbers)}"
    events: dict[str, int] = {}
    answers = []
    keys = Keys(SecretBox(()), ())
    for what, one, other in told:
        clock.now += MINUTE
        if what == "deliver":
            body = bulk(str(one % 2), WORDS[one // 2], message=f"m{one}")
            digest = hashlib.sha256(body).digest()
            delivery = Delivery(name, body, None, None, "::1")
            judged = Judged(delivery, 0, "k", "", digest, parse(body))
            (receipt,) = Store(database, keys, clock).write([judged])
            place = events.setdefault(receipt.event, len(events))
            answers.append((one, place, receipt.duplicate))
            note(f"forgotten: {receipt.forgotten}")
        elif pruned:
            keep = Settings(keep_bodies=one * MINUTE, keep_events=other * MINUTE)
            went(Retention(keep, database, clock, sleep=lambda _: None).run())
    with database.read() as session:
        rows = session.scalars(select(JobRow).where(JobRow.instance == name).order_by(JobRow.id))
        jobs = [(row.id, row.events, row.revision, *seen(row)) for row in rows]
        kept_ = select(Event.sha256, Event.deliveries).where(Event.instance == name)
        repeats = dict(session.execute(kept_).all())
    return {"answers": answers, "jobs": jobs, "deliveries": repeats}


def seen(row: JobRow) -> tuple[object, ...]:
    job = Job.decode(row.registers)
    return job.outcome, job.status, job.conflict, job.text("message"), job.failed, job.loaded


@pytest.mark.slow
@hypothesis.settings(max_examples=examples(60), deadline=None)
@given(told=histories)
def test_however_deliveries_replays_and_passes_alternate_answers_and_outcomes_are_the_same(
    told, law_database, law_clock
):
    with_ = replayed(law_database, law_clock, told, pruned=True)
    assert with_ == replayed(law_database, law_clock, told, pruned=False)
