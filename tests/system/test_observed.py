"""What operators see of a running receiver: metrics over all workers, logs, alarms."""

import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import SERVE, eventually
from standardwebhooks import Webhook
from targets import hook

from receiver import __version__
from receiver.openconnectors.signatures import HEADER

WRONG = [(HEADER, "sha256=" + 43 * "A" + "=")]
SECRET = "whsec_" + 43 * "B" + "="


def metrics(served):
    with served.client() as client:
        text = client.ask("GET", "/metrics")[1].decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def lines(served, event=None):
    """Each line of the log (about an event); none may be anything but JSON."""
    found = [json.loads(line) for line in served.log.read_text().splitlines()]
    return [line for line in found if event in (None, line["event"])]


def request_id(served, told):
    """The id that a request is answered with. told -- that it came with."""
    with served.client() as client:
        client.connection.request("GET", "/healthz", headers={"X-Request-ID": told})
        return client.connection.getresponse().headers["X-Request-ID"]


def test_each_of_several_workers_tells_what_all_counted(served):
    def send(number):
        with served.client() as client:
            client.call_back(b'{"id": "%d", "status": "RUNNING"}' % number)

    with ThreadPoolExecutor(8) as senders:
        list(senders.map(send, range(200)))
    names = (
        ("receiver_callbacks_total", "bulk_job", "default", "new"),
        ("receiver_answers_total", "2xx", "callbacks"),
        ("receiver_batch_size_sum",),
    )

    def counted_by_all():
        told = [metrics(served) for _ in range(8)]
        return {each.get(name) for each in told for name in names} == {200}

    eventually(counted_by_all, "the counts, which follow the answers")
    # Each worker looks at its queue now and then.
    eventually(lambda: metrics(served)["receiver_queue_length",] == 0)
    eventually(lambda: metrics(served)["receiver_jobs", "pending"] == 200)


@pytest.mark.slow
def test_a_dead_workers_counts_stay_and_its_queue_goes(served):
    with served.client() as client:
        assert client.call_back(b'{"id": "1", "status": "RUNNING"}')[0] == 200
    name = ("receiver_callbacks_total", "bulk_job", "default", "new")
    eventually(lambda: metrics(served).get(name) == 1, "the count, which follows the answer")
    before = served.workers
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    eventually(lambda: len(set(served.workers) - set(before)) == 2 and served.is_ready())
    told = metrics(served)
    assert told["receiver_callbacks_total", "bulk_job", "default", "new"] == 1
    assert told["receiver_queue_length",] == 0


def test_the_log_is_json_and_silent_about_ordinary_answers(make_database, run):
    with run(make_database("sqlite"), (*SERVE, "--workers", "2")) as served:
        with served.client() as client:
            for number in range(50):
                client.call_back(b'{"id": "%d", "status": "RUNNING"}' % number)
            client.ask("GET", "/api/v1/jobs")
        assert served.terminate() == 0
        told = lines(served)
    started, stopped = (
        next(line for line in told if line["event"] == event) for event in ("started", "stopped")
    )
    assert started["version"] == stopped["version"] == __version__
    assert started["settings"]["vendor_retry_seconds"] == [8, 64, 512, 4096, 32768]
    assert started["settings"]["default_keys"] == ["environment"]
    assert "database_url" not in started["settings"]
    assert len([line for line in told if "Listening at" in line["event"]]) == 1
    assert len(told) < 20


@pytest.mark.slow
def test_whatever_is_sent_a_line_is_a_line(make_database, run):
    hostile = "%0d%0a%1b[31m%e2%80%a8%c2%85%7f"
    environment = {"RECEIVER_LOG_REQUESTS": "yes", "RECEIVER_TRUSTED_PROXIES": "1"}
    with run(make_database("sqlite"), SERVE, **environment) as served:
        with served.client() as client:
            told = [("X-Forwarded-For", "1.2.3.4\x85\xa0,\t"), ("User-Agent", "\x85 \xff")]
            for path in (f"/callbacks/{hostile}", f"/{hostile}", f"/api/v1/jobs/{hostile}"):
                client.ask("POST", path, b"x", [*told, *WRONG, ("X-Request-ID", "a\tb")])
        ids = [request_id(served, told) for told in ("from-the-proxy", "x y", "a" * 129)]

        def answered():
            return [line for line in lines(served, "answered") if line["path"] != "/readyz"]

        eventually(lambda: len(answered()) == 6, "the lines, which follow the answers")
        answered = answered()
    written = served.log.read_bytes()
    assert not [byte for byte in written if (byte < 0x20 and byte != 0x0A) or byte == 0x7F]
    assert len(lines(served)) == written.count(b"\n")
    assert [line["method"] for line in answered] == ["POST"] * 3 + ["GET"] * 3
    assert [line["request_id"] for line in answered if line["path"] == "/healthz"] == ids
    assert ids[0] == "from-the-proxy"
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in ids[1:])
    assert "a\\tb" not in written.decode()


@pytest.mark.slow
def test_a_flood_of_refusals_is_a_few_lines(make_database, run):
    with run(make_database("sqlite"), SERVE) as served:
        assert re.fullmatch("[0-9a-f]{16}", request_id(served, "id-1"))
        with served.client() as client:
            for _ in range(100):
                assert client.ask("POST", "/callbacks/default", b"x", WRONG)[0] == 401
        assert served.terminate() == 0
        told = lines(served, "rejected")
    assert 1 <= len(told) <= 6
    assert told[0]["reason"] == "bad_signature"
    assert told[0]["instance"] == "default"
    assert told[0]["peer"] == "127.0.0.1"
    assert sum(line.get("more", 1) for line in told) == 100


@pytest.mark.slow
def test_a_running_receiver_tells_of_alarms_by_itself(make_database, run):
    with hook() as webhook:
        environment = {
            "RECEIVER_ALARM_URL": webhook.url,
            "RECEIVER_ALARM_SECRET": SECRET,
            "RECEIVER_FORWARD_ALLOW": "127.0.0.1",
        }
        with run(make_database("sqlite"), (*SERVE, "--workers", "2"), **environment) as served:
            with served.client() as client:
                client.call_back(b'{"id": "1", "status": "ERROR"}')
            eventually(lambda: webhook.posted, "the alarm")
            assert SECRET not in served.log.read_text()
        ((headers, body),) = webhook.posted
    told = Webhook(SECRET).verify(body.decode(), headers)
    assert [(one["kind"], one["examples"]) for one in told["data"]["raised"]] == [("failed", ["1"])]
