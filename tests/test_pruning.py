"""Retention: bodies go, hashes and outcomes stay, and nobody waits long for it."""

import json
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from receiver.clock import now_ms
from receiver.signatures import SignatureKey
from receiver.storage import pruning
from receiver.storage.models import Body, Event, Forward, JobRow, Rejection, TimelineEntry

DAY = 24 * 3_600_000


def bulk(job: str, status: str = "COMPLETED", **facts: object) -> bytes:
    return json.dumps({"id": job, "status": status, **facts}).encode()


def count(receiver, table: type) -> int:
    with receiver.services.database.read() as session:
        return session.scalar(select(func.count()).select_from(table))


def prune(receiver, bodies: int = 0, details: int = 0) -> dict[str, int]:
    """Prune bodies, and details, that are so many ms old; by default all."""
    now = now_ms() + 60_000  # PostgreSQL's clock and ours differ a little
    return pruning.prune(receiver.services.database, now - bodies, now - details)


def test_bodies_go_and_all_that_was_learnt_from_them_stays(any_receiver):
    receipts = [any_receiver.call_back(bulk(str(n), recordsCount=3)).json for n in range(3)]
    jobs = any_receiver.get("/jobs").json["jobs"]
    gone = prune(any_receiver)
    assert (gone["bodies"], gone["timeline"]) == (3, 3)
    assert any_receiver.get("/jobs").json["jobs"] == jobs
    for receipt in receipts:
        event = any_receiver.get(f"/events/{receipt['event']}")
        assert (event.status_code, event.json["deliveries"]) == (200, 1)
        body = any_receiver.get(f"/events/{receipt['event']}/body")
        assert (body.status_code, body.json["code"]) == (410, "body_pruned")
    assert prune(any_receiver)["bodies"] == 0


def test_a_replay_after_pruning_is_still_a_duplicate(any_receiver):
    first = any_receiver.call_back(bulk("1")).json
    prune(any_receiver)
    again = any_receiver.call_back(bulk("1"))
    assert (again.status_code, again.json) == (200, {"event": first["event"], "duplicate": True})
    assert (count(any_receiver, Event), count(any_receiver, JobRow)) == (1, 1)
    assert count(any_receiver, Body) == 0  # a replay does not bring its body back
    assert any_receiver.get(f"/events/{first['event']}/body").status_code == 410
    assert any_receiver.get("/jobs/1").json["events"] == 1


def test_what_is_young_stays(any_receiver):
    receipt = any_receiver.call_back(bulk("1")).json
    any_receiver.call_back(bulk("2"), key=SignatureKey("x", b"another"))
    assert set(prune(any_receiver, DAY, DAY).values()) == {0}
    assert any_receiver.get(f"/events/{receipt['event']}/body").data == bulk("1")
    assert len(any_receiver.get("/rejections").json["rejections"]) == 1


def test_bodies_and_details_have_an_age_each(any_receiver):
    any_receiver.call_back(bulk("1"))
    gone = prune(any_receiver, bodies=0, details=DAY)
    assert (gone["bodies"], gone["timeline"]) == (1, 0)
    assert len(any_receiver.get("/jobs/1/events").json["timeline"]) == 1


def test_the_quarantine_and_its_counts_go(any_receiver):
    for number in range(3):
        any_receiver.call_back(bulk(str(number)), key=SignatureKey("x", b"another"))
    assert count(any_receiver, Rejection) == 3
    gone = prune(any_receiver)
    assert gone["rejections"] == 3
    assert any_receiver.get("/rejections").json["rejections"] == []


def test_what_clients_were_told_goes(receiver):
    row = {"job": "1", "instance": "a", "url": "https://x.example.com", "body": b"{}", "tries": 1}
    with receiver.services.database.write() as session:
        session.add_all([Forward(at=at, next_at=None, result="200", **row) for at in (1, 2)])
        session.add(Forward(at=now_ms() + DAY, next_at=None, result="200", **row))
    assert prune(receiver)["forwards"] == 2
    assert count(receiver, Forward) == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql18"])
def test_batches_are_short_transactions_and_come_to_an_end(
    make_receiver, make_database: Callable[[str], str], kind, monkeypatch
):
    receiver = make_receiver(make_database(kind))
    for number in range(23):
        receiver.call_back(bulk(str(number)))
    monkeypatch.setattr(pruning, "BATCH", 5)
    seen: list[int] = []
    original = type(receiver.services.database).write

    def watched(database):
        seen.append(count(receiver, Body))
        return original(database)

    monkeypatch.setattr(type(receiver.services.database), "write", watched)
    gone = prune(receiver)
    assert (gone["bodies"], gone["timeline"]) == (23, 23)
    assert seen[:5] == [23, 18, 13, 8, 3]
    assert count(receiver, TimelineEntry) == 0


def test_callbacks_are_taken_while_a_prune_is_under_way(receiver, monkeypatch):
    for number in range(10):
        receiver.call_back(bulk(str(number)))
    monkeypatch.setattr(pruning, "BATCH", 2)
    answers: list[int] = []
    step = pruning._bodies

    def slow(session, before):
        gone = step(session, before)
        asked = threading.Thread(
            target=lambda: answers.append(receiver.call_back(bulk("new")).status_code)
        )
        asked.start()
        asking.append(asked)
        return gone

    asking: list[threading.Thread] = []
    monkeypatch.setattr(pruning, "_bodies", slow)
    prune(receiver)
    for each in asking:
        each.join(30)
    assert answers == [200] * len(asking)
    assert len(asking) >= 5
