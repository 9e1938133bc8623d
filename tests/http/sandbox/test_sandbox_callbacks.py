import json
from urllib.parse import urlsplit

import pytest

from receiver.openconnectors.shapes import is_loopback
from receiver.openconnectors.signatures import SignatureKey, verify

KEY = SignatureKey("k-1", b"MySecretEventSignatureKey")
QUEUED = {"where": "channel='webhook' and status='queued'"}


def test_a_jobs_end_is_told_once_and_signed(start, catcher, until):
    client = start(signature_key=KEY)
    job = client.created(to=f"{catcher.url}/callbacks/default")
    [caught] = catcher.wait(1)
    assert caught.path == "/callbacks/default"
    assert verify(caught.body, caught.headers["elements-webhook-signature"], [KEY]) == "k-1"
    assert caught.headers["elements-webhook-id"]
    assert caught.headers["content-type"] == "application/json"
    assert json.loads(caught.body) == {
        "id": job,
        "status": "COMPLETED",
        "instanceId": 425904,
        "recordsCount": 10,
        "recordsFailedCount": 0,
    }
    until(lambda: client.states() == ["delivered"])
    assert len(catcher.caught) == 1


def test_without_a_key_nothing_is_signed(client, catcher):
    client.created(to=catcher.url)
    assert "elements-webhook-signature" not in catcher.wait(1)[0].headers


def test_callbacks_are_signed_with_the_key_that_was_set_last(start, catcher):
    client = start(signature_key=KEY, first_job=7)
    assert client.created(to=catcher.url) == "7"
    first = catcher.wait(1)[0]
    put = client.http.put(f"{client.url}/sandbox/signature-key", content=b"the next one\n")
    assert put.status_code == 200
    assert client.created(to=catcher.url) == "8"
    second = catcher.wait(2)[1]
    next_key = SignatureKey("k-2", b"the next one")
    signed = [each.headers["elements-webhook-signature"] for each in (first, second)]
    assert verify(first.body, signed[0], [KEY, next_key]) == "k-1"
    assert verify(second.body, signed[1], [KEY, next_key]) == "k-2"


def test_what_is_no_key_does_not_become_the_key(start):
    client = start(signature_key=KEY)
    refused = client.http.put(f"{client.url}/sandbox/signature-key", content=b"\n")
    assert refused.status_code == 400
    assert client.stage.options.signature_key == KEY


def test_the_requests_url_goes_before_the_instances(start, catcher):
    client = start(callback_url=f"{catcher.url}/instance")
    client.created(to=f"{catcher.url}/request")
    client.ended(client.created())
    assert {caught.path for caught in catcher.wait(2)} == {"/request", "/instance"}


def test_a_download_is_told_to_its_notification_url(client, catcher):
    wanted = {"objectName": "contact", "notificationUrl": f"{catcher.url}/d"}
    client.http.post("/bulk/download", json=wanted)
    assert catcher.wait(1)[0].path == "/d"


def test_a_job_without_any_url_is_told_to_nobody(client):
    client.ended(client.created())
    assert client.deliveries() == []


@pytest.mark.parametrize("name", ["callback-payload", "callbackPayload"])
@pytest.mark.parametrize("payload", ['{"a": [1, null]}', '"text"', "0", "null"])
def test_the_callback_payload_is_passed_back(client, catcher, name, payload):
    client.created(to=catcher.url, metaData=f'{{"x": 1, "{name}": {payload}}}')
    assert json.loads(catcher.wait(1)[0].body)["callback-payload"] == json.loads(payload)


@pytest.mark.parametrize(
    ("shape", "identity", "names"),
    [
        ("v2", "1234", ("status", "recordsCount", "recordsFailedCount")),
        ("v3", 1234, ("jobStatus", "recordCount", "errorCount")),
        ("list", 1234, ("job_state", "record_count", "error_count")),
    ],
)
def test_polls_and_callbacks_have_the_chosen_shape(start, catcher, shape, identity, names):
    client = start(shape=shape)
    job = client.created(b"email\na@b.co\nx\ny\n", to=catcher.url)
    for body in (json.loads(catcher.wait(1)[0].body), client.status(job)):
        assert body["id"] == identity
        assert tuple(body[name] for name in names) == ("COMPLETED", 1, 2)


def test_a_failure_is_told_with_its_message(client, catcher):
    client.created(b"\n", to=catcher.url)
    body = json.loads(catcher.wait(1)[0].body)
    assert body["status"] == "ERROR"
    assert body["error"] == "The file cannot be read: the file has no header."


def test_a_retry_is_the_same_request(start, catcher, until):
    client = start(signature_key=KEY)
    catcher.statuses = [500, 302, 404]
    client.created(to=catcher.url)
    caught = catcher.wait(4)
    assert [each == caught[0] for each in caught] == [True] * 4
    until(lambda: client.states() == ["delivered"])
    [delivery] = client.deliveries()
    assert (delivery["attempts"], delivery["lastAnswer"]) == (4, 200)


def test_after_the_last_retry_later_callbacks_are_queued_until_resent(start, catcher, until):
    client = start(retries=2)
    catcher.statuses = [500] * 3
    client.created(to=catcher.url)
    until(lambda: client.states() == ["failed"])
    client.created(to=catcher.url)
    until(lambda: client.states() == ["failed", "queued"])
    organization = {"Authorization": "User u-1, Organization o-1"}
    path = "/notifications/subscriptions/deliveries"
    listed = client.http.get(path, params=QUEUED, headers=organization).json()
    assert [entry["jobId"] for entry in listed] == ["1235"]
    assert client.http.put(path, params=QUEUED, headers=organization).status_code == 200
    until(lambda: client.states() == ["failed", "delivered"])
    client.created(to=catcher.url)
    until(lambda: client.states() == ["failed", "delivered", "delivered"])
    assert len(catcher.caught) == 5


def test_another_urls_callbacks_are_not_queued(start, catcher, until):
    client = start(retries=0)
    catcher.statuses = [500]
    client.created(to=f"{catcher.url}/broken")
    until(lambda: client.states() == ["failed"])
    client.created(to=f"{catcher.url}/sound")
    until(lambda: client.states() == ["failed", "delivered"])


@pytest.mark.parametrize("where", [None, "", "status='queued'", "channel='webhook'", "x='y'"])
def test_only_what_is_queued_can_be_resent(client, where):
    parameters = {} if where is None else {"where": where}
    answer = client.http.put("/notifications/subscriptions/deliveries", params=parameters)
    assert answer.status_code == 400


def test_an_organization_opens_nothing_else(client):
    headers = {"Authorization": "User u-1, Organization o-1"}
    assert client.http.get("/bulk/jobs", headers=headers).status_code == 401


def test_a_url_where_nobody_listens_is_retried(start, catcher, until):
    client = start(retries=1)
    client.created(to="http://127.0.0.1:1/")
    until(lambda: client.states() == ["failed"])
    [delivery] = client.deliveries()
    assert (delivery["attempts"], delivery["lastAnswer"]) == (2, "ConnectError")


def test_other_hosts_get_no_callbacks(client, until):
    client.created(to="https://hooks.example.com/callbacks/default")
    until(lambda: client.states() == ["refused"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1/", True),
        ("http://127.8.9.1:80/", True),
        ("https://[::1]:8000/a", True),
        ("http://localhost/", True),
        ("http://LOCALHOST/", True),
        ("http://192.168.0.1/", False),
        ("http://localhost.example.com/", False),
        ("http://127.0.0.1@example.com/", False),
        ("http://0x7f000001/", False),
    ],
)
def test_loopback_is_told_from_other_hosts(url, expected):
    assert expected == is_loopback(urlsplit(url).hostname)


@pytest.mark.slow
def test_a_thousand_jobs_are_each_told_once(start, catcher, until):
    client = start()
    jobs = {client.created(b"email\n", to=catcher.url) for _ in range(1000)}
    until(lambda: len(catcher.caught) >= 1000)
    assert {json.loads(caught.body)["id"] for caught in catcher.caught} == jobs
    assert len(catcher.caught) == 1000
