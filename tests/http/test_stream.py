"""The stream of events: each once in a connection, and none left out, whatever commits late."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from builders import Receiver, bulk
from nodes import DEADLINE, eventually
from sqlalchemy import text

from receiver.instances import tokens
from receiver.web.asgi import Application, streams


class Follower:
    """A client of a stream. takes -- so many messages; more once `is_taking` is set."""

    def __init__(
        self, application: Application, loop, token: str, *, query: str, last: str, takes: float
    ) -> None:
        self.status, self.sent, self.takes, self.is_held = 0, b"", takes, False
        self._loop, self._gone, self.is_taking = loop, asyncio.Event(), asyncio.Event()
        headers = [(b"host", b"x"), (b"authorization", f"Bearer {token}".encode())]
        headers += [(b"last-event-id", last.encode())] if last else []
        scope = {"type": "http", "method": "GET", "path": "/api/v1/stream", "client": ("::1", 1)}
        scope |= {"query_string": query.encode(), "headers": headers}
        running = application(scope, self._receive, self._send)
        self.future = asyncio.run_coroutine_threadsafe(running, loop)
        eventually(lambda: self.sent or self.future.done(), "the beginning of a stream")

    async def _receive(self) -> dict[str, object]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        self.takes -= 1
        if self.takes < 0 and not self._gone.is_set():
            self.is_held = True
            await self.is_taking.wait()
        self.status = message.get("status", self.status)
        self.sent += message.get("body", b"")

    def fields(self) -> list[dict[str, str]]:
        blocks = self.sent.decode().split("\n\n")[:-1]
        return [
            dict(line.split(": ", 1) for line in one.split("\n") if line[0] != ":")
            for one in blocks
        ]

    def events(self) -> list[SimpleNamespace]:
        """What came: `type`, `last` (id) and the members of the data."""
        return [
            SimpleNamespace(type=one["event"], last=one.get("id"), **json.loads(one["data"]))
            for one in self.fields()
            if "event" in one
        ]

    def jobs(self) -> list[str]:
        return [event.job for event in self.events()]

    def last(self) -> str:
        return [one["id"] for one in self.fields() if "id" in one][-1]

    def take_on(self) -> None:
        self._loop.call_soon_threadsafe(self.is_taking.set)

    def leave(self) -> None:
        self._loop.call_soon_threadsafe(self._gone.set)
        self.future.result(DEADLINE)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop

    async def rest() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(rest(), loop).result(DEADLINE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def follow(loop) -> Iterator[Callable[..., Follower]]:
    """follow(receiver, query, last=, token=): all of one receiver are one server's."""
    servers: dict[int, Application] = {}
    made: list[Follower] = []

    def begin(receiver, query="", last="", token="", takes=float("inf")) -> Follower:
        server = servers.setdefault(id(receiver), Application(receiver.app, threads=1))
        asked = {"query": query, "last": last, "takes": takes}
        made.append(Follower(server, loop, token or receiver.token, **asked))
        made[-1].stop = lambda: loop.call_soon_threadsafe(server.stop)
        return made[-1]

    yield begin
    for one in made:
        one.leave()
        one.stop()


def token_for(receiver: Receiver, *instances: str) -> str:
    with receiver.services.database.write() as session:
        return tokens.create_token(session, "x", "read", 1, only=instances)


def test_a_callback_comes_as_it_was_sent(any_receiver, follow):
    stream = follow(any_receiver)
    body = bulk("7") + b" \xff\x00\n\n"
    any_receiver.call_back(body, **{"X-Odd": "a\x85b", "Elements-Webhook-Id": "w-1"})
    (event,) = eventually(stream.events)
    assert (event.type, event.id, event.instance) == ("event.received", event.last, "default")
    assert base64.b64decode(event.body) == body
    assert (event.headers["x-odd"], event.webhook_id) == ("a\x85b", "w-1")
    stored = any_receiver.get(f"/events/{event.id}").json
    assert all(stored[name] == getattr(event, name) for name in ("kind", "job", "received_at"))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql18"])
def test_who_comes_again_has_all_and_twice_only_with_the_same_id(
    kind, make_receiver, make_database, follow
):
    receiver = make_receiver(make_database(kind))
    first = follow(receiver)
    for job in "abc":
        receiver.call_back(bulk(job))
    eventually(lambda: first.jobs() == ["a", "b", "c"])
    first.leave()
    for job in "def":
        receiver.call_back(bulk(job))
    again = follow(receiver, last=first.last())
    receiver.call_back(bulk("g"))
    eventually(lambda: "g" in again.jobs())
    assert again.jobs() in (list("abcdefg"), list("bcdefg"), list("cdefg"), list("defg"))
    ids = {event.job: event.last for event in first.events()}
    assert all(ids.get(event.job, event.last) == event.last for event in again.events())
    # Nor is there a gap before the first event: where to go on is said at once.
    idle = follow(receiver)
    idle.leave()
    receiver.call_back(bulk("h"))
    assert eventually(follow(receiver, f"last_event_id={idle.last()}").jobs)[-1] == "h"


def test_what_comes_while_a_client_catches_up_is_not_left_out(receiver, follow):
    live = follow(receiver)
    receiver.call_back(bulk("a"))
    eventually(live.jobs)
    held = follow(receiver, last=live.last(), takes=2)
    eventually(lambda: held.is_held)
    receiver.call_back(bulk("b"))
    eventually(lambda: live.jobs() == ["a", "b"])
    held.take_on()
    eventually(lambda: held.jobs() == ["a", "b"])


def test_what_commits_late_is_sent_though_a_higher_number_was(
    make_receiver, make_database, open_store, follow
):
    url = make_database("postgresql18")
    receiver, late = make_receiver(url), open_store(url)
    stream = follow(receiver)
    with late.database.transaction() as connection:
        late.store.write_in(connection, [late.judged(bulk("late", "ERROR"))])
        receiver.call_back(bulk("early"))
        eventually(lambda: stream.jobs() == ["early"])
        left = follow(receiver, last=stream.last())
        left.leave()
    eventually(lambda: stream.jobs() == ["early", "late"])
    early, late_ = stream.events()
    assert late_.id < early.id
    again = follow(receiver, last=early.id)
    eventually(lambda: "late" in again.jobs())
    receiver.call_back(bulk("end"))
    eventually(lambda: stream.jobs() == ["early", "late", "end"])
    eventually(lambda: again.jobs() == ["late", "early", "end"])


def test_only_what_is_asked_for_and_reached_is_sent(
    make_receiver, make_database, open_store, follow
):
    url = make_database("sqlite")
    receiver, store = make_receiver(url), open_store(url)
    bound = token_for(receiver, "ours")
    every, ours = follow(receiver), follow(receiver, token=bound)
    chosen = follow(receiver, "types=event.received&instance=default&instance=none")
    store.now = receiver.services.clock()
    store.write(store.of_any("ours", bulk("1")), store.of_any("theirs", bulk("2")), bulk("3"))
    eventually(lambda: every.jobs() == ["1", "2", "3"])
    eventually(lambda: ours.jobs() == ["1"] and chosen.jobs() == ["3"])
    again = follow(receiver, last=ours.last(), token=bound)
    assert eventually(again.jobs) == ["1"]
    assert follow(receiver, "instance=theirs", token=bound).status == 403


def test_what_is_missing_is_said(receiver, follow):
    def execute(statement: str) -> None:
        with receiver.services.database.write() as session:
            session.execute(text(statement))

    stream = follow(receiver)
    for job in "abc":
        receiver.call_back(bulk(job))
    eventually(lambda: len(stream.jobs()) == 3)
    execute("UPDATE events SET body = NULL WHERE instance = 'default' AND job = 'b'")
    again = follow(receiver, last=f"{int(stream.events()[0].id, 16) - 1:016x}")
    eventually(lambda: len(again.jobs()) == 3)
    gone = again.events()[1]
    assert (gone.type, gone.reason, gone.job, gone.last) == (
        "missed",
        "body_removed",
        "b",
        gone.event,
    )

    ahead = follow(receiver, last="7fffffffffffffff")
    receiver.call_back(bulk("d"))
    missed, after = eventually(lambda: ahead.events()[1:] and ahead.events())
    assert (missed.type, missed.reason, after.job) == ("missed", "unknown_id", "d")

    execute(f"UPDATE retention SET events_before = {int(after.id, 16) >> 20}")
    old = follow(receiver, last=stream.events()[0].id)
    assert [event.reason for event in old.events() if event.type == "missed"] == ["too_old"]
    assert eventually(lambda: "d" in (getattr(event, "job", None) for event in old.events()))


def test_a_clock_put_back_ends_a_stream_and_who_comes_again_is_told(
    make_receiver, make_database, follow
):
    now = [1_790_000_000_000]
    receiver = make_receiver(make_database("sqlite"), clock=lambda: now[0])
    stream = follow(receiver)
    receiver.call_back(bulk("a"))
    eventually(stream.jobs)
    now[0] -= 3_600_000
    stream.future.result(DEADLINE)
    (missed,) = eventually(follow(receiver, last=stream.last()).events)
    assert missed.reason == "unknown_id"


@pytest.mark.parametrize(
    ("query", "last"),
    [("types=job.ended", ""), ("since=1", ""), ("last_event_id=x", ""), ("", "x"), ("", "f" * 16)],
)
def test_bad_input_is_400(receiver, follow, query, last):
    refused = follow(receiver, query, last)
    assert (refused.status, json.loads(refused.sent)["code"]) == (400, "bad_parameter")


def test_a_server_that_cannot_stream_says_so(receiver):
    answer = receiver.get("/stream")
    assert (answer.status_code, answer.json["code"]) == (501, "no_stream")


def test_streams_are_bounded_and_end_with_the_server(receiver, follow, monkeypatch):
    monkeypatch.setattr(streams, "MAX_STREAMS", 2)
    opened, rejected = measured(receiver)
    one, other = follow(receiver), follow(receiver)
    refused = follow(receiver)
    assert (refused.status, json.loads(refused.sent)["code"]) == (503, "overloaded")
    assert measured(receiver) == (opened + 2, rejected + 1)
    one.leave()
    assert measured(receiver)[0] == opened + 1
    assert follow(receiver).status == 200
    other.stop()
    other.future.result(DEADLINE)
    assert follow(receiver).status == 503


def measured(receiver):
    """How many streams are open, and were rejected so far, by the metrics."""
    text = receiver.client.get("/metrics").text
    names = "receiver_streams", 'receiver_throttled_total{what="streams"}'
    values = dict(line.rsplit(" ", 1) for line in text.splitlines())
    return tuple(float(values.get(name, 0)) for name in names)


def test_a_client_that_takes_nothing_is_cut_off_and_a_revoked_token_too(
    receiver, follow, monkeypatch
):
    monkeypatch.setattr(streams, "MAX_WAITING_BYTES", 4000)
    monkeypatch.setattr(streams, "TOKEN_SECONDS", 0)
    slow, well = follow(receiver, takes=2), follow(receiver)
    revoked = follow(receiver, token=token_for(receiver))
    for job in "abcd":
        receiver.call_back(bulk(job) + b" " * 2000)
        eventually(lambda job=job: job in well.jobs())
    slow.future.result(DEADLINE)
    with receiver.services.database.write() as session:
        tokens.revoke_token(session, "x", 2)
    revoked.future.result(DEADLINE)
    assert not well.future.done()


def test_a_silent_stream_beats_and_says_where_to_go_on(receiver, follow, monkeypatch):
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    stream = follow(receiver)
    began = stream.last()
    eventually(lambda: stream.sent.count(b":\nid: ") > 2)
    eventually(lambda: stream.last() > began)
