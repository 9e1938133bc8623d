"""The vendor's own paths, answered by us: the seeds' walk-through, and what may go wrong in it."""

import csv
import gzip
import io
import json
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fakes import (
    BAD_ROWS,
    INSTANCES,
    ROWS,
    SECRETS,
    Between,
    add_instance,
    between,
    impatient,
    made_elsewhere,
)
from sqlalchemy import func, select

from receiver.database.models import JobRow, Submission
from receiver.database.models.outbound import OutboundDelivery
from receiver.instances import tokens
from receiver.openconnectors import sandbox
from receiver.openconnectors.client import VendorClient
from receiver.web.relay.exchange import MAX_READ

CALLBACK = "Elements-Async-Callback-Url"
OBJECTS = ["activities", "contact", "campaign", "list", "account"]
UPLOADS = "POST /bulk/{objectName}"
STATUSES = "GET /bulk/{id}/status"


@pytest.fixture(scope="module")
def one_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    """One for all tests of what is refused before the vendor is asked."""
    with between(f"sqlite:///{tmp_path_factory.mktemp('relay')}/receiver.db") as made:
        yield made


def expect_vendors_error(answer: httpx.Response, status: int, words: str = "") -> None:
    """An error in the vendor's shape, that holds these words and no secret."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert set(answer.json()) == {"requestId", "message"}
    assert words in answer.json()["message"]
    assert [secret for secret in SECRETS if secret in answer.text] == []


def submissions(relay: Between) -> list[str]:
    with relay.services.database.read() as session:
        return list(session.scalars(select(Submission.state).order_by(Submission.at)))


# --- the seeds' walk-through


@pytest.mark.parametrize("hub", ["", "/hubs/marketing"])
@pytest.mark.parametrize("instance", INSTANCES)
def test_the_seeds_three_calls_work_as_they_stand(relay, instance, hub, sample):
    objects = relay.vendors("GET", f"{hub}/objects", instance)
    assert (objects.status_code, objects.json()) == (200, OBJECTS)

    created = relay.upload(sample, instance, path=f"{hub}/bulk/contact")
    assert created.status_code == 200
    job_id = created.json()["id"]
    assert created.json() == {"id": job_id, "status": "CREATED", "instanceId": 425904}

    relay.ended(job_id, instance)
    status = relay.vendors("GET", f"{hub}/bulk/{job_id}/status", instance)
    v2 = {"id": job_id, "status": "COMPLETED", "recordsCount": 10, "recordsFailedCount": 0}
    v3 = {"jobStatus": "COMPLETED", "recordCount": 10, "errorCount": 0, "objectName": "contact"}
    assert status.status_code == 200
    assert status.json().items() >= {**v2, **v3, "jobDirection": "UPLOAD"}.items()

    job = relay.job(job_id, instance)
    assert (job["outcome"], job["learnt_by"]) == ("succeeded", "callback")
    assert job["records"] == {"submitted": 10, "loaded": 10, "failed": 0, "reported": 10}
    assert (job["object"], job["direction"], job["file"]) == ("contact", "UPLOAD", "/sample.csv")


@pytest.fixture
def sample(request: pytest.FixtureRequest) -> bytes:
    return Path(sandbox.__file__).with_name("contacts.csv").read_bytes()


def test_any_order_of_the_authorizations_parts_is_taken(relay):
    for text in (
        f"User {relay.token}, Element gooddata",
        f"element gooddata,user {relay.token}",
        f"User {relay.token}, Organization o-1, Element gooddata",
        f"ORGANIZATION  x ,Element\tgooddata ,  user {relay.token}",
        f"Organization, Element gooddata, User {relay.token}",
        f"Organization a b=\xe9/, Element gooddata, User {relay.token},",
    ):
        answer = relay.http.get("/objects", headers={"Authorization": text.encode("latin-1")})
        assert answer.json() == OBJECTS, text


def test_the_vendor_sees_its_own_secrets_and_never_ours(relay):
    seen: list[httpx.Request] = []

    def look(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(json.dumps(OBJECTS).encode()))

    relay.services.vendor._client = httpx.Client(transport=httpx.MockTransport(look))
    for instance in INSTANCES:
        relay.vendors("GET", "/objects", instance)
    expected = [f"Element {name}-element, User {name}-secret" for name in INSTANCES]
    assert [request.headers["Authorization"] for request in seen] == expected
    targets = [request.extensions["target"] for request in seen]
    assert targets == [b"/elements/api-v2/objects"] * 2
    assert [request for request in seen if relay.token in str(request.headers)] == []


def test_a_status_comes_from_the_store_and_the_vendor_is_asked_for_unknown_jobs_only(relay):
    job_id = relay.uploaded()
    relay.ended(job_id)
    for _ in range(3):
        assert relay.vendors("GET", f"/bulk/{job_id}/status").json()["status"] == "COMPLETED"
    assert relay.asked(STATUSES, job_id) == 0

    elsewhere = made_elsewhere(relay)
    relay.ended_at_vendor(elsewhere)
    for _ in range(3):
        status = relay.vendors("GET", f"/bulk/{elsewhere}/status").json()
        assert (status["id"], status["status"]) == (elsewhere, "COMPLETED")
    assert relay.asked(STATUSES, elsewhere) == 1
    job = relay.job(elsewhere)
    assert (job["outcome"], job["learnt_by"]) == ("succeeded", "poll")
    assert relay.summary()["lost_callbacks"] == 0  # none was due


# --- bad input


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer {token}",
        "Element gooddata",
        "User {token}",
        "Element gooddata, User wrong",
        "Element unknown, User {token}",
        "Element default, User {token}",
        "Element gooddata; User {token}",
        "Element gooddata, Element gooddata",
        "User {token}, Organization x",
        "Element gooddata, Organizations x, User {token}",
        "Element gooddata, User {token}, Bearer x",
        "Element gooddata-element, User gooddata-secret",
        "Element \xe9, User {token}",
    ],
)
def test_without_a_right_token_nothing_is_answered(one_for_all, authorization):
    one_for_all.sandbox.stage.requests.clear()
    given = {} if authorization is None else {"Authorization": authorization}
    headers = {
        name: value.replace("{token}", one_for_all.token).encode("latin-1")
        for name, value in given.items()
    }
    for method, path in (("GET", "/objects"), ("GET", "/bulk/1/status"), ("PUT", "/bulk/1/cancel")):
        answer = one_for_all.http.request(method, path, headers=headers)
        expect_vendors_error(answer, 401)
        if "Element" not in (authorization or ""):
            assert "no Element" in answer.json()["message"]
    upload = one_for_all.http.post("/bulk/contact?path=/x", headers=headers, files={"file": ROWS})
    expect_vendors_error(upload, 401)
    assert one_for_all.sandbox.stage.requests == {}


def test_a_token_for_reading_may_not_upload_nor_cancel(relay):
    with relay.services.database.write() as session:
        reader = tokens.create_token(session, "reader", "read", 1)
    expect_vendors_error(relay.upload(token=reader), 403, "operate")
    expect_vendors_error(relay.vendors("PUT", "/bulk/1/cancel", token=reader), 403)
    expect_vendors_error(relay.vendors("POST", "/bulk/query", token=reader), 403)
    expect_vendors_error(relay.vendors("POST", "/bulk/download", token=reader), 403)
    assert relay.sandbox.stage.requests == {}
    assert relay.vendors("GET", "/objects", token=reader).json() == OBJECTS
    assert relay.vendors("HEAD", "/objects", token=reader).status_code == 200


def test_a_token_limited_to_one_instance_does_not_reach_the_other(relay):
    with relay.services.database.write() as session:
        limited = tokens.create_token(session, "one", "operate", 1, only=["freshbooks"])
    expect_vendors_error(relay.upload(token=limited), 401)
    assert relay.upload(instance="freshbooks", token=limited).status_code == 200


def test_an_unknown_object_is_refused_in_the_vendors_words(relay):
    answer = relay.upload(path="/bulk/nosuch")
    expect_vendors_error(answer, 400, "the object must be one of activities")
    assert submissions(relay) == ["refused"]


def test_a_file_in_no_clear_dialect_is_passed_on_and_not_counted(relay):
    _answers(relay, {"id": "987", "status": "CREATED"})
    assert relay.upload("email\na@b.co\n".encode("utf-16")).json()["id"] == "987"
    assert relay.job("987")["records"]["submitted"] is None


def test_what_the_vendor_says_of_a_form_without_its_file_is_passed_on(relay):
    for given_ in ({"files": {"data": ROWS}}, {"data": {"file": "email\na@example.com\n"}}, {}):
        answer = relay.vendors("POST", "/bulk/contact?path=/x.csv", **given_)
        assert answer.status_code == 400, answer.text
    assert (relay.asked(UPLOADS), set(submissions(relay))) == (3, {"refused"})


def test_a_name_that_no_database_could_hold_is_kept_without_what_it_cannot(relay):
    created = {"id": "987", "status": "CREATED"}
    _answers(relay, created)
    upload = relay.vendors("POST", "/bulk/contact?path=a%00b", files={"file": ROWS})
    assert (upload.json(), relay.job("987")["file"]) == (created, "a\ufffdb")
    for number, name in enumerate(("\ud800", "\0")):
        _answers(relay, {"id": f"77{number}", "status": "CREATED"})
        content = json.dumps({"objectName": name}).encode()
        assert relay.vendors("POST", "/bulk/download", content=content).status_code == 200
        assert relay.job(f"77{number}")["object"] in (None, "\ufffd")


def test_a_path_of_control_characters_is_none(one_for_all):
    for path in ("/bulk/%00/status", "/bulk/a%0ab/errors", "/bulk/%7f/contact"):
        expect_vendors_error(one_for_all.vendors("GET", path), 404)
    expect_vendors_error(one_for_all.upload(path="/bulk/a%00b"), 404)


@pytest.mark.parametrize("dots", ["%2e", "%2e%2e", "%2E.", "x%2f..%2f..", "..;a=b", "a%5c.."])
def test_dots_lead_nowhere_else_at_the_vendor(relay, dots):
    seen: list[httpx.Request] = []
    transport = httpx.MockTransport(lambda request: seen.append(request) or httpx.Response(200))
    relay.services.vendor._client = httpx.Client(transport=transport)
    for method, path in (
        ("GET", f"/bulk/{dots}/instances"),
        ("GET", f"/bulk/{dots}/status"),
        ("GET", f"/bulk/{dots}/errors"),
        ("GET", f"/bulk/1/{dots}"),
        ("PUT", f"/bulk/{dots}/cancel"),
        ("GET", f"/hubs/{dots}/objects"),
        ("GET", f"/hubs/{dots}/bulk/jobs"),
    ):
        expect_vendors_error(relay.vendors(method, path), 404)
    expect_vendors_error(relay.upload(path=f"/bulk/{dots}"), 404)
    expect_vendors_error(relay.upload(path=f"/hubs/{dots}/bulk/contact"), 404)
    assert [str(request.url) for request in seen] == []


def test_paths_and_methods_the_vendor_does_not_have_are_told_in_its_shape(relay):
    expect_vendors_error(relay.vendors("GET", "/nosuch"), 404)
    assert relay.vendors("DELETE", "/bulk/1/cancel").status_code in (404, 405)
    for method, headers in (("CONNECT", {}), ("GET", {"Upgrade": "websocket"})):
        expect_vendors_error(relay.vendors(method, "/objects", headers=headers), 405)
    assert relay.vendors("GET", "/objects", headers={"Upgrade": "h2c"}).status_code == 200


def test_trace_is_passed_on_without_the_credentials_that_its_answer_would_show(relay):
    def echo(request: httpx.Request) -> httpx.Response:
        sent = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
        return httpx.Response(200, stream=httpx.ByteStream(f"{request.method} /\n{sent}".encode()))

    relay.services.vendor._client = httpx.Client(transport=httpx.MockTransport(echo))
    answer = relay.vendors("TRACE", "/objects", headers={"X-Mark": "1"})
    assert (answer.status_code, answer.text.splitlines()[0]) == (200, "TRACE /")
    assert "x-mark: 1" in answer.text.lower()
    assert "authorization" not in answer.text.lower()
    assert [secret for secret in SECRETS if secret in answer.text] == []


def test_another_instances_job_is_no_job_of_this_one(relay):
    job_id = relay.uploaded()
    relay.ended(job_id)
    for method, what in (
        ("GET", "status"),
        ("GET", "errors"),
        ("GET", "contact"),
        ("PUT", "cancel"),
    ):
        answer = relay.vendors(method, f"/bulk/{job_id}/{what}", "freshbooks")
        expect_vendors_error(answer, 404, f"no job {job_id}")
    assert relay.vendors("GET", "/bulk/jobs", "freshbooks").json() == []


CALLS = [
    ("GET", "/objects"),
    ("GET", "/bulk/77/status"),
    ("GET", "/bulk/77/errors"),
    ("GET", "/bulk/jobs"),
    ("GET", "/bulk/77/contact"),
    ("PUT", "/bulk/77/cancel"),
]


def test_a_vendor_that_is_down_is_told_and_nothing_is_written_as_sent(relay):
    with closed_port() as port:
        relay.services.vendor._base_url = f"http://127.0.0.1:{port}"
        for method, path in CALLS:
            if path != "/bulk/jobs":  # which the store answers then
                expect_vendors_error(relay.vendors(method, path), 502, "cannot be reached")
        expect_vendors_error(relay.upload(), 502, "cannot be reached")
    assert submissions(relay) == ["refused"]
    assert relay.summary()["unclear_submissions"] == 0


# What is asked for a job's status waits after 503 and 429: each is the last of its instance.
@pytest.mark.parametrize("statuses", [(400, 403, 500, 502, 503), (429,)])
def test_the_vendors_errors_are_passed_on(relay, statuses):
    impatient(relay)
    for uploads, status in enumerate(statuses, 1):
        for method, path in CALLS:
            relay.faults(answer={"status": status, "times": 3})
            expect_vendors_error(relay.vendors(method, path), status, "a fault that was set")
        relay.faults(answer={"status": status, "times": 3})
        expect_vendors_error(relay.upload(), status, "a fault that was set")
        assert (relay.asked(UPLOADS), submissions(relay)) == (uploads, ["refused"] * uploads)


def test_a_gateway_that_gave_up_waiting_leaves_open_whether_there_is_a_job(relay):
    relay.faults(answer={"status": 504, "times": 1})
    expect_vendors_error(relay.upload(), 504, "a fault that was set")
    assert (relay.asked(UPLOADS), submissions(relay)) == (1, ["unclear"])


def expect_contained(answer: httpx.Response) -> None:
    """A browser would run nothing of it, and take it for nothing else."""
    assert "sandbox; default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("status", [200, 404, 500, 502])
def test_a_page_of_html_comes_back_as_it_came_and_teaches_nothing(relay, status):
    page = b"<!doctype html><title>Sign in</title><script>alert(1)</script>"
    head = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": "img-src *"}
    _answers(relay, page, status, head)
    for answer in [*(relay.vendors(method, path) for method, path in CALLS), relay.upload()]:
        assert (answer.status_code, answer.content) == (status, page)
        assert answer.headers["content-type"] == head["Content-Type"]
        assert answer.headers["content-security-policy"].startswith("img-src *, ")
        expect_contained(answer)
    assert submissions(relay) == ["unclear" if status == 200 else "refused"]
    assert relay.get("/jobs").json["jobs"] == []


def test_a_redirect_comes_back_as_it_came_and_is_not_followed(relay):
    created = b'{"id": "77", "status": "CREATED"}'
    for uploads, (status, to) in enumerate(
        (
            (301, b"http://169.254.169.254/latest"),
            (302, b"../%C3%A9?a=%20b#c"),
            (307, b"//u:p@h:80/x{y}|z"),
            (301, b"\xe9 x"),
        ),
        1,
    ):
        head = {"Location": to, "Content-Type": "application/json"}
        asked = _answers(relay, created, status, head)
        for answer in [*(relay.vendors(method, path) for method, path in CALLS), relay.upload()]:
            assert (answer.status_code, answer.content) == (status, created)
            assert dict(answer.headers.raw)[b"Location"] == to
            expect_contained(answer)
        # It may have been taken all the same: nobody is to send it again without a look.
        assert submissions(relay) == ["unclear"] * uploads
        assert len(asked) == len(CALLS) + 1
    assert relay.get("/jobs").json["jobs"] == []


@pytest.mark.parametrize(
    ("status", "head"), [(200, {"Content-Type": "text/html"}), (302, {"Location": "/sign-in"})]
)
def test_what_is_no_file_is_no_result_of_a_job(relay, status, head):
    job = relay.uploaded()
    relay.ended(job)
    _answers(relay, b"<h1>Sign in</h1>", status, head)
    answer = relay.get(f"/jobs/{job}/result")
    assert answer.status_code == 502
    assert (answer.content_type, f"answered {status}" in answer.json["detail"]) == (
        "application/problem+json",
        True,
    )


def test_an_answer_that_came_compressed_is_learnt_from_and_comes_back_so(relay):
    created = b'{"id": "4712", "status": "CREATED"}'
    head = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    _answers(relay, gzip.compress(created), head=head)
    answer = relay.upload()
    assert (answer.content, answer.headers["content-encoding"]) == (created, "gzip")
    assert (submissions(relay), relay.job("4712")["status"]) == (["taken"], "CREATED")
    cancelled = b'{"id": "4712", "status": "CANCELLED"}'
    _answers(relay, gzip.compress(cancelled), head=head)
    answer = relay.vendors("PUT", "/bulk/4712/cancel")
    assert (answer.content, answer.headers["content-encoding"]) == (cancelled, "gzip")
    assert relay.job("4712")["status"] == "CANCELLED"


def test_a_slow_vendor_is_not_waited_for_without_end(relay, monkeypatch):
    monkeypatch.setattr("receiver.web.relay.exchange.SECONDS", 0.2)
    monkeypatch.setattr("receiver.web.relay.submissions.UPLOAD_SECONDS", 0.2)
    relay.faults(slow=30)
    expect_vendors_error(relay.vendors("GET", "/objects"), 504, "did not answer: it took too long")
    expect_vendors_error(relay.upload(), 504, "look at GET /bulk/jobs before you send again")
    assert (relay.asked(UPLOADS), submissions(relay)) == (1, ["unclear"])


def test_numbers_for_ids_are_ids(make_database):
    with between(make_database("sqlite"), shape="v3") as relay:
        elsewhere = made_elsewhere(relay)
        relay.ended_at_vendor(elsewhere)
        assert relay.vendors("GET", f"/bulk/{elsewhere}/status").json()["id"] == int(elsewhere)
        assert relay.job(elsewhere)["outcome"] == "succeeded"
        job_id = relay.uploaded()
        assert relay.ended(job_id)["outcome"] == "succeeded"


def test_what_the_vendor_says_of_a_job_that_ends_at_once_is_learnt(relay):
    said = {"id": "4712", "status": "COMPLETED", "recordsCount": 0, "recordsFailedCount": 2}
    said |= {"error": "there is no column Email", "bulk_finish_time": 1_790_000_000_000}
    _answers(relay, said)
    assert relay.upload().json() == said
    job = relay.job("4712")
    assert (job["outcome"], job["message"]) == ("failed", "there is no column Email")
    assert (job["records"]["failed"], job["ended_at"]) == (2, "2026-09-21T14:13:20.000Z")
    assert (job["object"], job["file"]) == ("contact", "/sample.csv")


def _answers(
    relay: Between,
    content: object,
    status: int = 200,
    head: Mapping[str, str | bytes] | None = None,
) -> list[httpx.Request]:
    """Have the vendor answer so, bytes or JSON, from now on; return what it is asked."""
    asked: list[httpx.Request] = []
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        headers = {"Content-Length": str(len(body)), **(head or {})}
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))

    relay.services.vendor._client = httpx.Client(transport=httpx.MockTransport(answer))
    return asked


def test_an_answer_without_a_job_leaves_the_uploads_fate_unclear(relay):
    bodies = (b"{}", b'{"id": null, "status": "CREATED"}', b'{"id": "1"}', b"")
    for number, body in enumerate(bodies, 1):
        _answers(relay, body)
        assert relay.upload().content == body
        assert submissions(relay) == ["unclear"] * number
        assert relay.summary()["unclear_submissions"] == number


def test_an_answer_too_long_to_be_learnt_from_is_passed_on(relay):
    long = b"[" + b" " * (MAX_READ + 100_000) + b"]"
    _answers(relay, long)
    for path in ("/objects", "/bulk/jobs", "/bulk/1/status"):
        assert relay.vendors("GET", path).content == long


@pytest.mark.parametrize("fault", ["die_in_upload", "die_after_upload"])
def test_an_upload_cut_off_while_waiting_is_told_or_linked_and_never_repeated_by_itself(
    relay, fault
):
    relay.faults(**{fault: 100})
    content = b"email,name\n" + b"a@example.com,A\n" * 20_000 if fault == "die_in_upload" else ROWS
    expect_vendors_error(relay.upload(content), 502, "look at GET /bulk/jobs before you send again")
    assert (relay.asked(UPLOADS), submissions(relay)) == (1, ["unclear"])
    assert relay.summary()["unclear_submissions"] == 1
    relay.faults()
    report = relay.reconciler().one_pass(everything=True)
    created = fault == "die_after_upload"  # then the vendor's job list has it
    assert [(each["instance"], each["file"]) for each in report.unclear] == (
        [] if created else [("gooddata", "/sample.csv")]
    )
    assert (relay.asked(UPLOADS), submissions(relay)) == (1, ["taken" if created else "unclear"])
    assert relay.summary()["unclear_submissions"] == (0 if created else 1)
    assert len(relay.vendors("GET", "/bulk/jobs").json()) == (1 if created else 0)


def test_without_a_public_url_nothing_is_uploaded(make_database):
    with between(make_database("sqlite"), public_url=None) as relay:
        expect_vendors_error(relay.upload(), 409, "RECEIVER_PUBLIC_URL is not set")
        assert relay.asked(UPLOADS) == 0


def test_a_database_that_cannot_write_stops_an_upload_before_the_vendor(relay, monkeypatch):
    from receiver.errors import StoreUnavailable  # noqa: PLC0415 - where it is used

    def down(*_: object, **__: object) -> None:
        raise StoreUnavailable("down")

    monkeypatch.setattr("receiver.web.relay.submissions.begin_submission", down)
    answer = relay.upload()
    expect_vendors_error(answer, 503)
    assert int(answer.headers["Retry-After"]) > 0
    assert relay.asked(UPLOADS) == 0


# --- what was submitted


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", b'\xef\xbb\xbf"email","name"\na@x.yz,"A\nA\r\n\nA"\n', 1),
        ("a.jsonl", b'{"email": "a@x.yz"}\n{"email": "b@x.yz"}\n', 2),
    ],
)
def test_the_records_are_counted_on_their_way(relay, name, content, expected):
    job_id = relay.uploaded(content, name=name)
    assert relay.job(job_id)["records"]["submitted"] == expected


# --- callbacks that overtake


def test_a_callback_that_overtakes_the_answer_is_neither_lost_nor_doubled(relay):
    relay.faults(overtake=True)
    job_id = relay.uploaded(BAD_ROWS)
    job = relay.job(job_id)
    assert (job["outcome"], job["learnt_by"], job["events"]) == ("partial", "callback", 1)
    assert job["records"] == {"submitted": 4, "loaded": 2, "failed": 2, "reported": 2}
    timeline = relay.get(f"/jobs/{job_id}/events?instance=gooddata").json["timeline"]
    assert [entry["source"] for entry in timeline] == ["callback", "submission"]
    assert job["file"] == "/sample.csv"


def test_many_at_once_that_are_overtaken_give_a_job_each(relay):
    relay.faults(overtake=True, duplicate_callbacks=1)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: relay.uploaded(), range(60)))
    assert len(set(ids)) == 60
    jobs = [relay.job(job_id) for job_id in ids]
    assert {(job["outcome"], job["events"]) for job in jobs} == {("succeeded", 1)}
    assert len(relay.get("/jobs?limit=100").json["jobs"]) == 60
    assert submissions(relay) == ["taken"] * 60


# --- the client's own callback URL; tests/outbound tells what is sent to it


def test_a_client_that_names_our_own_url_is_not_called_twice(relay):
    job_id = relay.uploaded(headers={CALLBACK: f"{relay.url}/callbacks/gooddata"})
    relay.ended(job_id)
    with relay.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(OutboundDelivery)) == 0


FORBIDDEN = [
    "http://hooks.example.com/",
    "ftp://hooks.example.com/",
    "file:///etc/passwd",
    "https://",
    "https:///x",
    "https://user:password@hooks.example.com/",
    "https://user@hooks.example.com/",
    "https://@hooks.example.com/",
    "https://hooks.example.com:99999/",
    "https://[::1/",
    "https://hooks.example.com/\t",
    f"https://{'a' * 64}.example.com/",
    "https://a..example.com/",
    "http://127.0.0.1/",
    "https://168.63.129.16/",
]


def test_a_url_without_a_scheme_is_the_vendors_own_and_never_called(relay):
    for url in ("", "/jobs/ended", "//hooks.example.com/", "hooks.example.com"):
        content = json.dumps({"objectName": "contact", "notificationUrl": url}).encode()
        ordered = relay.vendors("POST", "/bulk/download", content=content)
        assert ordered.status_code == 200, ordered.text
        uploaded = relay.upload(headers={CALLBACK: url})
        assert uploaded.status_code == 200, uploaded.text
        for job in (ordered.json()["id"], uploaded.json()["id"]):
            relay.ended(str(job))
    with relay.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(OutboundDelivery)) == 0


@pytest.mark.parametrize("url", FORBIDDEN)
def test_a_forbidden_url_is_refused_before_anything_is_sent(one_for_all, url):
    one_for_all.sandbox.stage.requests.clear()
    if url.strip() == url:
        answer = one_for_all.upload(headers={CALLBACK: url})
        expect_vendors_error(answer, 400, "callback URL")
    content = json.dumps({"objectName": "contact", "notificationUrl": url}).encode()
    expect_vendors_error(one_for_all.vendors("POST", "/bulk/download", content=content), 400)
    assert one_for_all.sandbox.stage.requests == {}


# --- errors and the job list, paged as the vendor pages


def pages(relay: Between, path: str, size: int, **params: str) -> list[list[dict]]:
    found, token = [], None
    while True:
        given_ = {**params, "pageSize": str(size), **({"nextPage": token} if token else {})}
        answer = relay.vendors("GET", path, params=given_)
        assert answer.status_code == 200, answer.text
        assert answer.headers["elements-returned-count"] == str(len(answer.json()))
        found.append(answer.json())
        token = answer.headers.get("elements-next-page-token")
        if token is None:
            return found
        assert len(found) < 100


def test_errors_come_from_the_store_paged_as_the_vendor_pages(relay):
    rows = b"email\n" + b"".join(b"bad-%d\n" % number for number in range(7))
    job_id = relay.uploaded(rows)
    relay.ended(job_id)
    path = f"/bulk/{job_id}/errors"
    from_vendor = relay.vendors("GET", path)
    assert len(from_vendor.json()) == 7
    relay.reconciler().fetch_errors()
    asked = relay.asked("GET /bulk/{id}/errors", job_id)
    for size, lengths in ((3, [3, 3, 1]), (7, [7]), (200, [7]), (1, [1] * 7)):
        found = pages(relay, path, size)
        assert [len(page) for page in found] == lengths
        assert [entry for page in found for entry in page] == from_vendor.json()
    assert relay.asked("GET /bulk/{id}/errors", job_id) == asked


def test_errors_the_store_does_not_have_come_from_the_vendor_page_by_page(relay):
    rows = b"email\n" + b"".join(b"bad-%d\n" % number for number in range(5))
    job_id = made_elsewhere(relay, rows=rows)
    relay.ended_at_vendor(job_id)
    answer = relay.vendors("GET", f"/bulk/{job_id}/errors", params={"pageSize": "2"})
    token = answer.headers["elements-next-page-token"]
    following = relay.vendors(
        "GET", f"/bulk/{job_id}/errors", params={"pageSize": "2", "nextPage": token}
    )
    rows_told = [entry["row"] for entry in answer.json() + following.json()]
    assert rows_told == [1, 2, 3, 4]


def test_the_job_list_is_the_vendors_and_teaches_what_nobody_told(relay):
    told, untold = relay.uploaded(), made_elsewhere(relay)
    relay.ended_at_vendor(told, untold)
    found = [job for page in pages(relay, "/bulk/jobs", 1) for job in page]
    assert [str(job["id"]) for job in found] == [untold, told]
    assert (relay.job(untold)["status"], relay.job(untold)["learnt_by"]) == ("COMPLETED", "poll")
    for where in ("record_count=2", "job_status='RUNNING'"):
        answer = relay.vendors("GET", "/bulk/jobs", params={"where": where})
        assert answer.status_code == 200
    expect_vendors_error(relay.vendors("GET", "/bulk/jobs", params={"where": "x"}), 400, "where")


@pytest.mark.parametrize("path", ["/bulk/{}/status", "/bulk/jobs"])
def test_all_that_the_vendor_says_is_learnt_though_the_word_is_the_same(relay, path):
    job_id = "4711"
    relay.call_back(b'{"id": 4711, "status": "RUNNING"}', "gooddata")
    said = {"id": 4711, "status": "RUNNING", "createdDate": 1_790_000_000_000}
    said |= {"infoMessage": "row 3 waits", "record_count": 2}
    answer = [said] if path == "/bulk/jobs" else said
    _answers(relay, answer)
    for _ in range(2):
        assert relay.vendors("GET", path.format(job_id)).status_code == 200
    job = relay.job(job_id)
    assert (job["message"], job["created_at"]) == ("row 3 waits", "2026-09-21T14:13:20.000Z")
    assert (job["status"], job["records"]["reported"]) == ("RUNNING", 2)
    timeline = relay.get(f"/jobs/{job_id}/events").json["timeline"]
    assert [entry["source"] for entry in timeline].count("poll") == 1  # no news is no entry


def test_an_ending_that_the_vendor_confirmed_outlasts_one_that_is_reported_later(relay):
    ended = b'{"id": 4711, "status": "COMPLETED", "recordsCount": 2}'
    relay.call_back(ended, "gooddata")
    _answers(relay, b"[%b]" % ended)
    for _ in range(3):
        assert relay.vendors("GET", "/bulk/jobs").content == b"[%b]" % ended
    later = b'{"id": 4711, "status": "ERROR", "bulk_finish_time": 1790000000000}'
    relay.call_back(later, "gooddata")
    job = relay.job("4711")
    assert (job["conflict"], job["status"], job["records"]["loaded"]) == (True, "COMPLETED", 2)
    timeline = relay.get("/jobs/4711/events").json["timeline"]
    assert [entry["source"] for entry in timeline] == ["callback", "poll", "callback"]


@pytest.mark.parametrize("path", ["/bulk/{}/status", "/bulk/jobs"])
def test_a_job_that_was_closed_is_open_again_when_the_vendor_speaks_of_it(relay, path):
    relay.call_back(b'{"id": 4711, "status": "RUNNING"}', "gooddata")
    operator = {"Authorization": f"Bearer {relay.token}"}
    assert relay.client.post("/api/v1/jobs/4711/close", headers=operator).json["outcome"] == "lost"
    said = {"id": 4711, "status": "RUNNING"}
    _answers(relay, [said] if path == "/bulk/jobs" else said)
    assert relay.vendors("GET", path.format("4711")).status_code == 200
    assert relay.job("4711")["outcome"] == "pending"


def test_while_the_vendor_is_away_the_job_list_is_the_stores_and_says_so(relay):
    ids = [relay.uploaded(BAD_ROWS if number == 2 else ROWS) for number in range(5)]
    for job_id in ids:
        relay.ended(job_id)
    with closed_port() as port:
        relay.services.vendor._base_url = f"http://127.0.0.1:{port}"
        found = [job for page in pages(relay, "/bulk/jobs", 2) for job in page]
        assert {str(job["id"]) for job in found} == set(ids)
        assert len(found) == 5
        first = next(job for job in found if str(job["id"]) == ids[2])
        assert (first["status"], first["record_count"], first["error_count"]) == ("COMPLETED", 2, 2)
        assert (first["object_name"], first["job_direction"]) == ("contact", "UPLOAD")
        where = "object_name='contact' AND job_status='COMPLETED'"
        answer = relay.vendors("GET", "/bulk/jobs", params={"where": where})
        assert (len(answer.json()), answer.headers["X-Receiver-Source"]) == (5, "store")
        answer = relay.vendors("GET", "/bulk/jobs", params={"where": "record_count=2"})
        expect_vendors_error(answer, 502, "cannot be reached")


@contextmanager
def closed_port() -> Iterator[int]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        yield closed.getsockname()[1]


@pytest.mark.parametrize("size", ["0", "-1", "x", "2001", "99999999", "", "1.5"])
def test_a_page_size_that_is_none_is_refused(one_for_all, size):
    for path in ("/bulk/jobs", "/bulk/1/errors"):
        answer = one_for_all.vendors("GET", path, params={"pageSize": size})
        expect_vendors_error(answer, 400, "pageSize")


def test_a_job_under_way_has_loaded_none_so_far(make_database):
    with between(make_database("sqlite"), job_seconds=60) as relay:
        job_id = relay.uploaded()
        for _ in range(2):  # the vendor's word, then the store's
            status = relay.vendors("GET", f"/bulk/{job_id}/status").json()
            assert (status["id"], status["status"], status["jobStatus"]) == (
                job_id,
                "CREATED",
                "CREATED",
            )
            assert (status["recordsCount"], status["errorCount"]) == (0, 0)
        assert relay.asked(STATUSES, job_id) == 1
        (listed,) = relay.vendors("GET", "/bulk/jobs").json()
        assert (listed["id"], listed["job_state"]) == (int(job_id), "CREATED")
        assert (listed["record_count"], listed["error_count"]) == (0, 0)


# --- cancel, query, download, results


def test_a_cancel_is_passed_on_and_known_at_once(make_database):
    with between(make_database("sqlite"), job_seconds=60) as relay:
        relay.faults(drop_callbacks=True)
        job_id = relay.uploaded()
        answer = relay.vendors("PUT", f"/bulk/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")
        assert relay.job(job_id)["outcome"] == "cancelled"
        again = relay.vendors("PUT", f"/bulk/{job_id}/cancel")
        expect_vendors_error(again, 409, "has ended")
        assert relay.asked("PUT /bulk/{id}/cancel", job_id) == 2


@pytest.mark.parametrize("hub", ["", "/hubs/marketing"])
def test_queries_and_downloads_are_jobs_of_direction_download(relay, hub):
    relay.ended(relay.uploaded())
    query = relay.vendors(
        "POST", f"{hub}/bulk/query", data={"q": "select email from contact", "from": "2026-01-01"}
    )
    wanted = {"objectName": "contact", "format": "csv", "extra": [1, {"deep": None}]}
    download = relay.vendors("POST", f"{hub}/bulk/download", json=wanted)
    for answer in (query, download):
        assert set(answer.json()) == {"id", "status", "instance_id"}
        job = relay.ended(answer.json()["id"])
        assert (job["outcome"], job["direction"]) == ("succeeded", "DOWNLOAD")
        assert job["learnt_by"] == "callback"
    assert relay.job(download.json()["id"])["object"] == "contact"


def test_what_the_vendor_says_of_a_download_that_is_no_json_object_is_passed_on(relay):
    for number, content in enumerate((b"", b"[]", b"{", b"null", b"\xff", b"[" * 3000), 1):
        assert relay.vendors("POST", "/bulk/download", content=content).status_code == 400
        assert relay.asked("POST /bulk/download") == number
        assert submissions(relay) == ["refused"] * number


def test_a_download_whose_url_is_none_is_refused(one_for_all):
    content = b'{"objectName": "contact", "notificationUrl": 7}'
    expect_vendors_error(one_for_all.vendors("POST", "/bulk/download", content=content), 400)
    large = b'{"objectName": "%s"}' % (b"x" * 2**20)
    expect_vendors_error(one_for_all.vendors("POST", "/bulk/download", content=large), 413)
    assert one_for_all.asked("POST /bulk/download") == 0


def test_a_result_is_passed_on_in_the_format_asked_for(relay):
    job_id = relay.uploaded()
    relay.ended(job_id)
    path = f"/hubs/marketing/bulk/{job_id}/contact"
    file = relay.vendors("GET", path, headers={"Accept": "text/csv"})
    assert file.headers["content-type"].startswith("text/csv")
    assert file.headers["X-Content-Type-Options"] == "nosniff"
    assert list(csv.reader(io.StringIO(file.text))) == list(csv.reader(io.StringIO(ROWS.decode())))
    assert relay.vendors("GET", f"{path}?format=json").json()[0]["email"] == "a@example.com"
    expect_vendors_error(relay.vendors("GET", path, headers={"Accept": "image/png"}), 406)
    expect_vendors_error(relay.vendors("GET", f"/bulk/{job_id}/list"), 404)


# --- secrets, and PostgreSQL


def test_no_answer_of_ours_holds_a_vendor_secret(relay, capfd):
    relay.ended(relay.uploaded(BAD_ROWS))
    relay.faults(html=1)
    texts = [relay.vendors(method, path).text for method, path in CALLS]
    texts += [relay.get(path).text for path in ("/jobs", "/events", "/summary")]
    texts += [repr(relay.services), repr(relay.services.settings), *capfd.readouterr()]
    assert [secret for secret in SECRETS for text in texts if secret in text] == []


def test_the_walk_through_holds_on_every_database(database_url, sample):
    with between(database_url) as relay:
        relay.faults(overtake=True)
        job_id = relay.uploaded(sample)
        job = relay.job(job_id)
        assert (job["outcome"], job["learnt_by"]) == ("succeeded", "callback")
        assert job["records"] == {"submitted": 10, "loaded": 10, "failed": 0, "reported": 10}
        bad = relay.uploaded(BAD_ROWS)
        relay.reconciler().fetch_errors()
        assert len(relay.vendors("GET", f"/bulk/{bad}/errors").json()) == 2
        assert len(relay.vendors("GET", "/bulk/jobs").json()) == 2
        expect_vendors_error(relay.upload(path="/bulk/a%00b"), 404)
        with relay.services.database.read() as session:
            assert session.scalar(select(func.count()).select_from(JobRow)) == 2


def test_an_instance_without_vendor_secrets_is_not_reached(relay):
    from receiver.instances.registry import add_instance as add  # noqa: PLC0415

    with relay.services.database.write() as session:
        add(session, relay.services.secret_box, "bare", 1)
    expect_vendors_error(relay.vendors("GET", "/objects", "bare"), 401)


def test_an_instance_added_while_running_is_served_at_the_next_request(relay):
    expect_vendors_error(relay.vendors("GET", "/objects", "late"), 401)
    add_instance(relay, "late", "crm")
    assert relay.ended(relay.uploaded(instance="late"), "late")["outcome"] == "succeeded"


def test_a_vendor_client_that_is_closed_twice_stays_closed():
    vendor = VendorClient("https://vendor.example.com/elements/api-v2")
    vendor.close()
    vendor.close()
