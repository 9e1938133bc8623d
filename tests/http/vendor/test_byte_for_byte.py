"""What goes through the relay arrives as it was sent, but for what `interface.md` lists."""

import gzip
import io
import json
import re
import threading

import pytest
from builders import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nodes import eventually
from recording import BASE, LIMIT, Message, answer, read_message

SECRETS = b"Element gooddata-element-token, User gooddata-user-secret"
OURS = b"https://hooks.example.com/callbacks/gooddata"
CHANGED = {b"authorization", b"host", b"content-length", b"transfer-encoding"}

KNOWN = (
    *("objects", "hubs/crm/bulk/contact", "bulk/contact", "bulk/query", "bulk/jobs/"),
    *("bulk/77/contact", "objects/contact/metadata", "bulk/workflows", "hubs/crm/contacts/7"),
)
NAMES = (
    *("Elements-Version", "X-Odd", "x-odd", "Accept", "Accept-Encoding", "Content-Type"),
    *("If-Match", "User-Agent", "Range", "Elements-Schedule-Request", "Content-Encoding"),
)

plain = st.text("abcdefghijklmnopqrstuvwxyzABCDEF0123456789-._~", min_size=1, max_size=12)
methods = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
segments = plain | st.sampled_from(
    ["%20", "a%2Fb", "%C3%A9", "a+b", "a;b=c", "@:!$&'()*,=", "a%25b"]
)
paths = st.one_of(
    st.lists(segments.filter(lambda each: each.strip(".")), min_size=1, max_size=5).map("/".join),
    st.sampled_from(KNOWN),
)
parameters = st.lists(
    st.tuples(plain, st.sampled_from(["", "1", "a+b", "%20", "x%26y", "é".encode().hex()])),
    max_size=5,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
names = st.sampled_from(NAMES)
values = st.text("abcdefghijklmnopqrstuvwxyz0123456789 ;,=/*\"'()éß", max_size=20).map(str.strip)
header_lists = st.lists(
    st.tuples(names, values),
    max_size=8,
    unique_by=lambda pair: pair if pair[0].lower() == "x-odd" else pair[0],
)
bodies = st.none() | st.binary(max_size=3000) | st.binary(min_size=70_000, max_size=90_000)


def compared(message: Message) -> list[tuple[bytes, bytes]]:
    return sorted(pair for pair in message.headers if pair[0] not in CHANGED)


@given(
    start=st.tuples(methods, paths, parameters),
    headers=header_lists,
    body=bodies,
    chunked=st.booleans(),
)
@settings(
    max_examples=examples(1000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_request_arrives_as_it_was_sent(through, start, headers, body, chunked):
    method, path, query = start
    recorder = through.recorder
    recorder.got.clear()
    lines = [f"{name}: {value}".encode("latin-1") for name, value in headers]
    sent = list(lines)
    if body is not None and chunked:
        sent.append(b"Transfer-Encoding: chunked")
        halves = [half for half in (body[: len(body) // 2], body[len(body) // 2 :]) if half]
        wire = b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves) + b"0\r\n\r\n"
    else:
        sent += [] if body is None else [b"Content-Length: %d" % len(body)]
        wire = body or b""
    hop = [b"Connection: keep-alive, X-Hop", b"X-Hop: 1", b"TE: gzip", b"Cookie: a=b"]
    target = f"/{path}?{query}" if query else f"/{path}"
    answered = through.ask(
        method.encode(), target.encode(), [*sent, *hop, b"X-Forwarded-For: 1.2.3.4"], wire
    )
    assert answered.start.startswith(b"HTTP/1.1 200"), answered
    (arrived,) = recorder.got
    assert arrived.start == b"%s %s%s HTTP/1.1" % (method.encode(), BASE, target.encode())
    assert arrived.header(b"authorization") == [SECRETS]
    assert arrived.header(b"host") == [b"127.0.0.1:%d" % recorder.port]
    assert arrived.body == (body or b"")
    expected = [
        (name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)
    ]
    creates = re.fullmatch(r"(hubs/[^/]+/)?bulk/(?!workflows)[^/]+/?", path)
    if method == "POST" and creates:
        expected.append((b"elements-async-callback-url", OURS))
    assert compared(arrived) == sorted(expected)
    assert answered.body == (
        b""
        if method == "HEAD"
        else b'{"id": "%d", "status": "CREATED", "odd": 1.10}' % recorder.ids
    )


def test_a_downloads_order_has_our_url_and_every_other_value_as_it_was(through):
    order = (
        b'{ "objectName":"contact", "odd": 1.10, "deep":{"a" : [1e400]}, "notificationUrl": null}'
    )
    headers = [b"Content-Type: application/json", b"Content-Length: %d" % len(order)]
    through.ask(b"POST", b"/bulk/download", headers, order)
    arrived = through.sent().body
    assert json.loads(arrived)["notificationUrl"] == OURS.decode()
    for part in (b'"odd":1.10', b'{"a" : [1e400]}'):
        assert part in arrived


def test_a_byte_order_mark_before_a_downloads_order_does_not_keep_our_url_out(through):
    order = b'\xef\xbb\xbf{"objectName": "contact", "notificationUrl": "https://example.com/x"}'
    headers = [b"Content-Type: application/json", b"Content-Length: %d" % len(order)]
    through.ask(b"POST", b"/bulk/download", headers, order)
    arrived = through.sent().body
    assert arrived.startswith(b"\xef\xbb\xbf{")
    assert json.loads(arrived.decode("utf-8-sig"))["notificationUrl"] == OURS.decode()


def test_an_answer_comes_back_as_it_was_given(through):
    packed = gzip.compress(b'{"id": 7}')
    given = [b"Content-Encoding: gzip", b"Content-Type: application/vnd.odd", b"requestId: r-1"]
    given += [b"elements-next-page-token: x", b"X-Twice: 1", b"X-Twice: 2"]
    hop = [b"Connection: X-Hop", b"X-Hop: 1", b"Set-Cookie: a=b", b"Keep-Alive: 5"]
    through.recorder.answer = lambda _: answer(207, packed, *given, *hop)
    answered = through.ask(b"GET", b"/contacts")
    assert answered.start.startswith(b"HTTP/1.1 207")
    assert answered.body == packed
    for line in given:
        name, _, value = line.partition(b": ")
        assert value in answered.header(name.lower())
    assert [name for name, _ in answered.headers if name in (b"set-cookie", b"x-hop")] == []


def test_an_error_of_the_vendors_is_passed_on_once_and_whole(through):
    body = b'{"requestId":"r-1","message":"no","providerMessage":"why"}'
    head = [b"Retry-After: 120", b"Content-Type: application/json"]

    def check(status: int, method: bytes, path: bytes) -> None:
        through.recorder.answer = lambda _: answer(status, body, *head)
        through.recorder.got.clear()
        answered = through.ask(method, path)
        assert (answered.start[9:12], answered.body) == (b"%d" % status, body)
        assert answered.header(b"retry-after") == [b"120"]
        assert len(through.recorder.got) == 1

    statuses = (400, 401, 404, 409, 500, 429, 503)
    for status in statuses:
        check(status, b"GET", b"/objects")
        check(status, b"POST", b"/bulk/contact")
    # From 429 on the instance's vendor is asked for no status, for as long as it said.
    for status in statuses[:-1]:
        check(status, b"GET", b"/bulk/%d/status" % status)


# --- bad input


def expect_error(answered: Message, status: int, words: bytes = b"") -> None:
    assert answered.start[9:12] == b"%d" % status, answered
    content = json.loads(answered.body)
    assert set(content) == {"requestId", "message"}
    assert words.decode() in content["message"]
    for secret in (b"gooddata-element-token", b"gooddata-user-secret"):
        assert secret not in b"".join([answered.body, *(value for _, value in answered.headers)])


@pytest.mark.parametrize(
    "given",
    [
        answer(200, b"<html>Sign in</html>", b"Content-Type: text/html; charset=utf-8"),
        answer(503, b"<html>Sign in</html>", b"Content-Type: text/html"),
        answer(302, b"", b"Location: http://169.254.169.254/l%C3%A9?a=b%20c#d"),
        answer(308, b"moved", b"Location: /\xe9 {x}|y\\z", b"Content-Type: text/plain"),
        answer(404, b"<oops", b"X-Odd: 1"),
    ],
    ids=["HTML", "HTML and 503", "a redirect", "an odd redirect", "no type"],
)
def test_whatever_the_vendor_answers_comes_back_as_it_came_and_contained(through, given):
    through.recorder.answer = lambda _: given
    expected = read_message(io.BytesIO(given))
    for path in (b"/objects", b"/bulk/jobs?where=x", b"/contacts/1"):
        answered = through.ask(b"GET", path)
        assert (answered.start[9:12], answered.body) == (expected.start[9:12], expected.body)
        passed_on = [pair for pair in expected.headers if pair[0] != b"connection"]
        assert [pair for pair in passed_on if pair not in answered.headers] == []
        assert answered.header(b"content-security-policy") == [b"sandbox; default-src 'none'"]
        assert answered.header(b"x-content-type-options") == [b"nosniff"]
        assert len(answered.header(b"content-type")) == len(expected.header(b"content-type"))


@pytest.mark.parametrize(
    "given",
    [b"HTTP/1.1 200 OK\r\nContent-Len", b"nonsense\r\n\r\n", b""],
    ids=["half a head", "no HTTP", "nothing"],
)
def test_what_is_no_answer_is_a_clear_error(through, given):
    through.recorder.answer = lambda _: given
    for path in (b"/objects", b"/contacts/1"):
        expect_error(through.ask(b"GET", path), 502, b"did not answer")


@pytest.mark.parametrize("status", [600, 999])
def test_a_status_that_http_has_not_is_a_clear_error(through, status):
    through.forget_the_pace()  # a test before may have had it say when to come again
    through.recorder.answer = lambda _: answer(status, b"request denied")
    asked = ((b"GET", b"/objects"), (b"GET", b"/bulk/1/status"), (b"POST", b"/bulk/contact"))
    for method, path in asked:
        expect_error(through.ask(method, path), 502, b"answered %d" % status)


def test_half_an_answer_does_not_look_whole(through):
    through.recorder.answer = lambda _: answer(200, b"x" * 1000)[:-500]
    expect_error(through.ask(b"GET", b"/contacts"), 502, b"did not answer")
    through.recorder.answer = lambda _: answer(200, b"x" * 1_000_000)[:-500]
    with pytest.raises(EOFError):
        through.ask(b"GET", b"/contacts")


def test_a_secret_that_the_vendor_quotes_goes_no_further(through):
    body = b'{"message": "User gooddata-user-secret is not known"}'
    for coded, head in ((body, []), (gzip.compress(body), [b"Content-Encoding: gzip"])):
        quoted = b"providerMessage: gooddata-user-secret is no key"
        through.recorder.answer = lambda _, coded=coded, head=[*head, quoted]: answer(
            401, coded, b"Content-Type: application/json", *head
        )
        answered = through.ask(b"GET", b"/objects")
        assert answered.header(b"providermessage") == [b"[secret] is no key"]
        assert answered.start[9:12] == b"401"
        assert json.loads(answered.body)["message"] == "User [secret] is not known"


@pytest.mark.parametrize(
    "target",
    (
        b"/bulk/%00/status /../instances /bulk/%2e%2e/instances /a%2f..%2fb /..;/x /a%5c..%5c/x"
        b" /bulk/a%0d%0ab/status"
    ).split(),
)
def test_a_path_that_would_lead_elsewhere_is_refused(through, target):
    through.recorder.got.clear()
    expect_error(through.ask(b"GET", target), 404)
    assert through.recorder.got == []


@pytest.mark.parametrize("expect", [[], [b"Expect: 100-continue"]])
def test_a_body_above_the_limit_is_refused_before_it_comes(through, expect):
    answered = through.ask(b"POST", b"/bulk/contact", [b"Content-Length: 4000000000", *expect])
    expect_error(answered, 413, b"more than")


def test_chunks_without_end_are_refused_at_the_limit_and_go_no_further(through):
    through.recorder.got.clear()
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    with through.connected() as connection, connection.makefile("rb") as stream:
        connection.sendall(through.head(b"POST", b"/contacts", [b"Transfer-Encoding: chunked"]))
        for _ in range(LIMIT // (1 << 20) + 1):
            connection.sendall(chunk)
        expect_error(read_message(stream), 413, b"more than")
    assert through.recorder.got == []


def test_a_form_of_hundreds_of_parts_arrives_to_the_byte_and_is_not_counted(through):
    meta = (
        b'--B\r\nContent-Disposition: form-data; name="metaData"; filename="m.json"\r\n'
        b"Content-Type: application/json\r\nX-Part: 1\r\n\r\n{}\r\n"
    )
    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na,b\n1,2\n\r\n'
    body = meta + part * 300 + b"--B--\r\n"
    headers = [b"Content-Type: multipart/form-data; boundary=B", b"Content-Length: %d" % len(body)]
    answered = through.ask(b"POST", b"/bulk/contact", headers, body)
    assert through.sent().body == body
    assert through.sent().header(b"content-type") == [b"multipart/form-data; boundary=B"]
    assert through.job(json.loads(answered.body)["id"])["records"]["submitted"] is None


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        pytest.param(b"/objects", [b"X-Flood: 1"] * 100, 431, id="many headers"),
        pytest.param(b"/objects", [b"X-Flood: " + b"x" * 5000], 431, id="a long header"),
        pytest.param(b"/objects", [b"Broken\x01Name: 1"], 400, id="no header"),
        pytest.param(b"/" + b"x" * 5000, [], 414, id="a long path"),
    ],
)
def test_a_flood_of_a_head_is_refused_in_the_vendors_shape(through, target, headers, status):
    through.recorder.got.clear()
    expect_error(through.ask(b"GET", target, headers), status)
    assert through.recorder.got == []


@pytest.mark.parametrize("path", [b"/contacts", b"/bulk/jobs", b"/bulk/8/contact"])
def test_a_hundred_megabytes_of_an_answer_come_back_and_are_not_held(through, path):
    size = 100_000_000
    through.recorder.answer = lambda _: answer(200, b"[" + b" " * (size - 2) + b"]")
    before = through.memory()
    with through.connected() as connection, connection.makefile("rb") as stream:
        connection.sendall(through.head(b"GET", path, []))
        read = []
        read_message(stream, piece=read.append)
    assert sum(read) == size
    assert through.memory() - before < 30 << 20


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param([b"Content-Length: 100"], b"cut", id="cut off"),
        pytest.param([b"Transfer-Encoding: chunked"], b"5\r\nhel", id="half a chunk"),
        pytest.param([b"Transfer-Encoding: chunked"], b"zz\r\n", id="no chunk"),
    ],
)
def test_a_body_that_is_not_whole_goes_no_further(through, headers, body):
    through.recorder.got.clear()
    with through.connected() as connection, connection.makefile("rb") as stream:
        connection.sendall(through.head(b"POST", b"/bulk/contact", headers) + body)
        connection.shutdown(1)
        expect_error(read_message(stream), 400)
    through.ask(b"GET", b"/objects")
    assert [message.start[:4] for message in through.recorder.got] == [b"GET "]


def test_who_expects_to_be_told_to_go_on_is_told(through):
    head = through.head(b"POST", b"/bulk/contact", [b"Content-Length: 3", b"Expect: 100-continue"])
    with through.connected() as connection, connection.makefile("rb") as stream:
        connection.sendall(head)
        assert stream.readline().startswith(b"HTTP/1.1 100")
        stream.readline()
        connection.sendall(b"a\n1")
        assert read_message(stream).start.startswith(b"HTTP/1.1 200")
    assert through.sent().body == b"a\n1"


def test_a_hundred_megabytes_of_json_are_passed_on(through):
    row = b'{"a": "' + b"x" * 1000 + b'"},'
    count = 100_000
    size = len(row) * count + 1
    with through.connected() as connection, connection.makefile("rb") as stream:
        head = [b"Content-Type: application/json", b"Content-Length: %d" % size]
        connection.sendall(through.head(b"POST", b"/contacts/batch", head) + b"[")
        for _ in range(count // 1000):
            connection.sendall(row * 1000)
        assert read_message(stream).start.startswith(b"HTTP/1.1 200")
    assert through.sent().header(b"content-length") == [b"%d" % size]


def test_uploads_are_bounded_and_nothing_else_waits_for_them(through):
    release = threading.Event()
    through.recorder.answer = lambda message: (
        release.wait(60) and answer(200, b'{"id": "9", "status": "CREATED"}')
        if message.start.startswith(b"POST")
        else answer(200, b"[]")
    )
    statuses: list[bytes] = []

    def upload() -> None:
        body = [b"Content-Type: text/csv", b"Content-Length: 3"]
        statuses.append(through.ask(b"POST", b"/bulk/contact", body, b"a\n1").start[9:12])

    through.recorder.got.clear()
    threads = [threading.Thread(target=upload) for _ in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(statuses) >= 12, "the answers to those beyond what is taken")
    assert statuses == [b"503"] * 12
    assert through.ask(b"GET", b"/objects").start[9:12] == b"200"
    release.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [b"200"] * 8 + [b"503"] * 12
