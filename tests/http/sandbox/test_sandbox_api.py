import json
import socket

import httpx
import pytest

from receiver.openconnectors.sandbox.app import create_sandbox
from receiver.openconnectors.sandbox.faults import Options

JOB_LIST_KEYS = {
    "id",
    "status",
    "job_state",
    "object_name",
    "job_direction",
    "record_count",
    "error_count",
    "createdDate",
    "completion_time",
    "instanceId",
    "fileFormat",
}


@pytest.mark.parametrize(
    "authorization",
    [
        "Element t, User u",
        "User u, Element t",
        "element t,user u",
        "Element dD0=, User u+/=",
        "User u, Organization o, Element t",
        "ORGANIZATION o ,Element t ,  User u",
    ],
)
def test_any_token_and_secret_is_taken_in_either_order(client, authorization):
    headers = {"Authorization": authorization}
    assert client.http.get("/objects", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Element t", "User u", "Element , User u", "Element t User u", "Element t, x"],
)
def test_a_missing_or_malformed_authorization_is_refused(client, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = httpx.get(f"{client.http.base_url}objects", headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert set(answer.json()) == {"requestId", "message"}


def test_a_job_belongs_to_its_element(client):
    job = client.created()
    other = {"Authorization": "Element t-2, User u-1"}
    for path in (f"/bulk/{job}/status", f"/bulk/{job}/errors", f"/bulk/{job}/contact"):
        assert client.http.get(path, headers=other).status_code == 404
    assert client.http.put(f"/bulk/{job}/cancel", headers=other).status_code == 404
    assert client.http.get("/bulk/jobs", headers=other).json() == []


def test_jobs_are_listed_newest_first_in_the_lists_shape(client):
    for _ in range(3):
        client.ended(client.created())
    jobs = client.http.get("/bulk/jobs").json()
    assert [job["id"] for job in jobs] == [1236, 1235, 1234]
    assert all(set(job) == JOB_LIST_KEYS for job in jobs)


def test_the_job_list_is_paged(client):
    for _ in range(3):
        client.created()
    first = client.http.get("/bulk/jobs?pageSize=2")
    token = first.headers["elements-next-page-token"]
    client.created()
    second = client.http.get("/bulk/jobs", params={"pageSize": "2", "nextPage": token})
    assert [job["id"] for job in first.json() + second.json()] == [1236, 1235, 1234]
    assert second.headers["elements-returned-count"] == "1"
    assert "elements-next-page-token" not in second.headers


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("job_status='COMPLETED'", [1236, 1235, 1234]),
        ("job_status='RUNNING'", []),
        ("object_name='account'", [1235]),
        ("job_direction = 'DOWNLOAD'", [1236]),
        ("record_count=10", [1236, 1234]),
        ("record_count='10' and object_name='contact' AND job_direction='UPLOAD'", [1234]),
    ],
)
def test_the_job_list_can_be_narrowed(client, where, ids):
    client.ended(client.created())
    client.ended(client.created(b"email\na@b.co\n", object_name="account"))
    client.ended(client.http.post("/bulk/query", data={"q": "select a FROM contact"}).json()["id"])
    jobs = client.http.get("/bulk/jobs", params={"where": where}).json()
    assert [job["id"] for job in jobs] == ids


@pytest.mark.parametrize(
    "query",
    [
        "where=",
        "where=job_status",
        "where=job_status='RUNNING' and",
        "where=job_status='RUNNING' or object_name='x'",
        "where=secret='x'",
        "pageSize=0",
        "pageSize=-1",
        "pageSize=2001",
        "pageSize=ten",
        "pageSize=",
        "pageSize=\N{ARABIC-INDIC DIGIT ONE}",
        f"pageSize={'9' * 5000}",
        "nextPage=",
        "nextPage=x",
    ],
)
def test_a_wrong_question_about_the_list_is_a_400(client, query):
    answer = client.http.get(f"/bulk/jobs?{query}")
    assert answer.status_code == 400
    assert set(answer.json()) == {"requestId", "message"}


@pytest.mark.parametrize("token", ["1", "99999", "x", "-1"])
def test_a_token_of_no_page_of_errors_is_a_400(client, token):
    job = client.created(b"email\nx\n")
    client.ended(job)
    assert client.http.get(f"/bulk/{job}/errors?nextPage={token}").status_code == 400


UPLOAD = {"files": {"file": b"email\n"}}


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("/bulk/nothing?path=/a", UPLOAD),
        ("/bulk/contact?path=/a", {}),
        ("/bulk/contact?path=/a", {"data": {"file": "a,b"}}),
        ("/bulk/contact?path=/a", {"files": {"file": b""}}),
        ("/bulk/contact?path=/a", UPLOAD | {"data": {"metaData": "no JSON"}}),
        ("/bulk/contact?path=/a", UPLOAD | {"data": {"metaData": "[]"}}),
        ("/bulk/contact?path=/a", UPLOAD | {"data": {"metaData": '{"a": "\\ud800"}'}}),
        ("/bulk/contact?path=/a", UPLOAD | {"data": {"metaData": "[" * 9999}}),
        ("/bulk/contact?path=/a", UPLOAD | {"headers": {"Elements-Async-Callback-Url": "x"}}),
        (
            "/bulk/contact?path=/a",
            UPLOAD | {"headers": {"Elements-Async-Callback-Url": "http://127.0.0.1:99999/"}},
        ),
        ("/bulk/query", {}),
        ("/bulk/query", {"data": {"q": "select"}}),
        ("/bulk/query", {"data": {"q": "select a from"}}),
        ("/bulk/query", {"data": {"q": "delete a from contact"}}),
        ("/bulk/query", {"data": {"q": "select a from nothing"}}),
        ("/bulk/download", {}),
        ("/bulk/download", {"json": []}),
        ("/bulk/download", {"json": {}}),
        ("/bulk/download", {"content": b"\xff"}),
        ("/bulk/download", {"content": b"[" * 99999}),
        ("/bulk/download", {"json": {"objectName": "nothing"}}),
        ("/bulk/download", {"json": {"objectName": "contact", "format": "xml"}}),
        ("/bulk/download", {"json": {"objectName": "contact", "notificationUrl": "ftp://a"}}),
    ],
)
def test_a_wrong_order_is_a_400_and_no_job(client, path, arguments):
    answer = client.http.post(path, **arguments)
    assert answer.status_code == 400
    assert set(answer.json()) == {"requestId", "message"}
    assert client.http.get("/bulk/jobs").json() == []


def test_too_large_a_body_is_a_413(client):
    assert client.http.post("/bulk/download", content=b" " * (2 << 20)).status_code == 413
    large = {"metaData": "x" * 600_000}
    assert client.upload(**large).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/bulk/1/status", 404),
        ("GET", "/bulk/1/errors", 404),
        ("GET", "/bulk/1/contact", 404),
        ("PUT", "/bulk/1/cancel", 404),
        ("GET", "/objects/", 404),
        ("GET", "//objects", 404),
        ("DELETE", "/objects", 405),
        ("OPTIONS", "/objects", 405),
        ("POST", "/bulk/jobs", 405),
        ("GET", "/bulk/1/cancel", 405),
        ("POST", "/bulk/1/status", 405),
        ("GET", "/bulk/query", 405),
        ("GET", "/bulk/download", 405),
    ],
)
def test_what_is_not_there_is_told_in_the_vendors_way(client, method, path, status):
    answer = client.http.request(method, str(client.http.base_url).rstrip("/") + path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"requestId", "message"}
    assert ("allow" in answer.headers) == (status == 405)


def test_requests_are_counted_by_method_and_path(client):
    job = client.created()
    client.http.get(f"/bulk/{job}/status")
    client.http.get(f"/hubs/crm/bulk/{job}/status")
    client.http.get("/objects?x=1")
    assert client.http.get(f"{client.url}/sandbox/requests").json() == {
        "POST /bulk/contact": 1,
        f"GET /bulk/{job}/status": 2,
        "GET /objects": 1,
    }


def test_no_secret_is_in_a_repr():
    app = create_sandbox(Options())
    stage = app.extensions["sandbox"]
    headers = {"Authorization": "Element top-secret, User u"}
    app.test_client().post(
        "/elements/api-v2/bulk/query", data={"q": "select a from contact"}, headers=headers
    )
    assert "top-secret" not in repr(stage.jobs.find("1234"))
    stage.close()
    stage.close()


def talk(client, request: bytes) -> tuple[bytes, bytes]:
    """Send these bytes and no more; give the answer's head and body."""
    port = int(client.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


HEAD = (
    b"POST /elements/api-v2/bulk/contact?path=/a HTTP/1.1\r\nHost: a\r\n"
    b"Authorization: Element t-1, User u-1\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n"
)
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nemail\n'


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"Content-Length: 999\r\n\r\n" + PART, id="truncated"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", id="no chunk"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\nff\r\n" + PART, id="broken chunk"),
        pytest.param(b"Content-Length: %d\r\n\r\n" % len(PART) + PART, id="no last boundary"),
    ],
)
def test_an_upload_that_breaks_off_is_a_400_and_no_job(client, rest):
    head, body = talk(client, HEAD + rest)
    assert head.startswith(b"HTTP/1.1 400")
    assert set(json.loads(body)) == {"requestId", "message"}
    assert client.http.get("/bulk/jobs").json() == []


@pytest.mark.parametrize("line", [b"nonsense", b"GET / HTTP/9.9", b"GET /" + b"a" * 70_000])
def test_what_is_no_request_is_answered_in_json_too(client, line):
    head, body = talk(client, line + b"\r\n\r\n")
    # Without an HTTP version in the request, the answer has no head (HTTP/0.9).
    body = body or head
    assert set(json.loads(body)) == {"requestId", "message"}


def test_a_chunked_upload_is_taken(client):
    def pieces():
        yield PART
        yield b"a@b.co\n\r\n--b--\r\n"

    content = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.http.post("/bulk/contact?path=/a", content=pieces(), headers=content)
    assert client.ended(answer.json()["id"])["recordsCount"] == 1
