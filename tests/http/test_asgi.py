"""Flask behind the event loop: answers are whole, and clients that leave take nothing with them."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest
from flask import Response
from nodes import outcome_of

from receiver.errors import BodyTruncated
from receiver.server import FairLoop, Worker
from receiver.web import ops
from receiver.web.asgi import Application, messages
from receiver.web.ops import PROBES, READYZ

DEADLINE = 60  # seconds; only a broken adapter needs them


def scope(path: str) -> dict[str, object]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"x")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


async def nothing() -> dict[str, object]:
    """The client stays, and sends no more."""
    await asyncio.sleep(DEADLINE)
    return {"type": "http.disconnect"}


async def messages_of(application: Application, path: str) -> list[dict]:
    told: list[dict] = []

    async def send(message: dict) -> None:
        told.append(message)

    await asyncio.wait_for(application(scope(path), nothing, send), DEADLINE)
    return told


def test_disconnect_frees_the_thread(receiver):
    ended = threading.Event()

    @receiver.app.get("/endless")
    def endless() -> Response:
        def pieces() -> Iterator[bytes]:
            try:
                while True:
                    yield b"more"
            finally:
                ended.set()

        return Response(pieces())

    async def leave() -> int:
        application, sent = Application(receiver.app, threads=1), asyncio.Event()

        async def send(message: dict) -> None:
            if message["type"] == "http.response.body":
                sent.set()

        async def receive() -> dict[str, object]:
            await sent.wait()
            return {"type": "http.disconnect"}

        await asyncio.wait_for(application(scope("/endless"), receive, send), DEADLINE)
        return (await messages_of(application, "/"))[0]["status"]

    assert outcome_of(leave()) == 200
    assert ended.wait(DEADLINE)


def test_pieces_of_no_told_length_are_passed_on_as_they_come(receiver):
    first_is_out = threading.Event()

    @receiver.app.get("/slow")
    def slow() -> Response:
        def pieces() -> Iterator[bytes]:
            yield b"first "
            yield b"second" if first_is_out.wait(DEADLINE) else b"too late"

        return Response(pieces())

    async def body() -> bytes:
        gathered = bytearray()

        async def send(message: dict) -> None:
            gathered.extend(message.get("body", b""))
            if gathered:
                first_is_out.set()

        await asyncio.wait_for(
            Application(receiver.app, threads=1)(scope("/slow"), nothing, send), 90
        )
        return bytes(gathered)

    assert outcome_of(body()) == b"first second"


@pytest.mark.parametrize("size", [0, 1, 64 * 1024])
def test_an_answer_of_any_size_is_whole_in_the_order_that_asgi_wants(receiver, size):
    @receiver.app.get("/sized")
    def sized() -> Response:
        return Response(b"x" * size, status=201)

    start, *pieces = outcome_of(messages_of(Application(receiver.app, threads=1), "/sized"))
    assert (start["type"], start["status"]) == ("http.response.start", 201)
    assert b"".join(piece["body"] for piece in pieces) == b"x" * size
    assert [piece.get("more_body", False) for piece in pieces] == [True] * (len(pieces) - 1) + [
        False
    ]


def test_readiness_is_answered_before_the_database_answers(receiver, monkeypatch):
    turns, look = threading.Semaphore(0), PROBES[READYZ]

    def waiting(services):
        assert turns.acquire(timeout=DEADLINE)
        return look(services)

    monkeypatch.setitem(PROBES, READYZ, waiting)
    monkeypatch.setattr(ops, "ANSWER_SECONDS", 0.01)

    async def statuses() -> list[int]:
        application = Application(receiver.app, threads=1)

        async def status() -> int:
            return (await messages_of(application, READYZ))[0]["status"]

        before = await status()
        turns.release()
        async with asyncio.timeout(DEADLINE):
            while await status() != 200:
                pass
        slow = await status()  # as the look before has seen
        monkeypatch.setattr(ops, "LOOK_SECONDS", 0)
        away = await status()
        turns.release()
        return [before, slow, away]

    assert outcome_of(statuses()) == [503, 200, 503]


def test_a_body_of_which_nothing_comes_for_long_is_none(monkeypatch):
    monkeypatch.setattr(messages, "BODY_SECONDS", 0.01)

    async def never() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(BodyTruncated):
        outcome_of(messages.raise_on_disconnect(never)())


def test_a_body_that_drips_is_none(monkeypatch):
    monkeypatch.setattr(messages, "BODY_SECONDS", 0.01)

    async def drip() -> dict[str, object]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        receive = messages.raise_on_disconnect(drip)
        async with asyncio.timeout(60):
            while True:
                await receive()

    monkeypatch.setattr(messages, "MIN_UPLOAD_RATE", 1e9)
    with pytest.raises(BodyTruncated):
        outcome_of(read())


def test_the_time_until_a_body_is_read_is_not_its_senders(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(messages.time, "monotonic", lambda: clock[0])

    async def send() -> dict[str, object]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        receive = messages.raise_on_disconnect(send)
        for _ in range(3):
            clock[0] += 10 * messages.BODY_SECONDS
            assert (await receive())["body"] == b"x"

    outcome_of(read())


def test_a_connection_that_comes_as_the_server_stops_is_asked_to_end_too():
    loop, asked = FairLoop(), asyncio.Event()

    class Protocol(asyncio.Protocol):
        connections = ()

        def shutdown(self) -> None:
            asked.set()

    async def scenario(listening: socket.socket) -> None:
        listener = await loop.create_server(Protocol, sock=listening)
        with socket.create_connection(listening.getsockname()):
            listener._accept()
            listener.close()
            async with asyncio.timeout(60):
                await asked.wait()

    with closing(loop), socket.create_server(("127.0.0.1", 0)) as listening:
        outcome_of(scenario(listening), loop.run_until_complete)


def test_while_connections_become_more_the_next_is_left_to_other_workers(monkeypatch):
    loop, yields, opened, open_ = FairLoop(), [], asyncio.Queue(), set()
    monkeypatch.setattr("receiver.server.time.sleep", yields.append)
    monkeypatch.setattr("receiver.server.FORGET_SECONDS", 3600)

    class Protocol(asyncio.Protocol):
        connections = open_

        def connection_made(self, _transport: asyncio.BaseTransport) -> None:
            open_.add(self)
            opened.put_nowait(self)

        def connection_lost(self, _error: Exception | None) -> None:
            open_.discard(self)
            opened.put_nowait(None)

    async def scenario(listening: socket.socket) -> list[int]:
        await loop.create_server(Protocol, sock=listening)
        clients, counted = [], []
        for come, gone in ((4, 0), (0, 4), (4, 4), (6, 0)):
            for client in [socket.create_connection(listening.getsockname()) for _ in range(come)]:
                clients.append(client)
                await opened.get()
            for _ in range(gone):
                clients.pop().close()
                await opened.get()
            counted.append(len(yields))
        for client in clients:
            client.close()
        return counted

    with closing(loop), socket.create_server(("127.0.0.1", 0)) as listening:
        counted = outcome_of(scenario(listening), loop.run_until_complete)
    grown, gone, as_many, more = counted
    assert grown == gone == 4
    # One that is just being accepted may count twice.
    assert as_many <= 5
    assert more >= 6


def test_a_worker_beats_each_second_whatever_the_clock_says():
    """uvicorn's own beat stops as long as a clock was put back: `make chaos` steps one."""
    beats = []
    worker = SimpleNamespace(
        notify=lambda: beats.append(1), _must_stop=False, _is_orphan=False, ppid=os.getppid()
    )
    Worker._check_master(worker)
    assert beats == [1]
