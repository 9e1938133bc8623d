"""Tags, parameters, times and cursors of the query API."""

import itertools
import json
from urllib.parse import quote, urlencode

import pytest
from fakes import between
from test_interface_api import problem

from receiver.errors import SignatureError
from receiver.lib.clock import iso, to_ms
from receiver.web.api import schemas
from receiver.web.http import parameters


@pytest.fixture
def stored(receiver):
    for body in (
        {"id": "1", "status": "RUNNING", "callback-payload": {"a": [1, None]}},
        {"id": "2", "status": "A&B", "error": "\u2028 <é>"},
        {"id": "3", "status": "COMPLETED", "recordsCount": 3, "completionTime": 1_500_000_000_001},
    ):
        assert receiver.call_back(json.dumps(body).encode()).status_code == 200
    return receiver


def test_each_way_to_name_the_tag_is_304_without_a_body_and_any_other_tag_is_200(stored):
    tag = stored.get("/jobs/1").headers["ETag"]
    for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        answer = stored.get("/jobs/1", **{"If-None-Match": known})
        assert (answer.status_code, answer.data, answer.headers["ETag"]) == (304, b"", tag), known
    for other in ('"x"', "", "x", '"', "W/"):
        assert stored.get("/jobs/1", **{"If-None-Match": other}).status_code == 200, other


def test_a_job_that_changed_is_shown_as_it_is_now(stored):
    for number in range(3):
        body = {"id": "1", "status": "RUNNING", "recordsCount": number}
        assert stored.call_back(json.dumps(body).encode()).status_code == 200
        shown = stored.get("/jobs/1").json
        assert shown["records"]["loaded"] == number
        assert stored.get("/jobs").json["jobs"][0] == shown


def test_a_thousand_parameters_are_too_many(stored):
    assert problem(stored.get("/jobs?" + "&".join(["status=x"] * 1001)), 400)


def test_parameters_that_may_be_repeated_are_lists():
    query = parameters("status=a&status=b+c&object=%2B", schemas.JobsQuery)
    assert (query.status, query.object, query.limit) == (["a", "b c"], ["+"], 50)


@pytest.mark.parametrize(
    ("text", "read"),
    {
        "2026-11-22T05:49:00Z": "2026-11-22T05:49:00.000Z",
        "2026-11-22T05:49:00.123456789Z": "2026-11-22T05:49:00.123Z",
        "2026-11-22t05:49:00.1z": "2026-11-22T05:49:00.100Z",
        "2026-11-22 05:49:00.000000000000000000001+01:00": "2026-11-22T04:49:00.000Z",
        "2016-12-31T23:59:60Z": "2017-01-01T00:00:00.000Z",
        "2016-12-31T15:59:60.5-08:00": "2017-01-01T00:00:00.500Z",
        "2026-11-22T05:49": "2026-11-22T05:49:00.000Z",
    }.items(),
)
def test_a_time_of_any_precision_is_read(text, read):
    assert iso(to_ms(text)) == read


def test_what_is_no_time_is_400_or_finds_nothing(stored):
    values = (
        *("AAAA", "2026-11-22T05:49:00.Z", "2026-11-22T05:49:61Z", "2026-11-22T05:49:60:60Z"),
        *("", "x", "null", "2020-13-01T00:00:00Z", "12:00"),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-02-30T00:00:00Z"),
    )
    names = ("updated_after", "updated_before", "expires_before")
    for value, name in itertools.product(values, names):
        answer = stored.get(f"/jobs?{name}={quote(value)}")
        assert answer.status_code in (200, 400), (name, value)
        if answer.status_code == 400:
            assert problem(answer, 400) == "bad_parameter"


def test_a_400_names_the_parameter_in_plain_words(stored):
    for query, words in (
        ("limit=many", "limit: must be a whole number, not text"),
        ("limit=1001", "limit: must be a whole number <= 1000"),
        ("outcome=lost&outcome=partail", "outcome: 'partail' is none of pending, succeeded,"),
        (f"q={1001 * 'a'}", "q: must be text of length <= 1000"),
    ):
        answer = stored.get(f"/jobs?{query}")
        assert problem(answer, 400) == "bad_parameter"
        assert answer.json["detail"].startswith(words)


@pytest.mark.parametrize(
    ("path", "names"),
    {
        "/jobs": ("updated_after", "updated_before", "expires_before"),
        "/events": ("received_after", "received_before"),
        "/rejections": ("after", "before"),
    }.items(),
)
def test_a_400_names_the_time_that_is_none_and_shows_one(receiver, path, names):
    right = dict.fromkeys(names, "2026-11-22T05:49Z")
    for name in names:
        answer = receiver.get(f"{path}?{urlencode(right | {name: 'yesterday'})}")
        assert problem(answer, 400) == "bad_parameter"
        words = f"{name}: there is no such time: yesterday; one is 2026-11-22T05:49:00Z"
        assert answer.json["detail"] == words


def test_rejections_are_filtered_by_the_reasons_that_there_are(receiver):
    answer = receiver.get("/rejections?reason=zz")
    assert problem(answer, 400) == "bad_parameter"
    _, _, reasons = answer.json["detail"].partition("reason: 'zz' is none of ")
    assert set(reasons.split(", ")) == {error.reason for error in SignatureError.__subclasses__()}
    for reason in reasons.split(", "):
        assert receiver.get(f"/rejections?reason={reason}").status_code == 200


@pytest.mark.parametrize(
    ("when", "earlier"),
    [
        ("0001-01-01T00:00:00Z", True),
        ("1969-12-31T23:59:59Z", True),
        ("9999-12-31T23:59:59Z", False),
    ],
)
def test_lists_are_bounded_by_any_time_of_the_calendar(receiver, when, earlier):
    receiver.call_back(b'{"id": "1", "status": "RUNNING"}')
    for path, names in {
        "/jobs": ("updated_after", "updated_before"),
        "/events": ("received_after", "received_before"),
    }.items():
        for name, all_of_them in zip(names, (earlier, not earlier), strict=True):
            answer = receiver.get(f"{path}?{name}={when}")
            assert answer.status_code == 200
            assert len(answer.json[path[1:]]) == all_of_them


def test_events_are_searched_by_body_header_and_file(database_url):
    with between(database_url) as receiver:
        job = receiver.uploaded()
        receiver.ended(job)
        body = '{"id": "77", "status": "COMPLETED", "note": "50% café"}'.encode()
        assert receiver.call_back(body, "gooddata", **{"X-Trace": "needle-1"}).status_code == 200

        def found(after: str = "2020-01-01T00:00Z", **texts: str) -> list[str] | int:
            named = {"received_after": after} if after else {}
            answer = receiver.get(f"/events?{urlencode(texts | named)}")
            events = answer.json.get("events")
            return answer.status_code if events is None else [event["job"] for event in events]

        assert found() == ["77", job]
        assert found(body="50% caf\u00e9") == found(header="needle") == ["77"]
        assert found(header="x-trace", kind="bulk_job", instance="gooddata") == ["77"]
        assert found(file="ample.c") == found(file="sample", body=job) == [job]
        assert found(body="Café") == found(file="%") == found(header="needle", body="x") == []
        assert found(body="id", after="2999-01-01T00:00Z") == []
        # All that was ever received is not searched, unless it is of one job.
        later = {"after": "", "received_before": "2999-01-01T00:00Z"}
        assert found(body="caf", after="") == found(body="caf", job="77", **later) == ["77"]
        assert found(body="caf", **later) == []
        assert found(body="") == found(body="a\0") == 400


def test_two_changes_in_one_millisecond_have_two_tags(make_receiver, make_database):
    receiver = make_receiver(make_database("sqlite"), clock=lambda: 1_800_000_000_000)
    tags = set()
    for status in ("CREATED", "RUNNING", "COMPLETED"):
        assert receiver.call_back(json.dumps({"id": "1", "status": status}).encode()).json
        tags.add(receiver.get("/jobs/1").headers["ETag"])
    assert len(tags) == 3
