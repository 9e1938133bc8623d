import json
from threading import enumerate as all_threads

import httpx
import pytest

from receiver.openconnectors.sandbox.faults import Faults, Options
from receiver.openconnectors.sandbox.server import running

UNTOUCHED = {
    "drop_callbacks": False,
    "delay_callbacks": 0.0,
    "duplicate_callbacks": 0,
    "reorder_callbacks": False,
    "answer": None,
    "die_in_upload": 0,
    "die_after_upload": 0,
    "overtake": False,
    "slow": 0.0,
    "html": 0,
    "redirect": None,
    "final_status": None,
}


def test_faults_can_be_asked_for_and_replaced(client):
    faults = f"{client.url}/sandbox/faults"
    assert client.http.get(faults).json() == UNTOUCHED
    assert client.faults(html=2).json() == UNTOUCHED | {"html": 2}
    assert client.faults(slow=0.001).json() == UNTOUCHED | {"slow": 0.001}
    assert client.http.put(faults, json={}).json() == UNTOUCHED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 9999,
        b'{"nothing": 1}',
        b'{"html": -1}',
        b'{"slow": "x"}',
        b'{"answer": {"status": 200, "times": 1}}',
        b'{"redirect": {"to": "http://a\\nb", "times": 1}}',
        b'{"final_status": "DONE"}',
    ],
)
def test_what_is_no_fault_is_a_400(client, body):
    answer = client.http.put(f"{client.url}/sandbox/faults", content=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"requestId", "message"}


def test_dropped_callbacks_are_never_sent(client, catcher, until):
    client.faults(drop_callbacks=True)
    client.created(to=catcher.url)
    until(lambda: client.states() == ["dropped"])
    assert catcher.caught == []


def test_delayed_callbacks_wait(client, catcher, until):
    client.faults(delay_callbacks=3600)
    client.created(to=catcher.url)
    until(lambda: client.states() == ["pending"])
    client.faults(delay_callbacks=0.01)
    client.created(to=catcher.url)
    assert json.loads(catcher.wait(1)[0].body)["id"] == "1235"


def test_duplicated_callbacks_are_equal(client, catcher, until):
    client.faults(duplicate_callbacks=2)
    client.created(to=catcher.url)
    caught = catcher.wait(3)
    assert [each == caught[0] for each in caught] == [True] * 3
    until(lambda: client.states() == ["delivered"] * 3)


def test_reordered_callbacks_pass_each_other(start, catcher, until, monkeypatch):
    # However slow this machine is.
    monkeypatch.setattr("receiver.openconnectors.sandbox.deliveries._REORDER_MS", 5000)
    client = start(faults=Faults(reorder_callbacks=True))
    jobs = [client.created(b"email\n", to=catcher.url) for _ in range(12)]

    def is_shuffled() -> bool:
        ids = [json.loads(caught.body)["id"] for caught in catcher.caught]
        return ids != jobs[: len(ids)]

    until(is_shuffled)


@pytest.mark.parametrize("status", [404, 429, 499, 502])
def test_the_next_answers_can_be_errors(client, status):
    client.faults(answer={"status": status, "times": 2})
    answers = [client.upload() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    assert set(answers[0].json()) == {"requestId", "message"}
    assert ("retry-after" in answers[0].headers) == (status == 429)
    assert [job["id"] for job in client.http.get("/bulk/jobs").json()] == [1234]


@pytest.mark.parametrize("pause", [30, "30", "Sat, 28 Nov 2026 12:00:00 GMT"])
def test_an_error_can_say_when_to_come_again(client, pause):
    client.faults(answer={"status": 503, "times": 1, "retry_after": pause})
    assert client.http.get("/objects").headers["retry-after"] == str(pause)


def test_the_next_answers_can_be_html_and_redirects(client):
    client.faults(html=1, redirect={"to": "http://127.0.0.1:1/x", "times": 1})
    answer = client.http.get("/objects")
    assert (answer.status_code, answer.text[:15]) == (200, "<!doctype html>")
    answer = client.http.get("/objects")
    assert (answer.status_code, answer.headers["location"]) == (302, "http://127.0.0.1:1/x")
    assert client.http.get("/objects").headers["content-type"] == "application/json"


def test_an_upload_can_be_cut_off(client):
    client.faults(die_in_upload=1)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)):
        client.upload(b"email\n" + b"a@b.co\n" * 200_000)
    assert client.http.get("/bulk/jobs").json() == []
    assert client.upload().status_code == 200


def test_an_upload_can_be_cut_off_after_its_job_was_created(client):
    client.faults(die_after_upload=1)
    with pytest.raises(httpx.RemoteProtocolError):
        client.upload()
    assert [job["id"] for job in client.http.get("/bulk/jobs").json()] == [1234]
    assert client.ended("1234")["recordsCount"] == 10


def test_a_callback_can_overtake_the_answer(start, catcher):
    client = start(job_seconds=3600, faults=Faults(overtake=True))
    answer = client.upload(to=catcher.url)
    assert [json.loads(caught.body)["status"] for caught in catcher.caught] == ["COMPLETED"]
    assert answer.json()["status"] == "CREATED"


def test_a_callback_that_overtakes_in_vain_is_retried(start, catcher, until):
    client = start(faults=Faults(overtake=True))
    catcher.statuses = [503]
    client.created(to=catcher.url)
    until(lambda: client.states() == ["delivered"])
    assert len(catcher.caught) == 2


@pytest.mark.parametrize("word", ["COMPLETE", "SUCCESS", "ERROR", "ABORTED", "CANCELLED"])
def test_jobs_can_be_made_to_end_in_each_word(client, catcher, word):
    client.faults(final_status=word)
    status = client.ended(client.created(to=catcher.url))
    loaded = 10 if word in ("COMPLETE", "SUCCESS") else 0
    assert (status["status"], status["recordsCount"]) == (word, loaded)
    assert ("error" in status) == (word in ("ERROR", "ABORTED"))
    assert json.loads(catcher.wait(1)[0].body) == status


def test_leaving_does_not_wait_for_slow_answers_or_late_jobs(catcher):
    options = Options(job_seconds=3600, faults=Faults(delay_callbacks=3600))
    with running(options) as sandbox:
        folder = sandbox.stage.folder
        answer = httpx.post(
            f"{sandbox.api}/bulk/contact?path=/a",
            files={"file": b"email\n"},
            headers={"Authorization": "Element t, User u"},
        )
        assert answer.status_code == 200
        sandbox.stage.close()
    assert not folder.exists()
    assert [thread.name for thread in all_threads() if thread.name.startswith("sandbox")] == []


def test_a_reset_of_an_unknown_job_is_a_404(client):
    assert client.http.post(f"{client.url}/sandbox/jobs/1/reset").status_code == 404
