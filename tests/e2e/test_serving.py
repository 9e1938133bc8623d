"""What `receiver serve` promises beyond its answers; what receiver/worker.py mends in gunicorn."""

import http.client
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from conftest import DEADLINE, KEY, SERVE, eventually

from receiver.signatures import HEADER, sign

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


# Who waited for clients before it ends would not end in time.
PATIENT = (
    sys.executable,
    "-c",
    "from receiver import cli, serving; serving.OPTIONS['graceful_timeout'] = 600; cli.main()",
    *SERVE[3:],
)


def test_told_to_stop_it_does_not_wait_for_idle_connections(make_database, run):
    with run(make_database("sqlite"), PATIENT) as served, ExitStack() as stack:
        idle, stalled = (stack.enter_context(served.client()) for _ in range(2))
        assert idle.ask("GET", "/healthz")[0] == 200
        stalled.connection.sock.sendall(b"GET /healthz HT")
        served.process.terminate()
        assert served.process.wait(DEADLINE) == 0


def test_clients_that_were_gone_before_their_answer_leave_no_connection_behind(make_database, run):
    with run(make_database("sqlite"), PATIENT) as served:
        for sent in [signed(BODY), signed(BODY)[:-9]] * 10:
            with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE) as gone:
                gone.sendall(sent)
        with served.client() as client:
            assert client.call_back(BODY)[0] == 200
        served.process.terminate()
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


@pytest.mark.parametrize("worker", ["receiver.worker.Worker", "gthread"])
def test_the_deployed_configuration_answers_alike(make_database, run, worker):
    command = (sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "-k", worker)
    with run(make_database("sqlite"), (*command, "--bind", "127.0.0.1:0", "wsgi:app")) as served:
        with served.client() as client:
            assert client.call_back(BODY)[0] == 200
            assert client.ask("POST", "/callbacks/default", b"x")[0] == 401
            assert client.ask("PUT", "/callbacks/default", b"x")[0] == 405
        assert served.get("/jobs/1")["outcome"] == "succeeded"
        assert served.terminate() == 0


def test_a_kept_connection_serves_one_request_after_another(framed):
    with socket.create_connection(("127.0.0.1", framed.port), timeout=DEADLINE) as connection:
        connection.sendall(signed(BODY) * 3)  # pipelined
        answers = []
        for _ in range(3):
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answers.append((answer.status, answer.read(int(answer.headers["Content-Length"]))))
    assert [status for status, _ in answers] == [200, 200, 200]


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
