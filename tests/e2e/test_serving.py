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


def test_told_to_stop_it_does_not_wait_for_idle_connections(make_database, run):
    with run(make_database("sqlite"), SERVE) as served, ExitStack() as stack:
        idle, stalled = (stack.enter_context(served.client()) for _ in range(2))
        assert idle.ask("GET", "/healthz")[0] == 200
        stalled.connection.sock.sendall(b"GET /healthz HT")
        served.process.terminate()
        assert served.process.wait(15) == 0  # graceful_timeout is 25


def test_clients_that_were_gone_before_their_answer_leave_no_connection_behind(make_database, run):
    with run(make_database("sqlite"), SERVE) as served:
        for sent in [signed(BODY), signed(BODY)[:-9]] * 10:
            with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE) as gone:
                gone.sendall(sent)
        with served.client() as client:
            assert client.call_back(BODY)[0] == 200
        served.process.terminate()
        assert served.process.wait(15) == 0


def test_workers_whose_master_is_gone_end_though_their_connections_are_busy(make_database, run):
    with run(make_database("sqlite"), SERVE) as served, served.client() as client:
        os.kill(served.master, signal.SIGKILL)
        served.process.wait(DEADLINE)
        soon = time.monotonic() + 15  # graceful_timeout is 25
        with suppress(OSError, http.client.HTTPException):
            while time.monotonic() < soon:
                assert client.ask("GET", "/healthz")[0] == 200
                client.connection.auto_open = 0
        assert time.monotonic() < soon


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
