"""The vendor's part: sends each delivery until it is accepted, and remembers every try.

Whatever is not 2xx, and whatever is not answered in time, is sent again after a pause that grows,
by the vendor's schedule made shorter. A try without an answer is unknown, neither kept nor lost.
"""

import asyncio
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from http_client import Answer, Connections, Lost, Request
from plan import Delivery
from processes import ToolError

from receiver.openconnectors.signatures import HEADER, SignatureKey, sign

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds; then the last one for ever
TIMEOUT = 25.0  # seconds; longer than any answer may take, so that those are seen, not guessed


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt at a delivery. status -- 0 where no answer came."""

    began: float
    ended: float
    status: int
    to: str


@dataclass
class Log:
    """What the sender saw. acked -- by (instance, sha256), the ids that answers gave."""

    tries: list[Try] = field(default_factory=list)
    acked: dict[tuple[str, bytes], set[str]] = field(default_factory=lambda: defaultdict(set))
    answers: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    attempts: Counter[tuple[str, bytes]] = field(default_factory=Counter)

    def during(self, began: float, ended: float) -> list[Try]:
        """The tries that were under way in a span of time."""
        return [each for each in self.tries if each.began < ended and each.ended > began]


class Sender:
    """Sends from a thread of its own over many connections.

    ports -- of each receiver by name. keys -- what each instance's deliveries are signed with now.
    """

    def __init__(
        self, ports: dict[str, int], keys: dict[str, SignatureKey], connections: int, seed: int
    ) -> None:
        self.log = Log()
        self.keys = keys
        self._ports, self._chance = ports, random.Random(seed)
        self._in_flight: Counter[str] = Counter()
        self._waiting, self._guard = 0, threading.Lock()
        self._broken: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._connections = Connections(connections)
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def send(self, deliveries: Iterable[Delivery], seconds: float = 0) -> None:
        """Begin to send deliveries, spread over a time."""
        new = list(deliveries)
        self._expect(len(new))
        for number, delivery in enumerate(new):
            pause = seconds * number / len(new)
            self._loop.call_soon_threadsafe(self._begin, delivery, pause)

    def try_once(self, delivery: Delivery) -> int:
        """Send a delivery and wait for what becomes of the first try; later ones go on alone."""
        self._expect(1)
        future = asyncio.run_coroutine_threadsafe(self._try(delivery), self._loop)
        status = future.result(TIMEOUT + 5)
        if 200 <= status < 300:
            self._expect(-1)
        else:
            self._loop.call_soon_threadsafe(self._begin, delivery, PAUSES[0])
        return status

    def ask(self, to: str, asked: Request) -> Answer:
        """Send one request that is no delivery. Raises Lost."""
        return self.begin(to, asked).result(TIMEOUT + 5)

    def begin(self, to: str, asked: Request) -> "Future[Answer]":
        """Send one request that is no delivery; its result may be Lost."""
        asking = self._connections.ask(self._ports[to], asked, TIMEOUT)
        return asyncio.run_coroutine_threadsafe(asking, self._loop)

    @property
    def unsettled(self) -> int:
        """How many deliveries were not accepted yet. Raises ToolError if the sender broke."""
        if self._broken is not None:
            raise ToolError(f"the sender broke: {self._broken!r}")
        return self._waiting

    def settle(self, seconds: float) -> bool:
        """Wait until all are accepted; tell whether they were within a time."""
        return _within(seconds, lambda: not self.unsettled)

    def drain(self, key: SignatureKey, seconds: float = 60) -> None:
        """Wait until nothing signed with a key is on its way. Raises ToolError."""
        if not _within(seconds, lambda: not self._in_flight[key.id]):
            raise ToolError("tries that were signed with the old key never ended")

    def close(self) -> None:
        """Stop sending."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _expect(self, more: int) -> None:
        with self._guard:
            self._waiting += more

    def _note(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self._broken = self._broken or task.exception()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda *_: None)  # broken connections are the point
        self._loop.run_forever()

    def _begin(self, delivery: Delivery, pause: float) -> None:
        task = self._loop.create_task(self._deliver(delivery, pause))
        task.add_done_callback(self._note)

    async def _deliver(self, delivery: Delivery, pause: float) -> None:
        turn = 0
        while True:
            await asyncio.sleep(pause)
            if 200 <= await self._try(delivery) < 300:
                self._expect(-1)
                return
            # The jitter keeps those that failed together from coming back together.
            pause = PAUSES[min(turn, len(PAUSES) - 1)] * self._chance.uniform(0.8, 1.2)
            turn += 1

    async def _try(self, delivery: Delivery) -> int:
        async with self._connections.turn:
            key = self.keys[delivery.instance]
            headers = {HEADER: sign(delivery.body, key), "Content-Type": "application/json"}
            path, identity = f"/callbacks/{delivery.instance}", (delivery.instance, delivery.sha256)
            self.log.attempts[identity] += 1
            self._in_flight[key.id] += 1
            began = time.monotonic()
            try:
                asked = Request("POST", path, headers, delivery.body)
                answer = await self._connections.ask(self._ports[delivery.to], asked, TIMEOUT)
                status = answer.status
            except Lost:
                status = 0
            finally:
                self._in_flight[key.id] -= 1
            self.log.tries.append(Try(began, time.monotonic(), status, delivery.to))
            if 200 <= status < 300:
                self.log.answers[identity] += 1
                self.log.acked[identity].add(json.loads(answer.body)["event"])
            return status


def _within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
