"""What must hold on a running receiver, whatever is sent and whatever dies."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import debian
import pytest
from builders import bulk, examples
from nodes import DEADLINE, KEY, SERVE, stored
from sqlalchemy import create_engine, text

from receiver.openconnectors.signatures import HEADER, sign


def kept(served: Any) -> list[bytes]:
    return stored(served.database_url)


# --- equal deliveries at the same instant


def worker_of(port: int, client_port: int, workers: list[int]) -> int | None:
    """Which worker holds the server's side of a connection."""
    ends = f"0100007F:{port:04X} 0100007F:{client_port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    inodes = {f"socket:[{line.split()[9]}]" for line in lines if ends in line}
    for pid in workers:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(descriptor.readlink()) in inodes:
                    return pid
            except OSError:
                continue
    return None


def connected_to(worker: int, served: Any) -> Any:
    """A kept-alive connection to this very worker."""
    for _ in range(200):
        client = served.client()
        client.ask("GET", "/healthz")
        mine = client.connection.sock.getsockname()[1]
        if worker_of(served.port, mine, served.workers) == worker:
            return client
        client.connection.close()
    return pytest.fail(f"200 connections, and none to worker {worker}")


@pytest.mark.slow
def test_of_5000_pairs_at_the_same_instant_at_two_workers_each_is_one_event(served):
    lanes, pairs = 8, 625
    one, other = served.workers
    clients = [(connected_to(one, served), connected_to(other, served)) for _ in range(lanes)]
    starts = [threading.Barrier(2, timeout=DEADLINE) for _ in range(lanes)]

    def send(place: tuple[int, int]) -> list[tuple[int, str, bool]]:
        lane, side = place
        answers = []
        for turn in range(pairs):
            body = bulk(f"{lane}-{turn}")
            starts[lane].wait()
            status, said = clients[lane][side].call_back(body)
            answers.append((status, said.get("event"), said.get("duplicate")))
        return answers

    places = [(lane, side) for lane in range(lanes) for side in (0, 1)]
    with ThreadPoolExecutor(len(places)) as threads:
        answers = [answer for lane in threads.map(send, places) for answer in lane]
    for pair in clients:
        for client in pair:
            client.connection.close()
    assert Counter(status for status, _, _ in answers) == {200: 2 * lanes * pairs}
    assert Counter(duplicate for _, _, duplicate in answers) == {
        False: lanes * pairs,
        True: lanes * pairs,
    }
    assert set(Counter(event for _, event, _ in answers).values()) == {2}
    events = served.all_of("events")
    assert (len(events), {event["deliveries"] for event in events}) == (lanes * pairs, {2})


# --- durable before it is acknowledged


LOGS = {"sqlite": ".db-wal", "postgresql18": "/pg_wal/"}  # what the path of each has in it


@pytest.mark.parametrize("kind", LOGS)
def test_each_acknowledgement_comes_after_a_sync_that_began_after_its_request(
    make_database, syncing, run, tmp_path, kind
):
    debian.program("strace")
    trace, traced = tmp_path / "trace", examples(2000)
    url = syncing(make_database(kind))
    with (
        run(url, (*SERVE, "--bind", "127.0.0.1:0", "--workers", "1")) as served,
        served.client() as client,
    ):
        assert client.call_back(bulk("first"))[0] == 200
        with tracing([*served.workers, *processes_of(url)], trace):
            for number in range(traced):
                assert client.call_back(bulk(str(number)))[0] == 200
    seen = syncs_before_answers(trace.read_text(errors="replace").splitlines(), LOGS[kind])
    assert len(seen) == traced
    assert [number for number, synced in enumerate(seen) if not synced] == []


@contextmanager
def tracing(processes: list[int], trace: Path) -> Iterator[None]:
    """Write down what running processes, and those they start, sync, send and receive."""
    calls = "trace=fdatasync,fsync,sendto,sendmsg,write,writev,recvfrom,recvmsg,read"
    command = ["strace", "-f", "-y", "-s", "160", "-e", calls, "-o", str(trace)]
    attached = [word for pid in processes for word in ("-p", str(pid))]
    with subprocess.Popen([*command, *attached], stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr
        waiting = set(map(str, processes))
        while waiting and (line := strace.stderr.readline()):
            if "Operation not permitted" in line:
                strace.kill()
                pytest.skip("strace may not look at processes that it did not start")
            # Of PostgreSQL's, one may end before its turn.
            for found in re.findall(r"Process (\d+) attached|\b(\d+)\): No such", line):
                waiting -= set(found)
        assert not waiting
        threading.Thread(target=strace.stderr.read, daemon=True).start()
        yield
        strace.send_signal(signal.SIGINT)


def processes_of(url: str) -> list[int]:
    """PostgreSQL's: all that serve a database; for a file there are none."""
    if url.startswith("sqlite"):
        return []
    engine = create_engine(url)
    with engine.connect() as connection:
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
        told = Path(f"/proc/{backend}/status").read_text()
    engine.dispose()
    server = re.search(r"PPid:\s*(\d+)", told)[1]
    children = Path(f"/proc/{server}/task/{server}/children").read_text()
    return [int(server), *map(int, children.split())]


def syncs_before_answers(lines: list[str], log: str) -> list[bool]:
    """For each 200 to a callback: whether the log was synced between request and answer."""
    answers: list[bool] = []
    began: dict[str, bool] = {}  # thread: its sync began after the request
    asked = synced = False
    for line in lines:
        thread, _, call = line.partition(" ")
        call = call.lstrip()
        if "POST /callbacks/default HTTP" in call and re.match(r"(<\.\.\. )?(recv|read)", call):
            asked, synced = True, False
            began.clear()
        elif re.match(r"f(data)?sync\(", call) and log in call:
            if call.endswith("= 0"):
                synced = asked
            began[thread] = asked
        elif re.match(r"<\.\.\. f(data)?sync resumed", call) and call.endswith("= 0"):
            synced = synced or began.get(thread, False)
        elif asked and "HTTP/1.1 200" in call and re.match(r"(send|write)", call):
            answers.append(synced)
            asked = synced = False
    return answers


def test_an_answer_without_a_sync_would_be_noticed():
    seen = partial(syncs_before_answers, log=".db-wal")
    request = '7 recvfrom(9<TCP:[1]>, "POST /callbacks/default HTTP/1.1", 8192, 0, NULL, NULL) = 99'
    answer = '7 sendto(9<TCP:[1]>, "HTTP/1.1 200 OK", 300, 0, NULL, 0) = 300'
    sync = "8 fdatasync(5</x/receiver-0.db-wal>) = 0"
    halves = [
        "8 fdatasync(5</x/receiver-0.db-wal> <unfinished ...>",
        "8 <... fdatasync resumed>) = 0",
    ]
    assert seen([request, sync, answer]) == [True]
    assert seen([request, *halves, answer]) == [True]
    assert seen([request, answer]) == [False]
    assert seen([sync, request, answer, sync]) == [False]
    assert seen([halves[0], request, halves[1], answer]) == [False]
    assert seen([request, halves[0], answer, halves[1]]) == [False]
    assert seen([request, sync.replace("= 0", "= -1 EIO"), answer]) == [False]


# --- other ways to run it


def send_all(served: Any, bodies: list[bytes], lanes: int) -> Counter[int]:
    def send(lane: int) -> list[int]:
        with served.client() as client:
            return [client.call_back(body)[0] for body in bodies[lane::lanes]]

    with ThreadPoolExecutor(lanes) as threads:
        return Counter(status for lane in threads.map(send, range(lanes)) for status in lane)


def gunicorn(*options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *options, "wsgi:app")


@pytest.mark.slow
def test_under_gevent_2000_callbacks_are_all_kept(make_database, run):
    bodies = [bulk(str(number)) for number in range(2000)]
    with run(make_database("sqlite"), gunicorn("-k", "gevent", "-w", "2")) as served:
        assert send_all(served, bodies, 16) == {200: 2000}
        assert len(served.workers) == 2
        assert served.terminate() == 0
    assert Counter(kept(served)) == Counter(bodies)


@pytest.mark.slow
def test_under_a_plain_gunicorn_callbacks_are_kept(make_database, run):
    bodies = [bulk(str(number)) for number in range(100)]
    with run(make_database("sqlite"), gunicorn()) as served:
        for body in bodies:  # a sync worker closes each connection after its answer
            with served.client() as client:
                assert client.call_back(body)[0] == 200
        assert served.terminate() == 0
    assert Counter(kept(served)) == Counter(bodies)


# --- framing, straight to gunicorn; what is hostile of it is in hostile/


def request(
    body: bytes,
    *headers: str,
    path: str = "/callbacks/default",
    signature: str | None = None,
    length: int | None = None,
) -> bytes:
    """A request as bytes, signed rightly; without `headers` that say otherwise, with its length."""
    chunked = any(header.startswith("Transfer-Encoding") for header in headers)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: receiver",
        f"{HEADER}: {signature or sign(body, KEY)}",
        *([] if chunked else [f"Content-Length: {len(body) if length is None else length}"]),
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CHUNKED = "Transfer-Encoding: chunked"


def expect_kept(framed: Any, sent: bytes, body: bytes) -> None:
    status, content = framed.raw(sent)
    assert status == 200
    assert framed.get_bytes(f"/events/{json.loads(content)['event']}/body") == (200, body)


@pytest.mark.parametrize("path", ["/callbacks/default", "/callbacks/default/"])
def test_headers_are_stored_with_their_event_by_the_short_way_and_the_general_one(path, framed):
    body = bulk(f"headers of {path}")
    headers = ("Elements-Webhook-Id: w-1", "X-Twice: a", "x-twice: b", "X-Token: s3cret")
    status, content = framed.raw(request(body, *headers, path=path) + body)
    assert status == 200
    event = framed.get(f"/events/{json.loads(content)['event']}")
    assert (event["webhook_id"], event["peer"]) == ("w-1", "127.0.0.1")
    assert event["headers"] == {
        "host": "receiver",
        HEADER.lower(): sign(body, KEY),
        "content-length": str(len(body)),
        "elements-webhook-id": "w-1",
        "x-twice": "a, b",
        "x-token": "[masked]",
    }


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_chunked_body_is_kept_byte_for_byte(size, framed):
    body = bytes(range(256)) * 16
    expect_kept(framed, request(body, CHUNKED) + in_chunks(body, size), body)


def test_a_body_of_just_the_limit_is_kept_and_one_more_byte_is_413(framed):
    body = os.urandom(4096)
    expect_kept(framed, request(body) + body, body)
    for longer in (body + b"x", os.urandom(1_000_000)):
        assert framed.raw(request(longer, CHUNKED) + in_chunks(longer, 1000))[0] == 413
        assert framed.raw(request(longer) + longer)[0] == 413
    assert framed.raw(request(body, length=10**15))[0] == 413
    form = b"POST /api/v1/subscriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n"
    status, problem = framed.raw(form + bytes(2**20 + 1))
    assert (status, b"more than 1048576 bytes" in problem) == (413, True)
    assert body[:4096] in kept(framed)
    assert max(map(len, kept(framed))) == 4096


ENCODED = {
    "a form": (b"id=1&status=COMPLETED", "Content-Type: application/x-www-form-urlencoded"),
    "a multipart form": (b"--x\r\n\r\n1\r\n--x--", "Content-Type: multipart/form-data; boundary=x"),
    "gzip": (gzip.compress(bulk("gzip"), mtime=0), "Content-Encoding: gzip"),
    "not gzip at all": (b"not gzip", "Content-Encoding: gzip"),
    "text in UTF-16": (bulk("utf-16"), "Content-Type: application/json; charset=utf-16"),
    "no type": (b"no type", "Content-Type:"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_only_the_raw_bytes_count_whatever_the_headers_call_them(name, framed):
    body, header = ENCODED[name]
    expect_kept(framed, request(body, header) + body, body)
    expect_kept(framed, request(body, header, CHUNKED) + in_chunks(body, 5), body)


def test_what_follows_a_refused_body_is_not_taken_for_a_request(framed):
    hidden = bulk("hidden")
    inner = request(hidden) + hidden
    for outer in (
        request(inner, length=10**9) + inner,
        request(inner, signature="sha256=") + inner,
    ):
        assert framed.raw(outer)[0] in {401, 413}
    assert hidden not in kept(framed)


def test_after_all_that_a_good_callback_is_kept_and_the_node_is_ready(framed):
    with framed.client() as client:
        assert client.call_back(bulk("good"))[0] == 200
    assert framed.is_ready()
