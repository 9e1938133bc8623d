"""What the vendor's own suite and its public clients ask, one thing after another, through us."""

import csv
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fakes import BAD_ROWS, INSTANCES, Between, between, made_elsewhere, until
from recording import Message, answer, receivers

from receiver.instances import tokens


@pytest.fixture
def suite(relay: Between) -> Iterator[Callable[..., httpx.Response]]:
    """The vendor's suite's way to ask: three parts, an Elements-Version."""
    headers = {
        "Authorization": f"User {relay.token}, Organization o-1, Element gooddata",
        "Elements-Version": "Helium",
    }
    with httpx.Client(base_url=relay.http.base_url, headers=headers, trust_env=False) as client:
        yield client.request


def polled(ask: Callable[..., httpx.Response], job: object) -> dict[str, Any]:
    """Poll a status until its word is final, as public clients do."""

    def look() -> dict[str, Any] | None:
        told = ask("GET", f"/bulk/{job}/status").json()
        assert told["status"] == told["jobStatus"]
        return told if told["status"] in ("COMPLETED", "COMPLETE", "SUCCESS", "ERROR") else None

    found: dict[str, Any] = until(look)
    return found


def test_upload_with_meta_data_poll_errors_results(relay, suite):
    meta = ("metaData", ("m.json", b'{"callback-payload": {"a": 1}}', "application/json"))
    form = [meta, ("file", ("contacts.csv", BAD_ROWS, "text/csv"))]
    created = suite("POST", "/hubs/crm/bulk/contact", files=form)
    assert created.status_code == 200, created.text
    job = created.json()["id"]
    told = polled(suite, job)
    assert (told["recordsCount"], told["recordsFailedCount"]) == (2, 2)
    assert (told["recordCount"], told["errorCount"]) == (2, 2)

    def rows(**params: object) -> list[int]:
        return [entry["row"] for entry in suite("GET", path, params=params).json()]

    path = f"/bulk/{job}/errors"
    for fetch in (lambda: None, relay.reconciler().fetch_errors):
        fetch()  # from then on the store has them
        assert [rows(pageSize=1, page=page) for page in (1, 2, 3)] == [[3], [4], []]
    assert suite("GET", path, params={"fields": "row"}).json() == [{"row": 3}, {"row": 4}]
    result = suite("GET", f"/bulk/{job}/contact", headers={"Accept": "application/json"})
    assert [row["email"] for row in result.json()] == ["a@example.com", "b@example.com"]
    assert relay.ended(job)["callback_payload"] == {"a": 1}


@pytest.mark.parametrize(
    "body", [{}, {"content": b"", "headers": {"Content-Type": "text/plain"}}, {"json": {}}]
)
def test_query_without_a_body(relay, suite, body):
    relay.ended(relay.uploaded())
    params = {"q": "select * from contact where a = 'b'", "lastRunDate": "2026-01-01"}
    job = suite("POST", "/bulk/query", params=params, **body).json()["id"]
    assert polled(suite, job)["recordsCount"] == 2
    known = relay.ended(job)
    assert (known["object"], known["direction"]) == ("contact", "DOWNLOAD")


@pytest.mark.parametrize("name", ["application/json", "txt/csv", "application/jsonl"])
def test_download_in_each_format_and_its_result(relay, suite, name):
    relay.ended(relay.uploaded())
    order = {"objectName": "contact", "format": name, "where": "", "from": "2026-01-01"}
    job = suite("POST", "/bulk/download", json=order).json()["id"]
    polled(suite, job)
    relay.ended(job)
    media_type = name.replace("txt", "text")
    through = suite("GET", f"/bulk/{job}/contact", headers={"Accept": media_type})
    assert through.headers["content-type"].startswith(media_type)
    api = {"Authorization": f"Bearer {relay.token}"}
    ours = httpx.get(f"{relay.url}/api/v1/jobs/{job}/result", headers=api, trust_env=False)
    assert (ours.content, ours.headers["content-type"]) == (through.content, media_type)
    if media_type != "text/csv":
        wrong = httpx.get(
            f"{relay.url}/api/v1/jobs/{job}/result", headers={**api, "Accept": "text/csv"}
        )
        assert (wrong.status_code, wrong.headers["content-type"]) == (
            400,
            "application/problem+json",
        )


def test_results_are_saved_in_their_own_format_and_what_is_not_is_told(relay, tmp_path):
    relay.ended(relay.uploaded())
    order = {"objectName": "contact", "format": "application/json"}
    in_json = relay.vendors("POST", "/bulk/download", json=order).json()["id"]
    query = {"q": "select email from contact"}
    by_query = relay.vendors("POST", "/bulk/query", params=query).json()["id"]
    for job in (in_json, by_query):
        relay.ended(job)
    report = relay.reconciler().one_pass(results=tmp_path)
    assert (report.results, report.unsaved) == (2, [])
    assert json.loads((tmp_path / f"gooddata.{in_json}.json").read_text())[0]["name"] == "A"
    saved = (tmp_path / f"gooddata.{by_query}.csv").read_text()
    assert list(csv.reader(io.StringIO(saved)))[1][0] == "a@example.com"
    relay.faults(answer={"status": 404, "times": 0})
    (tmp_path / f"gooddata.{in_json}.json").unlink()
    relay.sandbox.stage.jobs._jobs.pop(in_json)
    report = relay.reconciler().one_pass(results=tmp_path)
    assert [(each["job"], "no job" in each["why"]) for each in report.unsaved] == [(in_json, True)]


def test_a_json_upload_and_one_whose_body_is_the_file(relay, suite):
    rows = [{"email": "a@example.com"}, {"email": "x"}, {"email": "c@example.com"}]
    form = {"file": ("a.json", json.dumps(rows).encode(), "application/json")}
    jobs = [suite("POST", "/bulk/contact", files=form).json()["id"]]
    jobs.append(suite("POST", "/bulk/contact", json=rows).json()["id"])
    for job in jobs:
        assert relay.ended(job)["records"]["submitted"] == 3
        assert relay.ended(job)["outcome"] == "partial"


def test_cancel_list_metadata_workflows_and_what_is_not_there(make_database):
    with between(make_database("sqlite"), job_seconds=60) as relay:
        job = relay.uploaded()
        assert relay.vendors("PUT", f"/bulk/{job}/cancel").json()["status"] == "CANCELLED"
        assert relay.job(job)["outcome"] == "cancelled"
        where = {"where": "job_status='CANCELLED'", "pageSize": "5"}
        assert [each["id"] for each in relay.vendors("GET", "/bulk/jobs", params=where).json()] == [
            int(job)
        ]
        assert relay.vendors("GET", "/objects/contact/metadata").json()["fields"]
        order = {"objectName": "contact"}
        assert relay.vendors("POST", "/bulk/workflows", json=order).status_code == 200
        answer = relay.vendors("GET", "/instances/7")
        assert (answer.status_code, set(answer.json())) == (404, {"requestId", "message"})
        with relay.services.database.write() as session:
            reader = tokens.create_token(session, "reader", "read", 1)
        for path in ("/objects/contact/metadata", "/contacts/7"):
            assert relay.vendors("GET", path, token=reader).status_code == 403
        for path in ("/objects", "/bulk/jobs", f"/bulk/{job}/status", f"/bulk/{job}/errors"):
            assert relay.vendors("GET", path, token=reader).status_code == 200


@pytest.mark.parametrize(
    ("shape", "word"),
    [("v2", None), ("v3", "COMPLETE"), ("list", "SUCCESS"), ("document", "COMPLETE")],
)
def test_a_poller_sees_the_end_though_its_callback_is_lost(make_database, shape, word):
    with between(make_database("sqlite"), shape=shape) as relay:
        relay.faults(drop_callbacks=True, **({"final_status": word} if word else {}))
        job = made_elsewhere(relay) if shape == "document" else relay.uploaded()
        relay.ended_at_vendor(job)
        told = relay.vendors("GET", f"/bulk/{job}/status").json()
        assert told["status"] == told["jobStatus"] == (word or "COMPLETED")
        assert (told["recordsCount"], told["recordCount"]) == (2, 2)
        assert (relay.job(job)["outcome"], relay.job(job)["learnt_by"]) == ("succeeded", "poll")


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 404])
def test_pollers_of_two_nodes_cost_the_vendor_one_request_in_five_seconds(
    database_url, tmp_path, status
):
    with receivers(database_url, tmp_path, 2) as nodes, ThreadPoolExecutor(50) as pool:
        recorder, another = nodes[0].recorder, threading.Event()

        def say(_: Message) -> bytes:  # late, so that whoever would ask too has asked
            if len(recorder.got) > 1:
                another.set()
            another.wait(1)
            return answer(status, b'{"id": "77", "status": "RUNNING"}')

        def poll(number: int) -> Message:
            return nodes[number % 2].ask(b"GET", b"/bulk/77/status")

        recorder.answer, began = say, time.monotonic()
        answers = list(pool.map(poll, range(100 if status == 200 else 20)))
        assert len(recorder.got) <= 1 + (time.monotonic() - began) // 5
        assert b"%d" % status in {message.start[9:12] for message in answers}


def test_a_silent_vendor_leaves_the_stores_word(make_database):
    with between(make_database("sqlite"), job_seconds=60) as relay:
        job = relay.uploaded()
        relay.faults(slow=30)
        with relay.services.database.read() as session:
            assert session is not None
        relay.services.vendor._base_url = "http://127.0.0.1:1/elements/api-v2"
        told = relay.vendors("GET", f"/bulk/{job}/status")
        assert (told.status_code, told.json()["status"]) == (200, "CREATED")
        assert relay.vendors("GET", "/bulk/nosuch/status").status_code == 502


@pytest.mark.slow
def test_an_answer_that_never_ends_leaves_the_stores_word(make_database, monkeypatch):
    asked, stop = [], threading.Event()

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            asked.append(1)
            while not stop.wait(0.2):
                yield b" "

    endless = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
    with (
        between(make_database("sqlite"), job_seconds=60) as relay,
        httpx.Client(transport=endless) as client,
    ):
        job = relay.uploaded()
        monkeypatch.setattr(relay.services.vendor, "_client", client)
        told = relay.vendors("GET", f"/bulk/{job}/status")
        stop.set()
    assert (told.status_code, told.json()["status"], asked) == (200, "CREATED", [1])


def test_messages_are_errors_only_of_what_failed(relay):
    body = {"id": "007", "jobStatus": "RUNNING", "statusMessage": "half way"}
    relay.services.vendor._client = httpx.Client(
        transport=httpx.MockTransport(
            lambda _: httpx.Response(200, stream=httpx.ByteStream(json.dumps(body).encode()))
        )
    )
    told = relay.vendors("GET", "/bulk/007/status").json()
    assert told == {**body, "status": "RUNNING"}
    body |= {"jobStatus": "ERROR", "statusMessage": "broken"}
    told = relay.vendors("PUT", "/bulk/007/cancel").json()
    told = relay.vendors("GET", "/bulk/007/status").json()
    assert (told["id"], told["error"], told["status"]) == ("007", "broken", "ERROR")


def test_the_time_that_the_vendor_asks_for_is_kept_by_every_node(make_database):
    now = [1_700_000_000_000]
    with between(make_database("sqlite"), clock=lambda: now[0]) as relay:
        relay.faults(drop_callbacks=True)
        job = relay.uploaded()
        relay.ended_at_vendor(job)
        limit = {"status": 429, "times": len(INSTANCES), "retry_after": "600"}
        relay.faults(drop_callbacks=True, answer=limit)
        assert relay.reconciler().one_pass(everything=True).unclear == []
        asked = dict(relay.sandbox.stage.requests)
        now[0] += 590_000
        assert set(relay.reconciler().one_pass(everything=True).blocked) == set(INSTANCES)
        told = relay.vendors("GET", f"/bulk/{job}/status")
        assert (told.status_code, told.json()["status"]) == (200, "CREATED")  # the store's
        assert relay.sandbox.stage.requests == asked
        now[0] += 20_000
        relay.reconciler().one_pass(everything=True)
        assert relay.job(job)["outcome"] == "succeeded"
