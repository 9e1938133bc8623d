"""What is stored: each event once, byte for byte, its job, and what was rejected."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from builders import NOW, Clock, Stored, bulk, content_of
from cryptography.fernet import Fernet
from nodes import eventually
from sqlalchemy import func, select, update

from receiver.callbacks import rejections, store
from receiver.callbacks.deliveries import Failed, NewRejection, Receipt
from receiver.callbacks.rejections import record_rejections
from receiver.database.models import (
    Event,
    RejectedAddress,
    Rejection,
    RejectionCount,
    StoredKey,
)
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.instances.encryption import SecretBox
from receiver.jobs.projection import NewAbsence, NewObservation
from receiver.lib.clock import now_ms
from receiver.openconnectors.notifications import Notification, parse
from receiver.openconnectors.signatures import HEADER, SignatureKey

MINUTE = 60_000
FERNET = Fernet.generate_key().decode()
DEADLINE = 60  # seconds


def write(receiver, *items, now: int = NOW):
    """Write a batch of bodies or observations in one transaction."""
    stored = Stored(receiver.services.database, now=now)
    return stored.write(*items)


def count(receiver, table, *conditions) -> int:
    with receiver.services.database.read() as session:
        return session.scalar(select(func.count()).select_from(table).where(*conditions))


def rows(receiver, *columns, order=None):
    with receiver.services.database.read() as session:
        return [tuple(row) for row in session.execute(select(*columns).order_by(order))]


def event(receiver, answer) -> dict:
    return receiver.get(f"/events/{answer.json['event']}").json


def kept_body(receiver, answer) -> bytes:
    return receiver.get(f"/events/{answer.json['event']}/body").data


def job(receiver, id_="1", **query) -> dict:
    answer = receiver.get(f"/jobs/{id_}", **query)
    assert answer.status_code == 200, answer.data
    return answer.json


def timeline(receiver, id_="1") -> list[dict]:
    return receiver.get(f"/jobs/{id_}/events").json["timeline"]


def add_instance(receiver, name, *keys: SignatureKey) -> list[str]:
    secret_box = SecretBox(receiver.services.settings.encryption_keys)
    with receiver.services.database.write() as session:
        registry.add_instance(session, secret_box, name, NOW)
        return [signature_keys.add_key(session, secret_box, name, key.secret, NOW) for key in keys]


# --- one event for equal bodies


def test_twins_in_one_batch_are_one_event_of_several_deliveries(any_receiver):
    receipts = write(any_receiver, bulk(), bulk("2"), bulk(), bulk())
    assert [receipt.duplicate for receipt in receipts] == [False, False, True, True]
    first, other = receipts[0].event, receipts[1].event
    assert [receipt.event for receipt in receipts] == [first, other, first, first]
    assert any_receiver.get(f"/events/{first}").json["deliveries"] == 3
    assert count(any_receiver, Event) == 2
    assert (job(any_receiver)["events"], len(timeline(any_receiver))) == (1, 1)


def test_of_twins_exactly_one_is_told_that_it_is_new(any_receiver):
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: any_receiver.call_back(bulk()).json, range(40)))
    assert [answer["duplicate"] for answer in answers].count(False) == 1
    assert len({answer["event"] for answer in answers}) == 1
    assert rows(any_receiver, Event.deliveries) == [(40,)]


def test_a_duplicate_is_counted_and_changes_no_job(make_receiver, database_url):
    clock = Clock(NOW)
    receiver = make_receiver(database_url, clock=clock)
    first = receiver.call_back(bulk(recordsCount=1))
    before, entries, kept = job(receiver), timeline(receiver), event(receiver, first)
    clock.now += 5000
    again = receiver.call_back(bulk(recordsCount=1))
    assert again.json == {"event": first.json["event"], "duplicate": True}
    assert (job(receiver), timeline(receiver)) == (before, entries)
    after = event(receiver, again)
    changed = {name for name in kept if kept[name] != after[name]}
    assert changed == {"deliveries", "last_received_at"}
    assert (kept["deliveries"], after["deliveries"]) == (1, 2)
    assert after["last_received_at"] > kept["last_received_at"]


def test_when_a_body_was_last_seen_never_goes_back(make_receiver, make_database):
    clock = Clock(NOW)
    receiver = make_receiver(make_database("sqlite"), clock=clock)
    first = event(receiver, receiver.call_back(b"x"))
    clock.now -= 60_000
    again = event(receiver, receiver.call_back(b"x"))
    assert again == {**first, "deliveries": 2}


def test_a_duplicate_under_another_key_keeps_the_first_event(make_receiver, make_database):
    keys = (SignatureKey("new", b"the new key of tests"), SignatureKey("old", b"the old key"))
    receiver = make_receiver(make_database("sqlite"), default_keys=keys)
    first = receiver.call_back(b"x", key=keys[1])
    again = receiver.call_back(b"x", key=keys[0])
    assert again.json == {"event": first.json["event"], "duplicate": True}
    assert event(receiver, again)["key"] == "old"


def test_equal_bodies_of_two_instances_are_two_events_and_two_jobs(make_receiver, database_url):
    receiver = make_receiver(database_url, encryption_keys=(FERNET,))
    key = SignatureKey("k", b"the key of another instance")
    add_instance(receiver, "other", key)
    answers = [receiver.call_back(bulk()), receiver.call_back(bulk(), "other", key)]
    assert [answer.json["duplicate"] for answer in answers] == [False, False]
    assert answers[0].json["event"] != answers[1].json["event"]
    assert [event(receiver, answer)["deliveries"] for answer in answers] == [1, 1]
    assert receiver.get("/jobs/1").status_code == 409
    assert [job(receiver, f"1?instance={name}")["events"] for name in ("default", "other")] == [
        1,
        1,
    ]


def test_what_took_too_long_to_write_is_not_committed(database_url, open_store, monkeypatch):
    """Or it would become visible behind the back of those who follow events as they come."""
    stored = open_store(database_url)
    monkeypatch.setattr(store, "MAX_WRITING_SECONDS", -1)
    assert [type(result) for result in stored.write(bulk())] == [Failed]
    assert stored.database.rows(select(Event.n)) == []


def test_bodies_that_differ_in_one_byte_are_two_events(any_receiver):
    answers = [any_receiver.call_back(body) for body in (bulk(), bulk() + b" ", bulk() + b"\n")]
    assert len({answer.json["event"] for answer in answers}) == 3
    assert job(any_receiver)["events"] == 3


# --- jobs and their timeline


def test_job_and_timeline_say_what_each_event_changed(any_receiver):
    bodies = [
        bulk(status="RUNNING", objectName="contact"),
        bulk(status="COMPLETED", recordsCount=8, recordsFailedCount=2),
        bulk(status="RUNNING", objectName="contact", late=True),
        bulk(status="COMPLETED", recordsCount=8, recordsFailedCount=2, again=True),
        bulk(status="ABORTED"),
    ]
    ids = [any_receiver.call_back(body).json["event"] for body in bodies]
    seen = job(any_receiver)
    assert {name: seen[name] for name in ("status", "outcome", "object", "conflict", "events")} == {
        "status": "COMPLETED",
        "outcome": "partial",
        "object": "contact",
        "conflict": True,
        "events": 5,
    }
    assert seen["records"] == {"submitted": None, "loaded": 8, "failed": 2, "reported": 8}
    entries = [(entry["status"], entry["note"], entry["event"]) for entry in timeline(any_receiver)]
    assert entries == [
        ("RUNNING", None, ids[0]),
        ("COMPLETED", None, ids[1]),
        ("RUNNING", "stale: the job was already COMPLETED", ids[2]),
        ("COMPLETED", "nothing new", ids[3]),
        ("ABORTED", "contradicts another ending of this job (COMPLETED)", ids[4]),
    ]
    assert [entry["changed"] for entry in timeline(any_receiver)][2:] == [[], [], ["conflict"]]


def test_a_batch_changes_a_job_as_its_items_would_one_by_one(any_receiver):
    words = ("CREATED", "COMPLETED", "RUNNING", "STARTED")
    write(any_receiver, *(bulk("a", word) for word in words))
    for word in words:
        write(any_receiver, bulk("b", word))
    a, b = job(any_receiver, "a"), job(any_receiver, "b")
    arrival = {"id", "updated_at", "ended_at", "files_expire_at"}  # PostgreSQL's clock goes on
    assert {k: v for k, v in a.items() if k not in arrival} == {
        k: v for k, v in b.items() if k not in arrival
    }
    assert [entry["note"] for entry in timeline(any_receiver, "a")] == [
        entry["note"] for entry in timeline(any_receiver, "b")
    ]


def test_polls_and_submissions_are_in_the_timeline_and_no_events(any_receiver):
    submission = Notification(
        "bulk_job", "1", "CREATED", source="submission", submitted=3, submitted_at=NOW
    )
    poll = Notification("bulk_job", "1", "COMPLETED", reported=3, source="poll")
    observations = [NewObservation("default", submission), NewObservation("default", poll, "asked")]
    assert write(any_receiver, *observations) == [None, None]
    any_receiver.call_back(bulk(recordsCount=3))
    seen = job(any_receiver)
    assert (seen["outcome"], seen["learnt_by"], seen["events"]) == ("succeeded", "poll", 1)
    assert seen["records"]["submitted"] == 3
    entries = [(entry["source"], entry["note"]) for entry in timeline(any_receiver)]
    assert entries == [("submission", None), ("poll", "asked"), ("callback", "nothing new")]
    assert count(any_receiver, Event) == 1


def test_a_job_that_runs_again_is_pending_and_takes_its_time_anew(make_receiver, make_database):
    clock = Clock(NOW)
    receiver = make_receiver(make_database("sqlite"), clock=clock)
    receiver.call_back(bulk(status="ERROR"))
    clock.now += 2 * 900_000
    receiver.call_back(bulk(status="RUNNING", job_reset_attempt=1))
    seen = job(receiver)
    assert (seen["outcome"], seen["learnt_by"], seen["ended_at"]) == ("pending", None, None)
    assert seen["overdue"] is False
    clock.now += 900_000
    assert job(receiver)["overdue"] is True


def test_a_job_is_overdue_once_it_takes_longer_than_it_should(make_receiver, make_database):
    clock = Clock(NOW)
    receiver = make_receiver(make_database("sqlite"), clock=clock)
    receiver.call_back(bulk("1", status="RUNNING"))
    receiver.call_back(bulk("2"))

    def overdue() -> list[bool]:
        listed = {each["id"]: each for each in receiver.get("/jobs").json["jobs"]}
        shown = [job(receiver, id_) for id_ in ("1", "2")]
        assert shown == [listed[id_] for id_ in ("1", "2")]
        return [each["overdue"] for each in shown]

    tag = receiver.get("/jobs/1").headers["ETag"]
    clock.now += 899_999
    assert overdue() == [False, False]
    assert receiver.get("/jobs/1", **{"If-None-Match": tag}).status_code == 304
    clock.now += 1
    assert overdue() == [True, False]
    assert receiver.get("/jobs/1", **{"If-None-Match": tag}).status_code == 200


def test_any_later_word_opens_a_job_again_that_was_closed_as_lost(any_receiver):
    any_receiver.call_back(bulk(status="RUNNING"))
    write(any_receiver, NewAbsence("default", "1", closed_by="ann"), now=now_ms())
    lost = job(any_receiver)
    assert (lost["outcome"], lost["status"], lost["overdue"]) == ("lost", "RUNNING", False)
    assert [each["id"] for each in any_receiver.get("/jobs?outcome=lost").json["jobs"]] == ["1"]
    poll = Notification("bulk_job", "1", "RUNNING", source="poll")
    any_receiver.services.intake.observe(NewObservation("default", poll))
    assert job(any_receiver)["outcome"] == "pending"
    assert timeline(any_receiver)[-1]["changed"] == ["outcome"]
    assert job(any_receiver)["updated_at"] >= lost["updated_at"]


def test_a_poll_that_tells_nothing_new_is_no_change_of_the_job(any_receiver):
    write(any_receiver, bulk(recordsCount=3))
    tag = any_receiver.get("/jobs/1").headers["ETag"]
    for asked_at in (1, 2):
        poll = Notification(
            "bulk_job", "1", "COMPLETED", reported=3, source="poll", asked_at=asked_at
        )
        write(any_receiver, NewObservation("default", poll))
    assert any_receiver.get("/jobs/1").headers["ETag"] == tag


def test_an_observation_equal_to_a_body_does_not_make_it_a_duplicate(any_receiver):
    write(any_receiver, NewObservation("default", parse(bulk()).replace(source="poll")))
    assert any_receiver.call_back(bulk()).json["duplicate"] is False


def test_a_change_is_never_dated_back(make_receiver, make_database):
    clock = Clock(NOW)
    receiver = make_receiver(make_database("sqlite"), clock=clock)
    receiver.call_back(bulk(status="RUNNING"))
    before = job(receiver)["updated_at"]
    clock.now -= 3_600_000
    receiver.call_back(bulk())
    assert (job(receiver)["updated_at"], job(receiver)["status"]) == (before, "COMPLETED")


def test_two_receivers_with_the_same_batch_in_opposite_orders_never_deadlock(
    make_receiver, database_url
):
    nodes = [make_receiver(database_url) for _ in range(2)]
    jobs = [f"job-{number}" for number in range(16)]
    start = threading.Barrier(2, timeout=DEADLINE)

    def send(lane: int) -> list[bool]:
        duplicates = []
        for turn in range(30):
            bodies = [bulk(name, "RUNNING", turn=turn) for name in jobs]
            bodies = bodies if lane else bodies[::-1]
            start.wait()
            duplicates += [receipt.duplicate for receipt in write(nodes[lane], *bodies)]
            start.wait()
            write(
                nodes[lane],
                *(NewObservation("default", parse(body).replace(source="poll")) for body in bodies),
            )
        return duplicates

    with ThreadPoolExecutor(2) as threads:
        duplicates = Counter(told for lane in threads.map(send, range(2)) for told in lane)
    assert duplicates == {False: 30 * 16, True: 30 * 16}
    assert [job(nodes[0], name)["events"] for name in jobs] == [30] * 16


# --- extremes


def test_texts_of_any_length_are_kept_whole(any_receiver):
    long = "é€𝄞x" * 5_000
    noise = os.urandom(40_000).hex()  # incompressible: an index entry of it would be too large
    answer = any_receiver.call_back(
        bulk(status=noise, objectName=long + noise, jobDirection=noise, error=long)
    )
    assert answer.status_code == 200
    seen = job(any_receiver)
    assert (seen["status"], seen["outcome"]) == (noise, "unknown")
    assert (seen["object"], seen["direction"], seen["message"]) == (long + noise, noise, long)
    assert event(any_receiver, answer)["kind"] == "bulk_job"
    assert timeline(any_receiver)[0]["status"] == noise
    assert len(any_receiver.get("/jobs").json["jobs"]) == 1


def test_a_reading_that_the_database_refuses_costs_neither_its_body_nor_its_neighbours(
    any_receiver,
):
    """The parser gives no such reading; should it ever, the event must not become an outage."""
    stored = Stored(any_receiver.services.database)
    for turn, poison in enumerate(
        (
            {"job": "x" * 201},
            {"job": "\0"},
            {"status": "\0"},
            {"object": "\0"},
            {"job": "\ud800"},
            {"message": "\ud800"},
        )
    ):
        reading = Notification("bulk_job", f"bad-{turn}", "COMPLETED").replace(**poison)
        poisoned = f"poisoned {turn}".encode()
        bad = msgspec.structs.replace(stored.judged(poisoned), notification=reading)
        ids = f"before-{turn}", f"after-{turn}"
        receipts = stored.write(bulk(ids[0]), bad, bulk(ids[1]))
        assert [(type(each), each.duplicate) for each in receipts] == [(Receipt, False)] * 3
        assert any_receiver.get(f"/events/{receipts[1].event}/body").data == poisoned
        assert [job(any_receiver, id_)["events"] for id_ in ids] == [1, 1]


# --- what was rejected


def forged(receiver, body=b"x", instance="default", header="sha256=" + "A" * 43 + "=", peer=None):
    headers = {} if header is None else {HEADER: header}
    environ = {"REMOTE_ADDR": peer} if peer else {}
    path = f"/callbacks/{instance}"
    return receiver.client.post(path, data=body, headers=headers, environ_base=environ)


def test_refusals_are_counted_by_reason_and_known_instance(any_receiver):
    for _ in range(3):
        assert forged(any_receiver).status_code == 401
    assert forged(any_receiver, header=None).status_code == 401
    assert forged(any_receiver, instance="nobody").status_code == 401
    assert forged(any_receiver, instance="x" * 65).status_code == 401
    assert forged(any_receiver, header="sha1=" + "A" * 27 + "=").status_code == 401
    eventually(lambda: rows(any_receiver, func.sum(RejectionCount.count)) == [(7,)])
    columns = (RejectionCount.reason, RejectionCount.instance, func.sum(RejectionCount.count))
    with any_receiver.services.database.read() as session:
        counted = session.execute(select(*columns).group_by(*columns[:2]))
        assert {(reason, instance): int(n) for reason, instance, n in counted} == {
            ("bad_signature", "default"): 3,
            ("missing", "default"): 1,
            ("algorithm", "default"): 1,
            ("unknown_instance", ""): 2,
        }
    assert rows(any_receiver, RejectedAddress.peer, RejectedAddress.count) == [("127.0.0.1", 7)]
    assert any_receiver.get("/summary").json["rejections_1h"] == 7
    assert count(any_receiver, Event) == 0


def test_a_body_that_is_too_large_is_counted_for_no_instance(make_receiver, database_url):
    receiver = make_receiver(database_url, max_body_bytes=10)
    assert receiver.call_back(b"x" * 10).status_code == 200
    assert receiver.call_back(b"x" * 11).status_code == 413
    columns = (RejectionCount.reason, RejectionCount.instance, RejectionCount.count)
    eventually(lambda: rows(receiver, *columns) == [("too_large", "", 1)])
    assert (count(receiver, Rejection), count(receiver, Event)) == (0, 1)


def test_a_refusal_is_quarantined_with_header_and_body_if_it_may_be_the_vendors(any_receiver):
    header = "sha256=" + "B" * 43 + "="
    forged(any_receiver, b"signed wrongly", header=header, peer="192.0.2.7")
    forged(any_receiver, b"not signed at all", header=None)
    forged(any_receiver, b"for nobody", instance="nobody")
    eventually(lambda: count(any_receiver, Rejection) == 2)
    columns = (Rejection.reason, Rejection.instance, Rejection.peer, Rejection.size)
    assert rows(
        any_receiver, *columns, Rejection.signature, Rejection.body, order=Rejection.id
    ) == [
        ("bad_signature", "default", "192.0.2.7", 14, header.encode(), b"signed wrongly"),
        ("missing", "default", "127.0.0.1", 17, None, None),
    ]
    listed = any_receiver.get("/rejections").json["rejections"]
    assert [(each["reason"], each["peer"], each["size"]) for each in listed] == [
        ("missing", "127.0.0.1", 17),
        ("bad_signature", "192.0.2.7", 14),
    ]


def test_the_addresses_of_one_ipv6_customer_count_as_one(any_receiver):
    for peer in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"):
        forged(any_receiver, peer=peer)
    eventually(lambda: rows(any_receiver, func.sum(RejectedAddress.count)) == [(3,)])
    assert rows(
        any_receiver, RejectedAddress.peer, RejectedAddress.count, order=RejectedAddress.peer
    ) == [("2001:db8:0:1::/64", 1), ("2001:db8::/64", 2)]


def rejection(number: int, peer: str = "192.0.2.1", size: int = 10) -> NewRejection:
    return NewRejection("default", "bad_signature", peer, size, b"sha256=", b"%010d" % number)


def quarantined(receiver) -> list[int]:
    return [int(body) for (body,) in rows(receiver, Rejection.body, order=Rejection.id)]


def keep(receiver, items) -> None:
    with receiver.services.database.write() as session:
        record_rejections(session, items, NOW)


def test_the_quarantine_is_bounded_in_rows_oldest_out(any_receiver, monkeypatch):
    monkeypatch.setattr(rejections, "MAX_REJECTIONS", 20)
    for first in range(0, 60, 5):
        keep(any_receiver, [rejection(n, f"192.0.2.{n}") for n in range(first, first + 5)])
    assert quarantined(any_receiver) == list(range(40, 60))
    assert count(any_receiver, RejectedAddress) == 60


def test_one_address_cannot_drive_the_others_out_of_the_quarantine(any_receiver, monkeypatch):
    monkeypatch.setattr(rejections, "MAX_REJECTIONS_OF_A_PEER", 5)
    keep(any_receiver, [rejection(0, "192.0.2.2")])
    for number in range(1, 30):
        keep(any_receiver, [rejection(number)])
    assert quarantined(any_receiver) == [0, 25, 26, 27, 28, 29]


def test_the_quarantine_is_bounded_in_bytes_oldest_out(any_receiver, monkeypatch):
    monkeypatch.setattr(rejections, "MAX_REJECTION_BYTES", 1000)
    keep(any_receiver, [rejection(n, size=300) for n in range(6)])
    assert quarantined(any_receiver) == [3, 4, 5]
    keep(any_receiver, [rejection(6, size=1000)])
    assert quarantined(any_receiver) == [6]
    keep(any_receiver, [rejection(7, size=1001)])
    assert quarantined(any_receiver) == []


def test_the_true_bounds_hold_for_a_flood_from_many_addresses(receiver):
    for first in range(0, 6_400, 200):
        keep(receiver, [rejection(n, f"192.0.2.{n % 4}", 1) for n in range(first, first + 200)])
    assert quarantined(receiver) == list(range(2_400, 6_400))
    keep(receiver, [rejection(n, f"198.51.100.{n % 200}", 1) for n in range(6_400, 8_000)])
    assert quarantined(receiver) == list(range(3_000, 8_000))


def test_over_the_limit_an_address_gets_429_from_every_receiver_but_a_right_signature_200(
    make_receiver, database_url
):
    nodes = [make_receiver(database_url, rejections_a_minute=6) for _ in range(2)]
    codes = [forged(nodes[turn % 2], b"%d" % turn).status_code for turn in range(6)]
    assert codes == [401] * 6
    # Each knows its own count at once, and that of all nodes once theirs is written.
    answers = [
        eventually(lambda node=node: (told := forged(node)).status_code == 429 and told)
        for node in nodes
    ]
    assert all(1 <= int(answer.headers["Retry-After"]) <= 60 for answer in answers)
    assert answers[0].json["code"] == "rate_limited"
    assert [forged(node, instance="nobody").status_code for node in nodes] == [429, 429]
    assert [forged(node, peer="192.0.2.9").status_code for node in nodes] == [401, 401]
    eventually(lambda: count(nodes[0], Rejection, Rejection.peer == "192.0.2.9") == 2)
    recorded = count(nodes[0], Rejection)
    right = [node.call_back(bulk(str(number))) for number, node in enumerate(nodes)]
    assert [answer.status_code for answer in right] == [200, 200]
    for node in nodes:  # what is answered 429 costs no more rows
        assert [forged(node).status_code for _ in range(5)] == [429] * 5
        assert node.call_back(b"written by then").status_code == 200
    assert count(nodes[0], Rejection) == recorded


def test_when_the_minute_is_over_an_address_is_listened_to_again(make_receiver, make_database):
    clock = Clock(NOW)
    receiver = make_receiver(make_database("sqlite"), clock=clock, rejections_a_minute=2)
    codes = []
    for number in range(1, 5):
        codes.append(forged(receiver).status_code)
        eventually(lambda number=number: count(receiver, Rejection) == min(number, 3))
        clock.now += 10_000
    assert codes == [401, 401, 429, 429]
    assert int(forged(receiver).headers["Retry-After"]) == 20
    clock.now += 20_000
    assert [forged(receiver).status_code for _ in range(3)] == [401, 401, 429]


# --- signature keys that change under a running receiver

KEYS = [SignatureKey(str(number), b"a signature key, number %d" % number) for number in range(4)]


@pytest.fixture
def two_nodes(make_receiver, database_url):
    nodes = [make_receiver(database_url, encryption_keys=(FERNET,)) for _ in range(2)]
    ids = add_instance(nodes[0], "gooddata", *KEYS[:2])
    return nodes, ids


def codes(node, *keys: SignatureKey, body=b"x") -> list[int]:
    return [node.call_back(body, "gooddata", key).status_code for key in keys]


def test_a_retired_key_is_refused_by_every_receiver_from_the_next_request_on(two_nodes):
    (here, there), ids = two_nodes
    assert (codes(here, *KEYS[:2]), codes(there, *KEYS[:2])) == ([200, 200], [200, 200])
    with here.services.database.write() as session:
        signature_keys.retire_key(session, ids[0], "gooddata", NOW)
    before = count(here, Event)
    assert codes(there, KEYS[0], body=b"never seen before") == [401]
    assert codes(there, KEYS[0]) == [401]  # nor counts it as a delivery
    assert codes(here, KEYS[0]) == [401]
    assert (codes(here, KEYS[1]), codes(there, KEYS[1])) == ([200], [200])
    assert count(here, Event) == before


def test_an_added_key_is_accepted_by_every_receiver_from_the_next_request_on(two_nodes):
    (here, there), _ = two_nodes
    assert (codes(here, KEYS[2]), codes(there, KEYS[2])) == ([401], [401])
    secret_box = SecretBox((FERNET,))
    with here.services.database.write() as session:
        added = signature_keys.add_key(session, secret_box, "gooddata", KEYS[2].secret, NOW)
    assert codes(there, *KEYS[:3]) == [200, 200, 200]
    assert event(there, there.call_back(b"y", "gooddata", KEYS[2]))["key"] == added


def test_an_added_instance_is_known_at_once_and_a_removed_one_forgotten_at_once(two_nodes):
    (here, there), _ = two_nodes
    assert there.call_back(b"x", "new", KEYS[3]).status_code == 401
    add_instance(here, "new", KEYS[3])
    assert there.call_back(b"x", "new", KEYS[3]).status_code == 200
    with here.services.database.write() as session:
        registry.remove_instance(session, "new")
    assert there.call_back(b"x", "new", KEYS[3]).status_code == 401
    assert there.call_back(b"y", "new", KEYS[3]).status_code == 401


def test_what_was_judged_by_outdated_keys_is_judged_again_right_or_wrong(any_receiver):
    stored = Stored(any_receiver.services.database)
    early = [stored.judged(bulk()), stored.judged(b"x", key=KEYS[2])]
    with any_receiver.services.database.write() as session:
        registry.count_change(session)
    receipt, rejected, twin = stored.write(*early, bulk())
    assert (receipt.duplicate, rejected.reason, twin.duplicate) == (False, "bad_signature", True)
    assert rows(any_receiver, Event.deliveries) == [(2,)]


def test_keys_changed_in_the_middle_of_a_batch_turn_no_right_callback_away(two_nodes):
    (here, there), _ = two_nodes
    stop = threading.Event()
    secret_box = SecretBox((FERNET,))

    def rotate() -> None:
        for _ in range(200):
            if stop.is_set():
                return
            with here.services.database.write() as session:
                added = signature_keys.add_key(session, secret_box, "gooddata", KEYS[2].secret, NOW)
            with here.services.database.write() as session:
                signature_keys.retire_key(session, added, "gooddata", NOW)

    rotating = threading.Thread(target=rotate)
    rotating.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            answers = list(
                threads.map(lambda n: codes(there, KEYS[n % 2], body=b"%d" % n)[0], range(200))
            )
    finally:
        stop.set()
        rotating.join(DEADLINE)
    assert Counter(answers) == {200: 200}


def test_ciphertexts_that_were_swapped_do_not_open_and_other_instances_still_work(two_nodes):
    (here, there), ids = two_nodes
    other = add_instance(here, "other", KEYS[2])[0]
    third = add_instance(here, "third", KEYS[3])[0]
    with here.services.database.write() as session:
        sealed = {row.id: row.sealed for row in session.scalars(select(StoredKey))}
        for row, content in ((ids[0], sealed[other]), (other, sealed[ids[0]])):
            session.execute(update(StoredKey).where(StoredKey.id == row).values(sealed=content))
        registry.count_change(session)
    for node in (here, there):
        answers = [
            node.call_back(b"x", name, key).status_code
            for name, key in (
                ("other", KEYS[2]),
                ("other", KEYS[0]),
                ("gooddata", KEYS[0]),
                ("gooddata", KEYS[2]),
                ("gooddata", KEYS[1]),
                ("third", KEYS[3]),
            )
        ]
        assert answers == [503, 503, 503, 503, 200, 200]
        assert node.call_back(b"x").status_code == 200
    assert third


def test_ciphertexts_swapped_within_an_instance_do_not_open_either(two_nodes):
    (here, there), ids = two_nodes
    with here.services.database.write() as session:
        sealed = {row.id: row.sealed for row in session.scalars(select(StoredKey))}
        for row, content in zip(ids, (sealed[ids[1]], sealed[ids[0]]), strict=True):
            session.execute(update(StoredKey).where(StoredKey.id == row).values(sealed=content))
        registry.count_change(session)
    assert codes(there, *KEYS[:2]) == [503, 503]
    assert there.call_back(b"x", "gooddata", KEYS[0]).headers["Retry-After"]


def test_a_lost_encryption_key_is_an_outage_of_that_instance_and_not_a_rejection(
    make_receiver, database_url
):
    add_instance(make_receiver(database_url, encryption_keys=(FERNET,)), "gooddata", KEYS[0])
    without = make_receiver(database_url)
    other = make_receiver(database_url, encryption_keys=(Fernet.generate_key().decode(),))
    assert (codes(without, KEYS[0]), codes(other, KEYS[0])) == ([503], [503])
    assert without.call_back(b"x").status_code == 200
    assert forged(without, instance="gooddata", header=None).status_code == 401


def test_secrets_lie_in_no_table_and_no_file(make_receiver, make_database):
    url = make_database("sqlite")
    receiver = make_receiver(url, encryption_keys=(FERNET,))
    add_instance(receiver, "gooddata", *KEYS[:2])
    codes(receiver, *KEYS[:2])
    receiver.close()
    kept = content_of(url)
    assert b"gooddata" in kept
    secrets = [key.secret for key in (*KEYS[:2], *receiver.services.settings.default_keys)]
    assert [secret for secret in (*secrets, receiver.token.encode()) if secret in kept] == []
