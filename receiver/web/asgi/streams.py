"""Streams of events: each costs a socket and no thread; all of a process share a poller."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial

from receiver import metrics
from receiver.callbacks.feed import Reader
from receiver.errors import ClockStepped, Overloaded, ReceiverError, StoreUnavailable, TooSlow
from receiver.jobs.queries import Instances
from receiver.web import Services
from receiver.web.api.stream import event_messages, position_message
from receiver.web.asgi.messages import Receive, Send
from receiver.web.asgi.readers import Readers
from receiver.web.http import Stream

MAX_STREAMS = 64
MAX_WAITING_BYTES = 8 * 2**20  # of messages to one client; then it is cut off, and goes on later
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15
TOKEN_SECONDS = 30  # between looks whether tokens still are valid
END_SECONDS = 1  # for a client to take the end


class _Client:
    """One client's stream: what waits to be sent to it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.is_live = False  # whether the poller's messages are for it
        self.ended = asyncio.Event()
        self._waiting: list[tuple[int, bytes]] = []
        self._bytes = 0
        self._has_messages = asyncio.Event()

    def wants(self, instance: str) -> bool:
        return self.stream.instances is None or instance in self.stream.instances

    def put(self, number: int, message: bytes) -> None:
        self._bytes += len(message)
        if self.ended.is_set() or (self._bytes > MAX_WAITING_BYTES and self._waiting):
            self.ended.set()
            return
        self._waiting.append((number, message))
        self._has_messages.set()

    async def take(self) -> list[tuple[int, bytes]]:
        """Return all that waits; nothing if nothing comes before the next heartbeat is due."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._has_messages.wait()
        taken, self._waiting, self._bytes = self._waiting, [], 0
        self._has_messages.clear()
        return taken


class Streams:
    """All streams of a process."""

    def __init__(self, services: Services, readers: Readers) -> None:
        self._services, self._read = services, readers.read
        self._clients: set[_Client] = set()
        self._poller: asyncio.Task[None] | None = None
        self._polls = asyncio.Event()  # set once that has begun
        self._is_stopping = False

    def check_capacity(self) -> None:
        """Raise Overloaded or StoreUnavailable if no other stream can be sent."""
        if self._is_stopping:
            raise StoreUnavailable("the server stops")
        if len(self._clients) >= MAX_STREAMS:
            metrics.THROTTLED.labels("streams").inc()
            raise Overloaded(f"{MAX_STREAMS} streams are sent already by this process", 5)

    def stop(self) -> None:
        """End all streams."""
        self._is_stopping = True
        if self._poller is not None:
            self._poller.cancel()
        for client in self._clients:
            client.ended.set()

    async def send(self, stream: Stream, receive: Receive, send: Send) -> None:
        """Send a stream until its client leaves, its token ends, or the server stops."""
        client = _Client(stream)
        self._clients.add(client)
        metrics.STREAMS.inc()
        if self._poller is None or self._poller.done():
            self._reader = Reader(self._services.database, self._services.clock)
            self._poller = asyncio.create_task(self._poll())
        ends: list[Coroutine[None, None, object]]  # whichever of these is first ends it
        ends = [self._send(client, send), _disconnect(receive), client.ended.wait()]
        tasks = [asyncio.create_task(end) for end in ends]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(client)
            metrics.STREAMS.dec()
            for task in tasks:
                task.cancel()
        for task in done:
            task.result()
        # Who takes nothing cannot be sent the end either: its connection is closed.
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await send({"type": "http.response.body", "body": b""})

    async def _send(self, client: _Client, send: Send) -> None:
        stream = client.stream

        async def put(messages: bytes) -> None:
            if messages:
                await send({"type": "http.response.body", "body": messages, "more_body": True})

        async def catch_up() -> None:
            more = True
            while more:
                messages, more = await self._read(partial(_look, stream.reader, stream.instances))
                await put(b"".join(message for _, _, message in messages))

        with suppress(ReceiverError):  # then it ends, and the client goes on
            await put(stream.opening)
            await catch_up()
            await self._polls.wait()
            client.is_live = True
            await catch_up()  # with what the poller read before that
            while True:
                taken = await client.take()
                fresh = [message for n, message in taken if not stream.reader.has_read(n)]
                await put(b"".join(fresh) if taken else position_message(self._reader.position))

    async def _poll(self) -> None:
        """Read events for all streams, as long as there are any; when it ends, so do they."""
        loop = asyncio.get_running_loop()
        checked = loop.time()
        try:
            while self._clients:
                more = False
                with suppress(StoreUnavailable, TooSlow):  # the next turn reads all since the last
                    more = await self._turn()
                    if loop.time() - checked > TOKEN_SECONDS:
                        await self._check_tokens()
                        checked = loop.time()
                if not more:
                    await asyncio.sleep(POLL_SECONDS)
        except ClockStepped:
            pass  # a client that resumes from an id of before is sent what is missing
        finally:
            self._polls.clear()
            for client in self._clients:
                client.ended.set()

    async def _turn(self) -> bool:
        """Read and hand out what became visible; return whether there is more."""
        if not self._polls.is_set():
            await self._read(self._reader.begin)
            self._polls.set()
            return False
        reached = [client.stream.instances for client in self._clients]
        wanted = None if None in reached else frozenset().union(*filter(None, reached))
        messages, more = await self._read(partial(_look, self._reader, wanted))
        for client in self._clients:
            if client.is_live:
                for number, instance, message in messages:
                    if client.wants(instance):
                        client.put(number, message)
        return more

    async def _check_tokens(self) -> None:
        for client in tuple(self._clients):
            if not await self._read(client.stream.is_allowed):
                client.ended.set()


def _look(reader: Reader, instances: Instances) -> tuple[list[tuple[int, str, bytes]], bool]:
    new = reader.read(instances)
    return event_messages(new.events), new.more


async def _disconnect(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
