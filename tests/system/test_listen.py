"""`receiver listen` and many streams on a real server: nothing is lost, and nobody is held up."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPException
from pathlib import Path

import commands
import pytest
from nodes import DEADLINE, KEY, Node, eventually, make_token, outcome_of, running_nodes, stored
from processes import free_port, own_environment
from proxies import INSIDE
from senders import direct, post
from targets import hook

from receiver.client import AsyncClient, Callback, ClientError
from receiver.openconnectors.signatures import sign

LANES = 5  # each sends ten callbacks a second, about a job of its own
STREAMS = 40


@contextmanager
def load(port: int) -> Iterator[list[bytes]]:
    """Send callbacks; each is sent until it was answered 200, and then the next of its job."""
    end, answered = threading.Event(), []

    def send(lane: int) -> None:
        turn = 0
        while not end.wait(0.1):
            body = json.dumps({"id": f"{lane}", "status": "RUNNING", "turn": turn}).encode()
            try:
                # Closed here: what a sender left to the collector would fail the test.
                with closing(direct(port)) as client:
                    if post(client, body, **{"X-Odd": "a\x85b "}) == 200:
                        answered.append(body)
                        turn += 1
            except (OSError, HTTPException):
                pass  # the receiver is away, or was killed while it answered

    threads = [threading.Thread(target=send, args=(lane,)) for lane in range(LANES)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        end.set()
        for thread in threads:
            thread.join()


@contextmanager
def listening(node: Node, *words: str) -> Iterator[Path]:
    """`receiver listen` in a process of its own; give where it writes. Ctrl-C ends it."""
    token = node.folder / "token"
    token.write_text(make_token(node.database_url))
    url = f"http://127.0.0.1:{node.port}"
    environment = own_environment(RECEIVER_URL=url, RECEIVER_TOKEN_FILE=str(token))
    written = node.folder / "listen.log"
    with written.open("wb") as output:
        command = [sys.executable, "-m", "receiver", "listen", *words]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            eventually(lambda: "listening" in written.read_text(), "a stream")
            yield written
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(DEADLINE)
    assert code == 130, written.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "restarts"), [("postgresql18", 2), ("sqlite", 10)])
def test_a_receiver_restarted_under_load_loses_no_event_on_the_way_to_the_program(
    kind, restarts, tmp_path, make_database
):
    port, url = free_port(), make_database(kind)
    with (
        running_nodes(url, tmp_path, 1, workers=2) as [node],
        listening(node, "--forward-to", f"http://127.0.0.1:{port}/hook") as written,
        ExitStack() as stack,
    ):
        with load(node.port) as answered:
            eventually(lambda: "trying again" in written.read_text(), "a program that is away")
            target = stack.enter_context(hook(port))
            for turn in range(restarts):
                count = len(answered)
                eventually(lambda count=count: len(answered) > count + 20)
                (node.kill if turn % 2 else node.terminate)()
                node.start()
                node.wait()
        # What was answered 503 may be stored after that: the last body of a lane, too.
        eventually(lambda: len(target.posted) >= len(stored(url)), "the last event")
        bodies, came = stored(url), [body for _, body in target.posted]
        assert sorted(came) == sorted(bodies)
        assert set(came) >= set(answered)
        for lane in range(LANES):
            turns = [one["turn"] for one in map(json.loads, came) if one["id"] == str(lane)]
            assert turns == sorted(turns)
        assert {headers["elements-webhook-signature"] for headers, _ in target.posted} == {
            sign(body, KEY) for body in bodies
        }
        assert {headers["x-odd"] for headers, _ in target.posted} == {"a\x85b"}
        eventually(lambda: written.read_text().count("  204 in ") == len(bodies))


@pytest.mark.slow
def test_the_async_client_goes_on_after_a_receiver_that_died(tmp_path, make_database):
    troubles: list[ClientError] = []

    async def follow(node: Node) -> list[bytes]:
        def call_back() -> None:
            with closing(direct(node.port)) as client:
                assert post(client, b'{"id":"1","status":"RUNNING","n":%d}' % len(troubles)) == 200

        url, bodies = f"http://127.0.0.1:{node.port}", []
        async with AsyncClient(url, make_token(node.database_url)) as client:
            async for event in client.events(on_begin=call_back, on_trouble=troubles.append):
                assert isinstance(event, Callback)
                bodies.append(event.body[-4:])
                if troubles:
                    return bodies
                node.kill()
                node.start()
                node.wait()
        return bodies

    with running_nodes(make_database("sqlite"), tmp_path, 1, workers=2) as [node]:
        assert outcome_of(follow(node)) == [b'":0}', b'":1}']
    assert [trouble.code for trouble in troubles] == ["unreachable"]


def test_what_cannot_be_followed_or_forwarded_to_is_said_at_once(tmp_path):
    (tmp_path / "token").write_text("rcv_x")
    nowhere = f"http://127.0.0.1:{free_port()}"
    environment = {"RECEIVER_URL": nowhere, "RECEIVER_TOKEN_FILE": "token"}
    for url in ("localhost:3000", "ftp://localhost/", "http://:80/", "http://me:secret@localhost/"):
        done = commands.run(("listen", "--forward-to", url), tmp_path, environment)
        assert (done.returncode, "secret" in done.stderr) == (2, False), url
    done = commands.run(("listen",), tmp_path, environment)
    assert (done.returncode, nowhere in done.stderr) == (6, True)


def test_forty_idle_streams_hold_up_nobody_and_end_with_the_server(tmp_path, make_database):
    with running_nodes(make_database("sqlite"), tmp_path, 1) as [node], ExitStack() as stack:
        token = make_token(node.database_url)
        ask = f"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        held = []
        for _ in range(STREAMS):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", node.port), DEADLINE))
            one.sendall(ask.encode())
            assert one.recv(4096).startswith(b"HTTP/1.1 200")
            held.append(one)
        client = stack.enter_context(closing(direct(node.port)))
        for path in ("/healthz", "/readyz"):
            client.request("GET", path)
            answer = client.getresponse()
            assert (answer.read(), answer.status)[1] == 200
        assert post(client, b'{"id":"1","status":"RUNNING"}') == 200
        received = [until(one, b"event.received") for one in held]
        node.terminate()
        ends = [before + until(one) for before, one in zip(received, held, strict=True)]
        assert all(end.endswith(b"0\r\n\r\n") for end in ends)


def until(connection: socket.socket, words: bytes | None = None) -> bytes:
    """Receive until these words have come, or to the end."""
    received = b""
    while (words is None or words not in received) and (piece := connection.recv(65_536)):
        received += piece
    return received


def test_events_come_through_a_proxy_while_the_stream_goes_on(site):
    headers = {"Host": INSIDE, "Authorization": f"Bearer {make_token(site.database_url)}"}
    body = b'{"id":"%b","status":"RUNNING"}' % os.urandom(6).hex().encode()
    with closing(site.proxy.client(site.proxy.inside, host=INSIDE)) as client:
        client.request("GET", "/api/v1/stream", headers=headers)
        stream = client.getresponse()
        with closing(site.proxy.client()) as sender:
            assert post(sender, body) == 200
        received = b""
        while b64encode(body) not in received:
            received += stream.read1()
        stream.close()
