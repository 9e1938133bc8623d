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
from builders import KEY, Receiver, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes import eventually

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


@pytest.mark.parametrize(
    ("body", "kind", "job"),
    [
        (b'{"id": "1", "status": "X"}', "bulk_job", "1"),
        (b'{"id": 42000000, "jobStatus": "RUNNING"}', "bulk_job", "42000000"),
        (b'{"id": 4.2E7, "job_state": "RUNNING"}', "bulk_job", "42000000"),
        (b'{"id": "%s", "status": "X"}' % (b"a" * 200), "bulk_job", "a" * 200),
        (b'{"id": "no", "id": "yes", "status": "X"}', "bulk_job", "yes"),
        (b'{"id": "%s", "status": "X"}' % (b"a" * 201), "unreadable", None),
        (b'{"id": "", "status": "X"}', "unreadable", None),
        (b'{"id": "a b", "status": "X"}', "unreadable", None),
        (b'{"id": "a\\n", "status": "X"}', "unreadable", None),
        (b'{"id": "\xc3\xa9", "status": "X"}', "unreadable", None),
        (b'{"id": 1.5, "status": "X"}', "unreadable", None),
        (b'{"id": true, "status": "X"}', "unreadable", None),
        (b'{"id": [1], "status": "X"}', "unreadable", None),
        (b'{"id": 1, "status": 7}', "unreadable", None),
        (b'{"id": 1e999, "status": "X"}', "unreadable", None),
        (b'{"id": "1", "status": "X", "x": "\xff"}', "unreadable", None),
        (b'{"id": "1", "status": "X", "x": %s1%s}' % (b"[" * 65, b"]" * 65), "unreadable", None),
        ('{"id": "1", "status": "X"}'.encode("utf-16"), "unreadable", None),
        (b"", "unreadable", None),
        (b"nonsense", "unreadable", None),
        (
            b'{"eventId": 1028, "instanceId": 30, "response": {"events": []}, "notificationId": 1}',
            "async_request",
            None,
        ),
        (b'{"message": {"eventId": 1}}', "element_event", None),
        (b'{"hello": "world"}', "other", None),
    ],
)
def test_each_body_has_its_kind(receiver, body, kind, job):
    answer = receiver.call_back(body)
    assert answer.status_code == 200
    event = receiver.get(f"/events/{answer.json['event']}").json
    assert (event["kind"], event["job"]) == (kind, job)
    assert receiver.get(f"/events/{event['id']}/body").data == body
    assert [found["id"] for found in receiver.get("/jobs").json["jobs"]] == [job] * bool(job)


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
number = st.none() | st.integers(0, 3)
notifications = st.fixed_dictionaries(
    {"status": st.sampled_from(WORDS + ENDINGS)},
    optional={
        "recordsCount": number,
        "recordsFailedCount": number,
        "error": st.sampled_from(["a", "b", None]),
        "objectName": st.sampled_from(["contact", "lead", None]),
        "jobDirection": st.sampled_from(["UPLOAD", "DOWNLOAD"]),
        "job_reset_attempt": st.integers(0, 2),
        "completionTime": st.integers(1_700_000_000_000, 1_700_000_000_002),
        "callback-payload": st.sampled_from(["x", {"y": 1}, None]),
    },
)
ARRIVAL = {"id", "updated_at", "learnt_by", "ended_at", "files_expire_at"}


@given(bodies=st.lists(notifications, min_size=2, max_size=5), data=st.data())
@settings(
    max_examples=examples(60),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_job_does_not_depend_on_order_or_number_of_deliveries(receiver, names, bodies, data):
    shuffled = data.draw(st.permutations(bodies)) + data.draw(st.lists(st.sampled_from(bodies)))
    found = []
    for order in (bodies, shuffled):
        name = f"job-{next(names)}"
        for body in order:
            told(receiver, id=name, **body)
        job = receiver.get(f"/jobs/{name}").json
        attempts = [body.get("job_reset_attempt", 0) for body in bodies]
        latest = [body for body in bodies if body.get("job_reset_attempt", 0) == max(attempts)]
        has_ended = any(body["status"] in ENDINGS for body in latest)
        assert (job["outcome"] not in {"pending", "unknown"}) == has_ended
        found.append({key: value for key, value in job.items() if key not in ARRIVAL})
    assert found[0] == found[1]


@pytest.fixture
def names():
    return itertools.count()


@pytest.mark.parametrize(
    ("records", "outcome"),
    [
        ({}, "succeeded"),
        ({"recordsCount": 0}, "succeeded"),
        ({"recordsCount": 3, "recordsFailedCount": 0}, "succeeded"),
        ({"recordsCount": 3, "recordsFailedCount": 1}, "partial"),
        ({"recordsFailedCount": 1}, "partial"),
        ({"recordsCount": 0, "recordsFailedCount": 1}, "failed"),
        ({"recordCount": 0, "errorCount": 1}, "failed"),
        ({"record_count": 2, "error_count": 1}, "partial"),
    ],
)
def test_completed_is_judged_by_its_records(receiver, records, outcome):
    assert job_of(receiver, {"status": "COMPLETED", **records})["outcome"] == outcome


@pytest.mark.parametrize(
    ("words", "status", "outcome"),
    [
        (["CREATED"], "CREATED", "pending"),
        (["RUNNING", "STARTED"], "RUNNING", "pending"),
        (["RUNNING", "SLEEPING"], "SLEEPING", "unknown"),
        (["SLEEPING", "CANCELLATION_PENDING"], "CANCELLATION_PENDING", "pending"),
        (["COMPLETE", "SLEEPING"], "COMPLETE", "succeeded"),
        (["completed"], "completed", "succeeded"),
        (["CANCELED", "RUNNING"], "CANCELED", "cancelled"),
        (["CANCELLED", "ABORTED"], "ABORTED", "failed"),
        (["ABORTED", "ERROR"], "ERROR", "failed"),
        (["COMPLETED", "ERROR"], "COMPLETED", "succeeded"),
    ],
)
def test_the_greatest_status_stands_in_either_order(receiver, words, status, outcome):
    job = job_of(receiver, *({"status": word} for word in words))
    assert (job["status"], job["outcome"]) == (status, outcome)
    for word in reversed(words):
        told(receiver, id="2", status=word)
    job = receiver.get("/jobs/2").json
    assert (job["status"], job["outcome"]) == (status, outcome)


def test_two_different_endings_conflict_only_within_one_attempt(receiver):
    error, done = {"status": "ERROR"}, {"status": "COMPLETED", "job_reset_attempt": 1}
    assert job_of(receiver, error, {"status": "CANCELLED"})["conflict"]
    job = job_of(receiver, done)
    assert (job["conflict"], job["outcome"]) == (False, "succeeded")


def test_two_spellings_of_an_ending_are_no_conflict(receiver):
    assert not job_of(receiver, {"status": "COMPLETE"}, {"status": "completed"})["conflict"]


def test_counts_of_another_attempt_are_not_shown(receiver):
    first = {"status": "COMPLETED", "recordsCount": 5, "recordsFailedCount": 5}
    job = job_of(receiver, first, {"status": "COMPLETED", "job_reset_attempt": 1})
    assert job["records"] == {"submitted": None, "loaded": None, "failed": None, "reported": None}
    assert job["outcome"] == "succeeded"


def test_a_timed_ending_beats_an_untimed_one_and_tells_when(receiver):
    timed = {"status": "CANCELLED", "completionTime": 1_700_000_000_123}
    job = job_of(receiver, {"status": "COMPLETED"}, timed)
    assert (job["status"], job["ended_at"]) == ("CANCELLED", "2023-11-14T22:13:20.123Z")
    assert job["files_expire_at"] == "2023-11-17T22:13:20.123Z"


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


def test_what_is_not_a_time_is_400(receiver):
    for name in ("updated_after", "updated_before", "expires_before"):
        for value in ("", "x", "null", "2020-13-01T00:00:00Z", "12:00"):
            assert problem(receiver.get(f"/jobs?{name}={value}"), 400), (name, value)


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
