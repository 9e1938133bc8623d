"""What /metrics says is true, whichever worker says it."""

import contextlib
import json
import subprocess
import sys

import httpx
from nodes import DEADLINE
from prometheus_client.parser import text_string_to_metric_families

from receiver.database.engine import Database
from receiver.errors import StoreUnavailable, VendorError
from receiver.lib.clock import MINUTE_MS, now_ms
from receiver.openconnectors import client as upstream
from receiver.openconnectors.client import Call, VendorClient
from receiver.openconnectors.signatures import HEADER
from receiver.web import ops

WRONG = {HEADER: "sha256=" + 43 * "A" + "="}


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def counted(receiver):
    return samples(receiver.client.get("/metrics").text)


def grown(before, after):
    """What went up of the counters, without histograms' buckets."""
    return {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if key[0].endswith("_total") and value != before.get(key, 0)
    }


def answers(answer, kind="", connector="default"):
    labels = (("answer", answer), ("connector", connector), ("kind", kind))
    return ("receiver_callbacks_total", *labels)


def rooms(status, room="callbacks"):
    return ("receiver_answers_total", ("room", room), ("status", status))


def test_each_answer_to_a_callback_is_counted(receiver, monkeypatch):
    before = counted(receiver)
    body = b'{"id": "1", "status": "RUNNING"}'
    receiver.call_back(body)
    receiver.call_back(body)
    receiver.client.post("/callbacks/default", data=b"x", headers=WRONG)
    receiver.client.post("/callbacks/stranger", data=b"x", headers=WRONG)
    receiver.client.post("/callbacks/default", data=b"x" * 2**21)
    receiver.services.intake.writer.close()
    assert receiver.call_back(b"{}").status_code == 503
    told = grown(before, counted(receiver))
    of_callbacks = {key: value for key, value in told.items() if "callbacks" in str(key)}
    assert of_callbacks == {
        answers("new", "bulk_job"): 1,
        answers("duplicate", "bulk_job"): 1,
        answers("rejected"): 1,
        answers("rejected", connector=""): 1,
        answers("broken", connector=""): 1,
        answers("unavailable"): 1,
        rooms("2xx"): 2,
        rooms("4xx"): 3,
        rooms("5xx"): 1,
    }
    assert told["receiver_rejections_total", ("reason", "too_large")] == 1


def test_a_refusal_is_counted_by_one_reason(make_receiver, database_url):
    receiver = make_receiver(database_url, rejections_a_minute=2)
    before = counted(receiver)
    for _ in range(5):
        receiver.client.post("/callbacks/stranger", data=b"x", headers=WRONG)
    told = grown(before, counted(receiver))
    assert {key[1][1]: value for key, value in told.items() if "rejections" in key[0]} == {
        "unknown_instance": 2,
        "rate_limited": 3,
    }


def test_strangers_make_no_labels(receiver):
    for number in range(30):
        receiver.client.post(f"/callbacks/made-up-{number}", data=b"x", headers=WRONG)
        receiver.client.get(f"/made-up-{number}")
    assert "made-up" not in receiver.client.get("/metrics").text


def test_what_the_database_knows_is_told(make_receiver, database_url):
    now = now_ms()
    receiver = make_receiver(database_url)
    done = {"recordsCount": 2, "recordsFailedCount": 1, "jobDirection": "DOWNLOAD"}
    for id_, status, facts in (
        ("1", "RUNNING", {}),
        ("2", "COMPLETED", {**done, "completionTime": now - 2 * 24 * 60 * MINUTE_MS - MINUTE_MS}),
        ("3", "PAUSED", {}),
    ):
        receiver.call_back(json.dumps({"id": id_, "status": status, **facts}).encode())
    receiver.call_back(b"{")
    told = counted(receiver)
    jobs = {key[1][1]: value for key, value in told.items() if key[0] == "receiver_jobs"}
    assert jobs == {
        "pending": 1,
        "unknown": 1,
        "partial": 1,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
        "lost": 0,
    }
    last = told["receiver_last_callback_timestamp_seconds", ("connector", "default")]
    assert now - 1000 <= last * 1000 <= now_ms() + 1000
    plain = {key[0]: value for key, value in told.items() if len(key) == 1}
    assert plain["receiver_unreadable_events"] == 1
    assert plain["receiver_expiring_files"] == 1
    assert plain["receiver_database_up"] == 1
    assert 0 <= plain["receiver_oldest_job_seconds"] < 600
    assert plain["receiver_overdue_jobs"] == 0


def test_without_the_database_the_rest_is_told(receiver, monkeypatch):
    def broken(*_args):
        raise StoreUnavailable("gone")

    monkeypatch.setattr(Database, "read", broken)
    told = counted(receiver)
    assert told["receiver_database_up",] == 0
    assert not [key for key in told if key[0] == "receiver_jobs"]


def test_the_database_is_not_asked_more_often_than_every_few_seconds(receiver, monkeypatch):
    asked = []
    monkeypatch.setattr(ops, "MAX_AGE_SECONDS", DEADLINE)  # a busy machine takes five for 20
    whole = Database.read
    monkeypatch.setattr(Database, "read", lambda self: asked.append(1) or whole(self))
    for _ in range(20):
        receiver.client.get("/metrics")
    assert 1 <= len(asked) <= 2


def test_how_long_after_its_end_we_knew_of_a_job_is_measured(receiver):
    before = counted(receiver)
    ended = now_ms() - 100_000
    facts = {"id": "1", "status": "COMPLETED", "completionTime": ended}
    for _ in range(2):
        receiver.call_back(json.dumps(facts).encode())
    receiver.call_back(b'{"id": "2", "status": "COMPLETED"}')
    told = counted(receiver)

    def of(name):
        key = name, ("by", "callback")
        return told[key] - before.get(key, 0)

    assert of("receiver_learnt_seconds_count") == 1
    assert 99 < of("receiver_learnt_seconds_sum") < 200


def test_calls_to_the_vendor_are_measured(receiver):
    def answer(request):
        if request.url.path.endswith("/status"):
            raise httpx.ConnectError("no")
        return httpx.Response(404, json={"message": "no"})

    before = counted(receiver)
    vendor = VendorClient("http://v", httpx.MockTransport(answer))
    cancel = Call(method="PUT", path="/bulk/1/cancel", name="cancel")
    for call in (cancel, upstream.status_call("1")):
        with contextlib.suppress(VendorError):
            vendor.send("x", call)
    told = counted(receiver)
    made = {
        key[1:]: value - before.get(key, 0)
        for key, value in told.items()
        if key[0] == "receiver_upstream_seconds_count" and value != before.get(key, 0)
    }
    assert made == {
        (("call", "cancel"), ("status", "4xx")): 1,
        (("call", "status"), ("status", "none")): 3,
    }


def test_the_command_line_leaves_the_metrics_to_the_workers():
    """What is imported before the fork would count in no worker's file."""
    modules = "receiver.cli.serve, receiver.server, sys"
    code = f"import {modules}; print('prometheus_client' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
