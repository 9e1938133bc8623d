"""The vendor's API: what is asked and read is pure; what is sent cannot be turned elsewhere."""

import json
from collections.abc import Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import (
    VendorError,
    VendorNonsense,
    VendorRefused,
    VendorUnclear,
    VendorUnreachable,
)
from receiver.openconnectors import client as upstream
from receiver.openconnectors.client import MAX_ANSWER, MAX_PAGES, TRIES, Call, VendorClient
from receiver.openconnectors.shapes import QUEUED

BASE = "https://vendor.example.com/elements/api-v2"
SECRETS = "Element top-secret-token, User top-secret-user"
OBJECTS = ["activities", "contact"]
UPLOAD = Call(method="POST", path="", safe=False)
CALLS = [
    upstream.status_call("1"),
    upstream.errors_call("1"),
    upstream.jobs_call(),
    upstream.queue_call(),
    upstream.queue_call(resend=True),
]

Answering = Callable[[httpx.Request], httpx.Response]


def vendor(answering: Answering) -> tuple[VendorClient, list[httpx.Request]]:
    """A vendor that answers like this, and the requests that it got."""
    got: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        got.append(request)
        return answering(request)

    made = VendorClient(BASE, httpx.MockTransport(answer))
    made._retrying.sleep = lambda _: None
    return made, got


def always(status: int, body: object = None, **headers: str) -> Answering:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx.Response(status, content=content, headers=named)


def failing(error: Exception) -> Answering:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    return fail


def in_turn(*answers: httpx.Response | Exception) -> Answering:
    left = list(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        following = left.pop(0)
        if isinstance(following, Exception):
            raise following
        return following

    return answer


def upload(sender: VendorClient) -> None:
    headers = [(b"Authorization", SECRETS.encode())]
    sender.relay(UPLOAD, "/bulk/contact", headers, [b"email"], 1).close()


def answered(body: object) -> bytes:
    return json.dumps(body).encode()


# --- what is asked


def test_calls_are_those_of_the_vendors_document():
    built = [
        upstream.status_call("1234", "marketing"),
        upstream.errors_call("1234"),
        upstream.jobs_call("crm"),
        upstream.result_call("1234", "contact", "text/csv"),
        upstream.queue_call(),
        upstream.queue_call(resend=True),
    ]
    deliveries = "/notifications/subscriptions/deliveries"
    held = {"where": "channel='webhook' and status='queued'"}
    expected = [
        ("GET", "/hubs/marketing/bulk/1234/status", {}),
        ("GET", "/bulk/1234/errors", {}),
        ("GET", "/hubs/crm/bulk/jobs", {}),
        ("GET", "/bulk/1234/contact", {}),
        ("GET", deliveries, held),
        ("PUT", deliveries, held),
    ]
    assert [(call.method, call.path, dict(call.params)) for call in built] == expected


DOTS = {".", ".."}


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda t: t not in DOTS)
)
def test_no_id_hub_or_object_reaches_out_of_its_place_in_the_path(odd):
    paths = {
        upstream.status_call(odd, odd).path: 5,
        upstream.errors_call(odd, odd).path: 5,
        upstream.jobs_call(odd).path: 4,
        upstream.result_call(odd, odd, "*/*", odd).path: 5,
    }
    assert {path: path.count("/") for path in paths} == paths
    assert [path for path in paths if set(path) & set("?#")] == []


@pytest.mark.parametrize("dots", sorted(DOTS))
def test_a_segment_of_dots_is_refused_for_it_would_lead_to_what_else_our_secrets_open(dots):
    for ask in (
        lambda: upstream.jobs_call(dots),
        lambda: upstream.status_call(dots),
        lambda: upstream.status_call("1", dots),
        lambda: upstream.errors_call(dots),
        lambda: upstream.result_call("1", dots, "*/*"),
        lambda: upstream.result_call(dots, "instances", "*/*"),
    ):
        with pytest.raises(VendorRefused) as refusal:
            ask()
        assert refusal.value.status == 404


def test_a_relayed_body_is_read_piece_by_piece():
    largest = []

    def pieces():
        for _ in range(320):
            yield b"x" * 2**16

    class Counting(httpx.BaseTransport):
        def handle_request(self, request):
            largest.extend(map(len, request.stream))
            return httpx.Response(200, stream=httpx.ByteStream(b"{}"))

    sender = VendorClient(BASE, Counting())
    sender.relay(UPLOAD, "/bulk/contact", [], pieces(), 1).close()
    assert (sum(largest), max(largest)) == (20 * 2**20, 2**16)


def test_a_relayed_request_is_sent_as_it_came():
    sender, got = vendor(always(200, {}))
    target = "/bulk/a%2Fb/%7e|?q=a+b&q=%20&&x"
    headers = [(b"X-Odd", b"\xe9"), (b"x-odd", b"2"), (b"Authorization", SECRETS.encode())]
    sender.relay(UPLOAD, target, headers, [b"1", b"2"], 1).close()
    assert got[0].extensions["target"] == b"/elements/api-v2" + target.encode()
    assert got[0].headers.raw == [(b"Host", b"vendor.example.com"), *headers]


def test_no_cookie_of_the_vendors_is_kept():
    sender, got = vendor(always(200, [], Set_Cookie="session=of-another; Path=/"))
    sender.send(SECRETS, upstream.status_call("1"))
    sender.send(SECRETS, upstream.status_call("2"))
    assert "cookie" not in got[1].headers


@pytest.mark.parametrize(("header", "seconds"), [("120", 120), ("99999", 3600), ("soon", None)])
def test_the_time_that_the_vendor_names_is_read_and_bounded(header, seconds):
    sender, got = vendor(always(429, {}, Retry_After=header))
    with pytest.raises(VendorUnreachable) as failure:
        sender.send(SECRETS, upstream.status_call("1"))
    assert (failure.value.retry_after, len(got)) == (seconds, 1)


# --- what is read


def test_ids_are_text_whether_they_come_as_text_or_numbers():
    told = [{"id": "1234", "status": "CREATED"}, {"id": 1234, "status": "CREATED"}]
    assert [upstream.read_status(answered(each)).job for each in told] == ["1234", "1234"]
    assert upstream.read_status(answered(told[1]), "1234").status == "CREATED"


@pytest.mark.parametrize(
    "body",
    [
        b"<!doctype html><h1>Sign in</h1>",
        b"",
        b"[]",
        b"null",
        b"1234",
        b'"1234"',
        b'{"id": "1234"}',
        b'{"status": "CREATED"}',
        b'{"id": "another", "status": "CREATED"}',
        b'{"id": {"a": 1}, "status": "CREATED"}',
        b'{"id": "a/b", "status": "CREATED"}',
        b'{"id": 12.5, "status": "CREATED"}',
        b"[" * 5000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_status_of_that_job_is_nonsense(body):
    with pytest.raises(VendorNonsense):
        upstream.read_status(body, "1234")


def test_a_status_without_an_id_is_that_of_the_job_that_was_asked_for():
    told = {"batchId": 3, "status": "Completed", "numOfLeadsProcessed": 9, "numOfRowsFailed": 2}
    seen = upstream.read_status(answered(told), "1234")
    assert (seen.job, seen.status, seen.reported, seen.failed) == ("1234", "Completed", 9, 2)


def test_a_page_of_the_job_list_gives_its_jobs_and_leaves_out_what_is_none():
    listed = [{"id": 7, "job_state": "RUNNING"}, {"id": None}, 3, {"id": "8", "status": "ERROR"}]
    assert [each.job for each in upstream.read_jobs(answered(listed))] == ["7", "8"]


@pytest.mark.parametrize("body", [b"{}", b"<html>", b"", b"7", b"[" * 5000])
def test_what_is_no_array_is_nonsense(body):
    for read in (upstream.read_jobs, upstream.read_entries):
        with pytest.raises(VendorNonsense):
            read(body)


def test_entries_are_kept_digit_for_digit():
    body = b'[{"row": 1, "amount": 1.10, "big": 123456789012345678901234567890}]'
    assert upstream.read_entries(body) == [
        '{"row":1,"amount":1.10,"big":123456789012345678901234567890}'
    ]


# --- sending


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["http://169.254.169.254/latest", "https://vendor.example.com/x"])
def test_no_redirect_is_followed_and_the_secrets_go_out_once(status, to):
    sender, got = vendor(always(status, b"", Location=to))
    with pytest.raises(VendorNonsense, match=str(status)):
        sender.send(SECRETS, upstream.status_call("1"))
    assert [request.url.host for request in got] == ["vendor.example.com"]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_failing_vendor_is_asked_again_for_what_is_safe(status):
    for call in CALLS:
        sender, got = vendor(
            in_turn(httpx.Response(status), httpx.Response(status), httpx.Response(200, json=[]))
        )
        assert sender.send(SECRETS, call).body == b"[]"
        assert len(got) == 3


@pytest.mark.parametrize("status", [502, 503])
def test_a_vendor_that_goes_on_failing_is_given_up(status):
    sender, got = vendor(always(status, {"requestId": "1", "message": "the provider failed"}))
    with pytest.raises(VendorUnreachable, match="the provider failed") as failure:
        sender.send(SECRETS, upstream.status_call("1"))
    assert (len(got), failure.value.status) == (TRIES, status)


def test_before_each_repetition_a_turn_is_waited_for():
    sender, got = vendor(always(503))
    turns = []
    with pytest.raises(VendorUnreachable):
        sender.send(SECRETS, upstream.status_call("1"), lambda: turns.append(len(got)))
    assert turns == [1, 2]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 409, 415])
def test_a_refusal_is_not_tried_again_and_keeps_the_vendors_status_and_words(status):
    sender, got = vendor(always(status, {"requestId": "1", "message": "no such job"}))
    with pytest.raises(VendorRefused, match="no such job") as refusal:
        sender.send(SECRETS, upstream.status_call("1"))
    assert (len(got), refusal.value.status) == (1, status)


@pytest.mark.parametrize("body", [b"<h1>no</h1>", b"[]", b'{"message": 7}', b"[" * 9999, b"\xff"])
def test_a_refusal_without_words_names_its_status(body):
    sender, _ = vendor(always(403, body))
    with pytest.raises(VendorRefused, match="the vendor answered 403"):
        sender.send(SECRETS, upstream.status_call("1"))


def test_an_answer_may_be_large_but_not_larger_than_the_cap():
    sender, _ = vendor(always(200, b"x" * MAX_ANSWER))
    assert len(sender.send(SECRETS, upstream.jobs_call()).body) == MAX_ANSWER
    sender, got = vendor(always(200, b"x" * (MAX_ANSWER + 1)))
    with pytest.raises(VendorNonsense, match="more than"):
        sender.send(SECRETS, upstream.jobs_call())
    assert len(got) == 1


def test_an_answer_without_end_is_left_at_the_cap():
    class Endless(httpx.SyncByteStream):
        given = 0

        def __iter__(self):
            while True:
                Endless.given += 2**16
                yield b"x" * 2**16

    sender, _ = vendor(lambda _: httpx.Response(200, stream=Endless()))
    with pytest.raises(VendorNonsense, match="more than"):
        sender.send(SECRETS, upstream.jobs_call())
    assert Endless.given <= MAX_ANSWER + 2 * 2**16


NOT_SENT = [httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")]
CUT_OFF = [
    httpx.ReadTimeout("x"),
    httpx.WriteTimeout("x"),
    httpx.ReadError("x"),
    httpx.WriteError("x"),
    httpx.RemoteProtocolError("x"),
]


@pytest.mark.parametrize("error", NOT_SENT, ids=lambda error: type(error).__name__)
def test_what_never_left_was_not_taken(error):
    sender, got = vendor(failing(error))
    with pytest.raises(VendorUnreachable):
        upload(sender)
    assert len(got) == 1


@pytest.mark.parametrize("error", CUT_OFF, ids=lambda error: type(error).__name__)
def test_a_cut_off_answer_leaves_the_fate_unclear_and_nothing_is_repeated(error):
    sender, got = vendor(failing(error))
    with pytest.raises(VendorUnclear) as unclear:
        upload(sender)
    expected = 504 if isinstance(error, httpx.TimeoutException) else 502
    assert (len(got), unclear.value.status) == (1, expected)


@pytest.mark.parametrize("error", NOT_SENT + CUT_OFF, ids=lambda error: type(error).__name__)
def test_a_question_that_was_cut_off_is_asked_again(error):
    sender, got = vendor(in_turn(error, httpx.Response(200, json=OBJECTS)))
    assert json.loads(sender.send(SECRETS, upstream.jobs_call()).body) == OBJECTS
    assert len(got) == 2


# --- pages


def test_pages_are_asked_for_until_there_is_no_token():
    tokens = {None: "2", "2": "3", "3": None}

    def page(request: httpx.Request) -> httpx.Response:
        following = tokens[request.url.params.get("nextPage")]
        headers = {"elements-next-page-token": following} if following else {}
        return httpx.Response(200, json=[], headers=headers)

    sender, got = vendor(page)
    assert len(list(sender.pages(SECRETS, upstream.queue_call()))) == 3
    assert [request.url.params["where"] for request in got] == [QUEUED] * 3


@pytest.mark.parametrize("cycle", [["1"], ["1", "2"], ["1", "2", "3", "4"]])
def test_tokens_that_go_in_circles_come_to_an_end(cycle):
    count = iter(range(MAX_PAGES))
    sender, got = vendor(
        lambda _: httpx.Response(
            200, json=[], headers={"elements-next-page-token": cycle[next(count) % len(cycle)]}
        )
    )
    pages = list(sender.pages(SECRETS, upstream.errors_call("1")))
    assert len(pages) == len(got) == len(cycle) + 1


# --- files


def test_a_file_is_passed_on_in_pieces_with_its_type():
    sender, got = vendor(always(200, b"email\na@example.com\n", content_type="text/csv"))
    with sender.stream(SECRETS, upstream.result_call("1", "contact", "text/csv")) as (
        type_,
        pieces,
    ):
        assert (type_, b"".join(pieces)) == ("text/csv", b"email\na@example.com\n")
    assert got[0].headers["Accept"] == "text/csv"


# --- secrets


def test_no_error_and_no_repr_holds_a_secret():
    behaviours = [
        always(status, b"x") for status in (200, 302, 400, 401, 403, 404, 429, 500, 502, 504)
    ]
    behaviours += map(failing, NOT_SENT + CUT_OFF)
    told = []
    for behaviour in behaviours:
        for ask in (lambda it: it.send(SECRETS, upstream.status_call("1")), upload):
            sender, _ = vendor(behaviour)
            try:
                ask(sender)
            except VendorError as error:
                told += [str(error), repr(error), repr(error.args), repr(error.__cause__)]
            told.append(repr(sender))
    assert len(told) > 80
    assert [text for text in told if "top-secret" in text] == []
