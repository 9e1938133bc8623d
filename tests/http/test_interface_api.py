"""The receiver from outside: what interface.md says of callbacks and of the query API."""

import hashlib
import itertools
import json
import re
import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote

import pytest
from builders import KEY, NOW, Receiver, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes import eventually
from oracle import Said, as_shown, by_law

from receiver.openconnectors.signatures import HEADER, SignatureKey, sign
from receiver.settings import Settings

OTHER = SignatureKey("other", b"another key, long enough")
FIELDS = [
    *["id", "instance", "status", "outcome", "object", "direction", "file", "records", "message"],
    *["learnt_by", "submitted_at", "created_at", "ended_at", "updated_at", "files_expire_at"],
    *["conflict", "overdue", "callback_payload", "events"],
]
OUTCOMES = {"pending", "succeeded", "partial", "failed", "cancelled", "unknown", "lost"}


def told(receiver: Receiver, **body) -> dict:
    answer = receiver.call_back(json.dumps(body).encode())
    assert answer.status_code == 200
    return answer.json


def job_of(receiver: Receiver, *bodies: dict) -> dict:
    for body in bodies:
        told(receiver, **{"id": "1", **body})
    return receiver.get("/jobs/1").json


def waiting(receiver: Receiver, path: str) -> Callable[[float], list]:
    """Ask as under a server with threads, in another thread. `come` gives the answer, if any."""
    answers = []
    headers = {"Authorization": f"Bearer {receiver.token}"}

    def ask() -> None:
        client = receiver.app.test_client()
        answers.append(client.get(f"/api/v1{path}", headers=headers, multithread=True))

    asked = threading.Thread(target=ask)
    asked.start()

    def come(seconds: float) -> list:
        asked.join(seconds)
        return list(answers)

    return come


def problem(answer, status: int) -> str:
    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json")
    assert answer.json["status"] == status
    return answer.json["code"]


# Callbacks


def test_a_callback_is_an_event_and_its_copy_is_the_same_event(any_receiver):
    body = b'{"id": 1234, "status": "COMPLETED"}'
    answers = [any_receiver.call_back(body).json for _ in range(2)]
    event = answers[0]["event"]
    assert answers == [{"event": event, "duplicate": copy} for copy in (False, True)]
    shown = any_receiver.get(f"/events/{event}").json
    assert shown.items() > any_receiver.get("/events").json["events"][0].items()
    assert (shown["deliveries"], shown["size"], shown["job"]) == (2, len(body), "1234")
    assert shown["sha256"] == hashlib.sha256(body).hexdigest()
    assert any_receiver.get(f"/events/{event}/body").data == body


def test_an_event_shows_the_headers_it_came_with_and_no_secret(any_receiver):
    secret = "nobody may read this"
    names = ("Authorization", "X-Cookie", "X-Api-Key", "My-Token", "Client-Secret", "Passwd")
    came = {"Elements-Webhook-Id": "w\xf6rd", "X-Odd": "\xe9\t\x7f", **dict.fromkeys(names, secret)}
    event = any_receiver.call_back(b"{}", **came).json["event"]
    answer = any_receiver.get(f"/events/{event}")
    shown = answer.json
    assert secret not in answer.text
    assert (shown["peer"], shown["webhook_id"]) == ("127.0.0.1", "w\xf6rd")
    headers = shown["headers"]
    assert {name: headers[name.lower()] for name in names} == dict.fromkeys(names, "[masked]")
    expected = {HEADER: sign(b"{}", KEY), "Content-Length": "2", "X-Odd": "\xe9\t\x7f"}
    assert {name: headers[name.lower()] for name in expected} == expected


@pytest.mark.parametrize(("many", "long"), [(90, 10), (4, 3000)])
def test_of_a_flood_of_headers_few_are_stored(receiver, many, long):
    flood = {f"Flood-{number}": "x" * long for number in range(many)}
    event = receiver.call_back(b"{}", **flood).json["event"]
    headers = receiver.get(f"/events/{event}").json["headers"]
    assert 0 < len(headers) <= 64
    assert sum(len(name) + len(value) for name, value in headers.items()) <= 8192


def test_slashes_in_the_path_never_redirect(receiver):
    headers = {HEADER: sign(b"{}", KEY)}
    for tail in ("default", "default/", "default//", "default?x=1", "/default"):
        answer = receiver.client.post(f"/callbacks/{tail}", data=b"{}", headers=headers)
        assert answer.status_code in {200, 401}, tail


def test_an_unknown_instance_is_answered_like_a_wrong_signature(receiver):
    headers, wrong = {HEADER: sign(b"{}", KEY)}, receiver.call_back(b"{}", key=OTHER)
    long = "x" * 65
    for name in ("unknown", "DEFAULT", "default%20", "..%2f", "a%2fb", "%00", "%ff", long, "a%0a"):
        unknown = receiver.client.post(f"/callbacks/{name}", data=b"{}", headers=headers)
        assert (name, unknown.status_code, unknown.data) == (name, 401, wrong.data)
        assert dict(unknown.headers) == dict(wrong.headers), name


def test_missing_and_malformed_signatures_are_answered_like_wrong_ones(receiver):
    wrong = receiver.call_back(b"{}", key=OTHER)
    for headers in ({}, {HEADER: ""}, {HEADER: "sha256=x"}, {HEADER: "\xff"}):
        answer = receiver.client.post("/callbacks/default", data=b"{}", headers=headers)
        assert problem(answer, 401)
        assert answer.data == wrong.data, headers


def test_another_method_is_405_whatever_else_is_wrong(make_receiver, make_database):
    receiver = make_receiver(make_database("sqlite"), max_body_bytes=10)
    for name in ("default", "unknown"):
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "ANY"):
            answer = receiver.client.open(f"/callbacks/{name}", method=method, data=b"x" * 11)
            assert (name, method, answer.status_code) == (name, method, 405)


def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_413(make_receiver, make_database):
    receiver = make_receiver(make_database("sqlite"), max_body_bytes=300)
    assert receiver.call_back(b"x" * 300).status_code == 200
    assert problem(receiver.call_back(b"x" * 301), 413)
    assert problem(receiver.call_back(b"x" * 301, instance="unknown", key=OTHER), 413)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "nonsense"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_only_the_raw_bytes_count(receiver, headers):
    body = b'{"id": "1", "status": "RUNNING", "a": "b=c&d"}'
    event = receiver.call_back(body, **headers).json["event"]
    assert receiver.get(f"/events/{event}/body").data == body


@pytest.mark.slow
def test_over_600_refusals_a_minute_are_429_but_a_right_signature_gets_through(
    make_receiver, make_database
):
    receiver = make_receiver(make_database("sqlite"), clock=lambda: 1_800_000_000_000)
    refused = [receiver.call_back(b"{}", key=OTHER).status_code for _ in range(600)]
    assert set(refused) == {401}
    limited = receiver.call_back(b"{}", key=OTHER)
    assert problem(limited, 429)
    assert int(limited.headers["Retry-After"]) > 0
    assert receiver.call_back(b"{}").status_code == 200
    other = receiver.client.post("/callbacks/default", environ_base={"REMOTE_ADDR": "192.0.2.9"})
    assert other.status_code == 401


def test_refusals_are_listed_without_what_was_sent(receiver):
    receiver.call_back(b'{"secret": "body"}', key=OTHER)
    receiver.client.post("/callbacks/default", data=b"x")
    listed = eventually(
        lambda: len(found := receiver.get("/rejections").json["rejections"]) == 2 and found
    )
    assert [(row["reason"], row["size"]) for row in listed] == [
        ("missing", 1),
        ("bad_signature", 18),
    ]
    assert set(listed[0]) == {"id", "at", "instance", "reason", "peer", "size", "diagnosis"}
    assert len(receiver.get("/rejections?reason=missing").json["rejections"]) == 1
    assert receiver.get("/events").json["events"] == []


# The law of jobs

WORDS = ["CREATED", "STARTED", "running", "NEW WORD", "OTHER WORD", "CANCELLATION_PENDING"]
ENDINGS = ["COMPLETED", "complete", "ERROR", "ABORTED", "CANCELLED", "Canceled"]
COUNTS = [("recordsCount", "recordsFailedCount"), ("recordCount", "errorCount")]
COUNTS.append(("record_count", "error_count"))
number = st.none() | st.integers(0, 3)
facts = st.fixed_dictionaries(
    {"status": st.sampled_from(WORDS + ENDINGS + ENDINGS)},
    optional={
        "reported": number,
        "failed": number,
        "message": st.sampled_from(["a", "b", None]),
        "object": st.sampled_from(["contact", "lead", None]),
        "direction": st.sampled_from(["UPLOAD", "DOWNLOAD"]),
        "attempt": st.integers(0, 2),
        "completed_at": st.integers(1_700_000_000_000, 1_700_000_000_002),
        "callback_payload": st.sampled_from(['"x"', '{"y":1}', None]),
    },
)


def body_of(said: Said, counts: tuple[str, str]) -> dict:
    """What the vendor would send to say so. counts -- how it spells them."""
    payload = json.loads(said.callback_payload) if said.callback_payload else None
    told = {"error": said.message, "objectName": said.object, "jobDirection": said.direction}
    told |= {"job_reset_attempt": said.attempt, "completionTime": said.completed_at}
    told |= {"callback-payload": payload, counts[0]: said.reported, counts[1]: said.failed}
    return {name: value for name, value in told.items() if value is not None}


@given(
    said=st.lists(facts, min_size=1, max_size=5),
    counts=st.sampled_from(COUNTS),
    data=st.data(),
)
@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_said_of_a_job_in_any_order_and_number_it_is_as_the_law_says(
    still, names, said, counts, data
):
    """The clock stands still, so that receipts of endings without a time are all the same."""
    said = list(dict.fromkeys(Said("bulk_job", "1", **each, received_at=NOW) for each in said))
    again = data.draw(st.lists(st.sampled_from(said), max_size=3))
    name = f"job-{next(names)}"
    for one in data.draw(st.permutations(said + again)):
        told(still, id=name, status=one.status, **body_of(one, counts))
    job = still.get(f"/jobs/{name}").json
    lawful = as_shown(by_law(said), len(said))
    assert {fact: job[fact] for fact in lawful} == lawful


@pytest.fixture
def still(make_receiver, make_database) -> Receiver:
    return make_receiver(make_database("sqlite"), clock=lambda: NOW)


@pytest.fixture
def names():
    return itertools.count()


def test_the_timeline_tells_why_a_late_word_changed_nothing(receiver):
    job_of(receiver, {"status": "COMPLETED"}, {"status": "RUNNING"})
    last = receiver.get("/jobs/1/events").json["timeline"][-1]
    assert set(last) == {"at", "source", "status", "changed", "note", "event"}
    assert (last["source"], last["status"], last["changed"]) == ("callback", "RUNNING", [])
    assert last["note"]


# The query API


def test_a_job_has_the_fields_of_the_contract(receiver):
    job = job_of(receiver, {"status": "RUNNING", "callback-payload": {"a": [1]}})
    assert list(job) == FIELDS
    assert job["callback_payload"] == {"a": [1]}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", job["updated_at"])


def test_paging_gives_each_job_once_while_jobs_change(any_receiver):
    for number in range(37):
        told(any_receiver, id=number, status="CREATED")
    seen, path, pages = [], "/jobs?limit=10", 0
    while path:
        page = any_receiver.get(path)
        seen += [job["id"] for job in page.json["jobs"]]
        told(any_receiver, id=f"late-{pages}", status="CREATED")
        told(any_receiver, id=seen[0], status="RUNNING", x=pages)
        link, pages = page.headers.get("Link"), pages + 1
        assert (link is None) == (page.json["next"] is None)
        path = link and re.fullmatch(r'</api/v1(/jobs\?.*)>; rel="next"', link)[1]
    assert (sorted(map(int, seen)), pages) == (list(range(37)), 4)


def test_the_link_keeps_the_filters(receiver):
    for number in range(3):
        told(receiver, id=number, status="A&B", objectName="a b")
    told(receiver, id=9, status="OTHER")
    first = receiver.get("/jobs?status=A%26B&object=a%20b&limit=2")
    following = re.fullmatch(r"</api/v1(.*)>; .*", first.headers["Link"])[1]
    assert [job["id"] for job in receiver.get(following).json["jobs"]] == ["0"]


def test_a_cursor_that_was_not_given_is_400(receiver):
    for room in ("jobs", "events", "rejections"):
        for cursor in ["", "x", "%00", "%C3%A9", "W10", "WzFd", "bnVsbA", "null", "0", "A" * 900]:
            assert problem(receiver.get(f"/{room}?cursor={cursor}"), 400)


def test_a_cursor_at_the_end_of_64_bits_is_400(receiver):
    told(receiver, id="1", status="COMPLETED")
    for path, position in [("/jobs/1/errors", [2**63 - 1]), ("/jobs", [2**63 - 1, "a", "1"])]:
        cursor = urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")
        assert problem(receiver.get(f"{path}?cursor={cursor}"), 400)


def test_the_cursor_of_another_list_is_400(receiver):
    for number in range(2):
        told(receiver, id=number, status="X")
    cursor = receiver.get("/jobs?limit=1").json["next"]
    assert problem(receiver.get(f"/events?cursor={cursor}"), 400)


def test_repeated_filters_are_alternatives(receiver):
    for word in ["RUNNING", "ERROR", "COMPLETED"]:
        told(receiver, id=word, status=word, objectName=word.lower())
    found = receiver.get("/jobs?outcome=pending&outcome=failed").json["jobs"]
    assert [job["id"] for job in found] == ["ERROR", "RUNNING"]
    found = receiver.get("/jobs?status=ERROR&status=COMPLETED&object=error").json["jobs"]
    assert [job["id"] for job in found] == ["ERROR"]


def test_unknown_parameters_are_400_and_all_are_named(receiver):
    for path in ["/jobs", "/jobs/1", "/jobs/1/events", "/events", "/rejections", "/summary"]:
        answer = receiver.get(f"{path}?foo=1&bar=2")
        assert problem(answer, 400)
        assert "foo" in answer.text
        assert "bar" in answer.text


def test_a_wrong_limit_is_400(receiver):
    for limit in ("0", "1001", "-1", "", "x", "1.5", "5&limit=6", "null"):
        assert problem(receiver.get(f"/jobs?limit={limit}"), 400), limit


def test_q_searches_for_its_text_as_it_stands(receiver):
    for name in ["null", "a_c", "abc"]:
        told(receiver, id=name, status="RUNNING")
    for text, found in {"a_c": ["a_c"], "%25": [], "null": ["null"]}.items():
        jobs = receiver.get(f"/jobs?q={text}").json["jobs"]
        assert [job["id"] for job in jobs] == found


def test_times_may_have_an_offset(make_receiver, make_database):
    receiver = make_receiver(make_database("sqlite"), clock=lambda: 1_800_000_000_000)
    told(receiver, id=1, status="RUNNING")  # at 2027-01-15T08:00:00Z
    for when, count in {"2027-01-15T08:59:59+01:00": 1, "2027-01-15T03:00:01-05:00": 0}.items():
        assert len(receiver.get(f"/jobs?updated_after={quote(when)}").json["jobs"]) == count


@pytest.mark.parametrize("path", ["/jobs", "/jobs/1", "/events/x/body", "/summary"])
@pytest.mark.parametrize("token", ["Bearer wrong", "Bearer ", "Basic eDp5", "Bearer \xe9", None])
def test_without_a_valid_token_it_is_401(receiver, path, token):
    headers = {"Authorization": token} if token else {}
    answer = receiver.client.get(f"/api/v1{path}", headers=headers)
    assert problem(answer, 401)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_what_is_not_there_is_a_problem(receiver):
    for path in [
        "/jobs/no",
        "/jobs/no/events",
        "/jobs/%00",
        "/events/no",
        "/events/no/body",
        "/no",
    ]:
        assert problem(receiver.get(path), 404)
    assert receiver.get("/no").json["detail"] == "There is no such path."
    for method in ["POST", "PUT", "DELETE", "ANY"]:
        answer = receiver.client.open("/api/v1/jobs", method=method)
        assert problem(answer, 405)
        assert answer.json["detail"] == "This method is not allowed here."
        assert "GET" in answer.headers["Allow"]


def test_the_etag_stays_while_the_job_stays(receiver):
    job_of(receiver, {"status": "RUNNING"})
    tag = receiver.get("/jobs/1").headers["ETag"]
    told(receiver, id="1", status="RUNNING")
    same = receiver.get("/jobs/1", **{"If-None-Match": tag})
    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", tag)
    told(receiver, id="1", status="COMPLETED")
    changed = receiver.get("/jobs/1", **{"If-None-Match": tag})
    assert (changed.status_code, changed.headers["ETag"] != tag) == (200, True)


def test_a_wrong_wait_is_400(receiver):
    for wait in ("61", "-1", "x", "", "0.5", "1&wait=1"):
        assert problem(receiver.get(f"/jobs/1?wait={wait}"), 400), wait


def test_a_job_not_yet_known_is_waited_for(any_receiver):
    come = waiting(any_receiver, "/jobs/1?wait=30")
    assert come(0.1) == []
    told(any_receiver, id="1", status="RUNNING")
    told(any_receiver, id="1", status="COMPLETED")
    assert come(20)[0].json["outcome"] == "succeeded"


def test_an_id_of_several_instances_is_409_without_waiting(receiver_of_two):
    answer = receiver_of_two.get("/jobs/1")
    assert problem(answer, 409)
    assert answer.json["detail"] == "job 1 is known to default, null: name the instance"
    assert problem(receiver_of_two.get("/jobs/1/events"), 409)
    come = waiting(receiver_of_two, "/jobs/1?wait=5")
    early = come(3)
    come(20)
    assert [problem(answer, 409) for answer in early]
    for name in ("default", "null"):
        job = receiver_of_two.get(f"/jobs/1?instance={name}")
        assert (job.status_code, job.json.get("instance")) == (200, name)


@pytest.fixture
def receiver_of_two(make_receiver: Callable, make_database: Callable) -> Receiver:
    """Both instances, `default` and `null`, have a job 1."""
    from cryptography.fernet import Fernet  # noqa: PLC0415 - only here

    from receiver.instances import keys as signature_keys  # noqa: PLC0415 - only here
    from receiver.instances import registry  # noqa: PLC0415
    from receiver.instances.encryption import SecretBox  # noqa: PLC0415

    key = Fernet.generate_key()
    receiver = make_receiver(make_database("sqlite"), encryption_keys=(key.decode(),))
    secret_box = SecretBox(Settings(encryption_keys=(key.decode(),)).encryption_keys)
    with receiver.services.database.write() as session:
        registry.add_instance(session, secret_box, "null", 1)
        signature_keys.add_key(session, secret_box, "null", KEY.secret, 1)
    for name in ("default", "null"):
        assert receiver.call_back(b'{"id": "1", "status": "RUNNING"}', name).status_code == 200
    return receiver


def test_the_summary_counts_each_outcome(receiver):
    for word in ["RUNNING", "ERROR", "COMPLETED", "WHAT"]:
        told(receiver, id=word, status=word)
    summary = receiver.get("/summary").json
    assert set(summary["jobs"]) == OUTCOMES
    assert summary["jobs"] == {
        "pending": 1,
        "failed": 1,
        "succeeded": 1,
        "unknown": 1,
        "partial": 0,
        "cancelled": 0,
        "lost": 0,
    }
    assert set(summary) >= {
        "overdue",
        "expiring_24h",
        "rejections_1h",
        "lost_callbacks",
        "queued_at_vendor",
    }


def test_health_needs_no_token(receiver):
    for path in ["/healthz", "/readyz", "/metrics"]:
        assert receiver.client.get(path).status_code == 200
