"""What `receiver serve` promises beyond its answers."""

import email
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import debian
import httpx
import pytest
from answering import answering, reply
from cryptography.fernet import Fernet
from nodes import add_instance
from serving import DEADLINE, KEY, SERVE, eventually

from receiver.openconnectors.shapes import BASE
from receiver.openconnectors.signatures import HEADER, sign

BODY = b'{"id": "1", "status": "COMPLETED"}'


def signed(body: bytes, *headers: str) -> bytes:
    lines = ("POST /callbacks/default HTTP/1.1", "Host: x", f"{HEADER}: {sign(body, KEY)}")
    length = f"Content-Length: {len(body)}"
    return "\r\n".join((*lines, length, *headers)).encode() + b"\r\n\r\n" + body


def connections_of(pid: int, port: int) -> int:
    """How many established connections to the port a process holds."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    mine = {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    return len({f"socket:[{inode}]" for inode in mine} & held(pid))


def held(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(link.readlink()))
        except FileNotFoundError:
            continue
    return found


def test_a_client_that_closes_its_own_side_after_its_request_gets_its_answer(framed):
    assert framed.raw(signed(BODY), half_close=True)[0] == 200
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert framed.raw(asked, half_close=True) == (200, b'{"status":"ok"}')


@pytest.mark.parametrize("body", ["Content-Length: 9\r\n\r\nxx", "Content-Length: 9\r\n\r\n"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("POST /callbacks/default HTTP/1.1", (400, "truncated")),
        ("POST /callbacks/default/ HTTP/1.1", (400, "truncated")),
        ("POST /callbacks/default?x HTTP/1.1", (400, "truncated")),
        ("POST /callbacks/default HTTP/1.0", (400, "truncated")),
        ("PUT /callbacks/default HTTP/1.1", (405, "method_not_allowed")),
        ("GET //callbacks/default HTTP/1.1", (405, "method_not_allowed")),
    ],
)
def test_a_body_that_breaks_off_is_answered_however_its_callback_is_written(
    framed, line, expected, body
):
    status, answer = framed.raw(f"{line}\r\nHost: x\r\n{body}".encode(), half_close=True)
    assert (status, json.loads(answer)["code"]) == expected


# Who waited for clients before it ends would not end in time.
PATIENT = (
    sys.executable,
    "-c",
    "from receiver import cli, server; server.OPTIONS['graceful_timeout'] = 600; cli.main()",
    *SERVE[3:],
)


@pytest.mark.slow
def test_told_to_stop_it_answers_who_waits_for_a_job_and_waits_for_no_connection(
    make_database, run
):
    """Neither for idle and stalled ones nor for clients that left before their answer."""
    with run(make_database("sqlite"), PATIENT) as served, ExitStack() as stack:
        for sent in [signed(BODY), signed(BODY)[:-9]] * 10:
            with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE) as gone:
                gone.sendall(sent)
        idle, stalled, waiting = (stack.enter_context(served.client()) for _ in range(3))
        assert idle.call_back(BODY)[0] == 200
        stalled.connection.sock.sendall(b"GET /healthz HT")
        bearer = {"Authorization": f"Bearer {served.token}"}
        waiting.connection.request("GET", "/api/v1/jobs/2?wait=60", headers=bearer)
        for _ in range(3):  # whoever asks later is answered by a worker that has read this
            assert served.is_ready()
        assert not select.select([waiting.connection.sock], [], [], 0)[0]
        served.process.terminate()
        assert waiting.connection.getresponse().status == 404
        assert served.process.wait(DEADLINE) == 0


def test_workers_whose_master_is_gone_end_though_their_connections_are_busy(make_database, run):
    with run(make_database("sqlite"), PATIENT) as served, served.client() as client:
        os.kill(served.master, signal.SIGKILL)
        served.process.wait(DEADLINE)
        soon = time.monotonic() + DEADLINE
        with suppress(OSError, http.client.HTTPException):
            while time.monotonic() < soon:
                assert client.ask("GET", "/healthz")[0] == 200
                client.connection.auto_open = 0
        assert time.monotonic() < soon


@pytest.mark.slow
def test_workers_whose_master_is_gone_end_though_the_vendors_answer_does_not(make_database, run):
    url, key = make_database("sqlite"), Fernet.generate_key().decode()
    add_instance(url, key, "gooddata")
    hasty = tuple(word.replace("600", "1") for word in PATIENT)
    over = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):
            while not over.wait(0.1):
                request.wfile.write(b"x")

    with ExitStack() as stack:
        at = stack.enter_context(answering(drip)) + BASE
        stack.callback(over.set)
        settings = {"RECEIVER_ENCRYPTION_KEYS": key, "OPEN_CONNECTORS_URL": at}
        served = stack.enter_context(run(url, hasty, **settings))
        client = stack.enter_context(served.client())
        secrets = {"Authorization": f"Element gooddata, User {served.token}"}
        client.connection.request("GET", f"{BASE}/objects/contact/metadata", headers=secrets)
        assert client.connection.getresponse().read(1) == b"x"
        workers = served.workers
        os.kill(served.master, signal.SIGKILL)
        served.process.wait(DEADLINE)
        eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))


@pytest.mark.slow
def test_after_a_worker_has_ended_the_next_one_starts_and_both_answer(make_database, run):
    with run(make_database("sqlite"), (*SERVE, "--workers", "2")) as served:
        eventually(lambda: len(served.workers) == 2)
        ended = served.workers[0]
        os.kill(ended, signal.SIGTERM)
        eventually(lambda: ended not in served.workers and len(served.workers) == 2)
        for number in range(50):
            with served.client() as client:
                assert client.call_back(b'{"id": "%d", "status": "CREATED"}' % number)[0] == 200
        assert served.terminate() == 0


def test_no_more_connections_are_held_than_are_set(make_database, run):
    options = ("-c", "deploy/gunicorn.conf.py", "-w", "1", "--worker-connections", "4")
    command = (sys.executable, "-m", "gunicorn", *options, "--bind", "127.0.0.1:0", "wsgi:app")
    with run(make_database("sqlite"), command) as served, ExitStack() as stack:
        (worker,) = served.workers
        eventually(lambda: connections_of(worker, served.port) == 0)
        clients = [stack.enter_context(served.client()) for _ in range(4)]
        assert {client.ask("GET", "/healthz")[0] for client in clients} == {200}
        with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE) as fifth:
            assert fifth.recv(1) == b""


def test_a_target_in_absolute_form_is_answered_like_its_path(framed):
    assert framed.raw(signed(BODY).replace(b" /c", b" http://x/c", 1))[0] == 200
    asked = b"GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert framed.raw(asked) == (200, b'{"status":"ok"}')
    bearer = f"Authorization: Bearer {framed.token}"
    asked = f"GET http://x/api/v1/jobs?limit=1 HTTP/1.1\r\nHost: x\r\n{bearer}\r\n\r\n"
    status, content = framed.raw(asked.encode())
    assert (status, list(json.loads(content))) == (200, ["jobs", "next"])


def test_outside_a_clone_and_under_another_worker_no_header_changes_a_path(make_database, run):
    command = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "receiver.wsgi:app")
    with run(make_database("sqlite"), command) as served:
        for header in ("SCRIPT_NAME", "PATH_INFO", "X-Forwarded-Prefix", "X-Original-URL"):
            asked = f"GET /callbacks/metrics HTTP/1.1\r\nHost: x\r\n{header}: /callbacks\r\n\r\n"
            assert served.raw(asked.encode())[0] == 405
        assert served.raw(signed(BODY))[0] == 200


AROUND = {
    **dict.fromkeys((b" ", b"\t", b" \t  \t"), 200),  # no part of a value: RFC 9110, 5.5
    **dict.fromkeys((b"\x0b", b"\x0c", b"\x1f", b"\0"), 400),  # of no value
    **dict.fromkeys((b"\x85", b"\xa0", b"\xc2\xa0", b",", b'"'), 401),  # of another value
}


@pytest.mark.parametrize(
    "command",
    [SERVE, (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "wsgi:app")],
    ids=["serve", "wsgi:app"],
)
def test_blanks_around_a_signature_are_none_of_it_and_nothing_else_is_a_blank(
    make_database, run, command
):
    value = f": {sign(BODY, KEY)}".encode()
    with run(make_database("sqlite"), command) as served:
        for version in (b"HTTP/1.1", b"HTTP/1.0"):
            request = signed(BODY).replace(b"HTTP/1.1", version)
            for odd, status in AROUND.items():
                before, after = b":" + odd + value[2:], value + odd
                sent = {served.raw(request.replace(value, each))[0] for each in (before, after)}
                assert sent == {status}, (odd, version)


@contextmanager
def silent_vendor() -> Iterator[str]:
    """Takes connections and answers nothing; gives its base URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/elements/api-v2"


PROBES = ("/healthz", "/readyz", "/metrics", "/api/v1/summary", "/api/v1/jobs")
STATUS = "GET /elements/api-v2/bulk/{}/status HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\n\r\n"
FORM = b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\ntoken="


@pytest.mark.slow
def test_probes_and_the_api_wait_neither_for_the_vendor_nor_for_bodies(make_database, run):
    url, secret = make_database("sqlite"), Fernet.generate_key().decode()
    add_instance(url, secret, "gooddata")
    with silent_vendor() as vendor, ExitStack() as stack:
        settings = {"OPEN_CONNECTORS_URL": vendor, "RECEIVER_ENCRYPTION_KEYS": secret}
        served = stack.enter_context(run(url, (*SERVE, "--workers", "1"), **settings))
        element = f"Element gooddata, User {served.token}"
        for number in range(40):
            address = ("127.0.0.1", served.port)
            asking = stack.enter_context(socket.create_connection(address, timeout=DEADLINE))
            asking.sendall(STATUS.format(number, element).encode())
            unfinished = stack.enter_context(socket.create_connection(address, timeout=DEADLINE))
            unfinished.sendall(FORM)
        bearer = {"Authorization": f"Bearer {served.token}"}
        with served.client() as client:
            answers = {path: client.ask("GET", path, headers=bearer.items()) for path in PROBES}
        assert {path: status for path, (status, _) in answers.items()} == dict.fromkeys(PROBES, 200)


QUESTIONS = (
    "/jobs",
    "/jobs?limit=2",
    "/jobs?limit=2&outcome=succeeded&outcome=failed",
    "/jobs?instance=default&q=1",
    "/jobs?instance=another",
    "/jobs?limit=0",
    "/jobs?nonsense=1",
    "/jobs?cursor=x",
    "/jobs/",
    "/jobs/1",
    "/jobs/1?instance=default",
    "/jobs/1?instance=another",
    "/jobs/1?wait=0",
    "/jobs/1?wait=61",
    "/jobs/1?nonsense=1",
    "/jobs/%31",
    "/jobs/1%2Fevents",
    "/jobs/1/",
    "/jobs/1/events",
    "/jobs/none",
    "/jobs/%00",
    "/jobs/%ff",
    "/jobs/%E2%82%AC",
)
COMPARED = ("content-type", "etag", "link", "cache-control", "www-authenticate", "content-length")


@pytest.mark.slow
def test_jobs_are_told_alike_with_a_web_framework_and_without(make_database, run):
    url = make_database("sqlite")
    threads = (sys.executable, "-m", "gunicorn", "-k", "gthread", "--bind", "127.0.0.1:0")
    with run(url, SERVE) as bare, run(url, (*threads, "wsgi:app")) as flask:
        with bare.client() as client:
            for number in range(5):
                body = BODY.replace(b'"1"', b'"%d"' % number)
                assert client.call_back(body)[0] == 200

        def told(port: int, path: str, headers: dict[str, str]) -> tuple[int, bytes, list[str]]:
            asking = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
            asking.request("GET", f"/api/v1{path}", headers=headers)
            answer = asking.getresponse()
            content = answer.status, answer.read(), [answer.headers[name] for name in COMPARED]
            asking.close()
            return content

        known, unknown = ({"Authorization": f"Bearer {it}"} for it in (bare.token, "x"))
        for mine in (known, unknown, {}):
            for path in QUESTIONS:
                answers = [told(each.port, path, mine) for each in (bare, flask)]
                assert answers[0] == answers[1], path
        tag = told(bare.port, "/jobs/1", known)[2][1]
        again = [
            told(each.port, "/jobs/1", {**known, "If-None-Match": tag}) for each in (bare, flask)
        ]
        assert again[0] == again[1]
        assert again[0][:2] == (304, b"")


# Only the first one is plain enough to be answered without a task.
QUESTION = "GET /api/v1/jobs/%s HTTP/1.1\r\nHost: x\r\n"
WAYS = {
    "plain": QUESTION % 71,
    "escaped": QUESTION % "7%31",
    "an older version": (QUESTION % 71).replace("1.1", "1.0"),
    "with a body": QUESTION % 71 + "Content-Length: 1\r\n",
    "with an empty body": QUESTION % 71 + "Transfer-Encoding: chunked\r\n",
    "the last one": QUESTION % 71 + "Connection: close\r\n",
    "absolute": (QUESTION % 71).replace("/api", "http://x/api"),
    "with a wait": QUESTION % "71?wait=1",
}
BODIES = {"with a body": "x", "with an empty body": "0\r\n\r\n"}


def answers(framed, *questions: str, half_close: bool = False) -> list[tuple[int, bytes, object]]:
    """Send questions at once; give for each (status, body, headers)."""
    with socket.create_connection(("127.0.0.1", framed.port), timeout=DEADLINE) as connection:
        connection.sendall("".join(questions).encode())
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        found = []
        with connection.makefile("rb") as incoming:
            for _ in questions:
                status = int(incoming.readline().split()[1])
                headers = email.message_from_bytes(b"".join(iter(incoming.readline, b"\r\n")))
                content = incoming.read(int(headers.get("Content-Length", 0)))
                assert headers["X-Request-ID"]
                for name in ("Date", "X-Request-ID", "Connection"):
                    del headers[name]
                found.append((status, content, sorted((k.lower(), v) for k, v in headers.items())))
        return found


def test_a_question_is_answered_alike_however_it_is_written(framed):
    with framed.client() as client:
        assert client.call_back(b'{"id": "71", "status": "COMPLETED"}')[0] == 200
    bearer = f"Authorization: Bearer {framed.token}\r\n"
    for headers, status in ((bearer, 200), ("", 401), (bearer + "If-None-Match: *\r\n", 304)):
        asked = [f"{way}{headers}\r\n{BODIES.get(name, '')}" for name, way in WAYS.items()]
        (expected,) = answers(framed, asked[0])
        assert expected[0] == status
        for question in asked[1:]:
            assert answers(framed, question) == [expected], question
        assert answers(framed, asked[0], half_close=True) == [expected]
        assert answers(framed, *[asked[0]] * 3, asked[1], asked[0]) == [expected] * 5


@pytest.mark.parametrize("megabytes", [3, 30])
def test_who_uploads_a_large_file_with_a_wrong_token_is_told_so(framed, tmp_path, megabytes):
    """Though what was not read of a request resets its connection once it is closed."""
    url = f"http://127.0.0.1:{framed.port}/elements/api-v2/bulk/contact"
    wrong, file = "Element default, User wrong", tmp_path / "large.csv"
    file.write_bytes(bytes(megabytes * 2**20))
    with file.open("rb") as sent:
        form, headers = {"file": sent}, {"Authorization": wrong}

        def asked() -> httpx.Response | None:
            sent.seek(0)
            with suppress(httpx.TransportError):
                return httpx.post(
                    url, files=form, headers=headers, trust_env=False, timeout=DEADLINE
                )
            return None

        # What is left of a file is read for so long only: on a busy machine, ask again.
        answer = eventually(asked, "the refusal")
    assert (answer.status_code, "no such token" in answer.json()["message"]) == (401, True)
    words = ("--silent", "--write-out", "%{http_code}", "--output", str(tmp_path / "answer"))
    sending = ("--header", "Expect:", "--header", f"Authorization: {wrong}", "--form")
    curl = [
        debian.program("curl"),
        "--disable",
        *words,
        *sending,
        f"file=@{file}",
        "--noproxy",
        "*",
        url,
    ]

    def told() -> str:
        ran = subprocess.run(curl, capture_output=True, text=True, timeout=DEADLINE, check=False)
        return ran.stdout

    eventually(lambda: told() == "401", "the refusal")


def break_off(request: BaseHTTPRequestHandler) -> None:
    """Answer as a vendor with the head of a file and its first bytes."""
    head = {"Content-Type": "text/csv", "Content-Length": "1000000"}
    reply(request, 200, b"email,name\n" * 10_000, head)


@pytest.mark.parametrize("worker", [(), ("-k", "gthread")], ids=["ours", "gthread"])
def test_the_deployed_configuration_answers_alike_and_says_when_a_result_broke_off(
    make_database, run, worker
):
    url, secret = make_database("sqlite"), Fernet.generate_key().decode()
    add_instance(url, secret, "gooddata")
    command = (sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", *worker)
    bind = ("-w", "1", "--bind", "127.0.0.1:0", "wsgi:app")
    with answering(break_off) as vendor:
        settings = {"OPEN_CONNECTORS_URL": f"{vendor}{BASE}", "RECEIVER_ENCRYPTION_KEYS": secret}
        with run(url, (*command, *bind), **settings) as served:
            with served.client() as client:
                assert client.call_back(BODY)[0] == 200
                assert client.ask("POST", "/callbacks/default", b"x")[0] == 401
                assert client.ask("PUT", "/callbacks/default", b"x")[0] == 405
            assert served.get("/jobs/1")["outcome"] == "succeeded"
            with served.client() as client:
                asked = {"Authorization": f"Element gooddata, User {served.token}"}
                with pytest.raises(http.client.IncompleteRead):
                    client.ask("GET", "/elements/api-v2/bulk/1/contact", headers=asked.items())
            with served.client() as client:
                assert client.ask("GET", "/healthz")[0] == 200
            assert served.terminate() == 0
    told = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert {"started", "stopped"} <= {line["event"] for line in told}
    (trouble,) = [line for line in told if "broke off" in line["event"]]
    assert (trouble["instance"], trouble["job"]) == ("gooddata", "1")
