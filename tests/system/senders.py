"""Senders of signed callbacks: one, or many that never stop."""

import http.client
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Self

from nodes import DEADLINE, KEY, eventually

from receiver.openconnectors.signatures import HEADER, sign


def direct(port: int) -> http.client.HTTPConnection:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    client.connect()
    return client


def post(client, body, chunks=None, **headers) -> int:
    """POST a signed callback, in chunks if they are given; give the status."""
    signed = {HEADER: sign(body, KEY), **headers}
    client.request(
        "POST", "/callbacks/default", chunks or body, signed, encode_chunked=bool(chunks)
    )
    answer = client.getresponse()
    answer.read()
    return answer.status


_LOADS = itertools.count()
_PAUSE = 0.01  # seconds between a sender's callbacks, so that others on this machine get on too


class Load:
    """Senders that never stop; answers, and the bodies that were acknowledged."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], lanes: int = 6) -> None:
        self._connect, self._end = connect, threading.Event()
        self._name = next(_LOADS)
        self.answers: Counter[int | str] = Counter()
        self.acknowledged: set[bytes] = set()
        self._threads = [threading.Thread(target=self._send, args=(lane,)) for lane in range(lanes)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait until so many more were acknowledged."""
        goal = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= goal, f"{count} more acknowledgements")

    def _send(self, lane: int) -> None:
        bodies = self._bodies(lane)
        while not self._end.is_set():
            try:
                with closing(self._connect()) as client:
                    self._send_over(client, itertools.islice(bodies, 20))
            except (OSError, http.client.HTTPException) as error:
                self.answers[type(error).__name__] += 1
                self._end.wait(_PAUSE)

    def _bodies(self, lane: int) -> Iterator[bytes]:
        chance = random.Random(lane)
        for turn in itertools.count(1):
            body = json.dumps({"id": f"{self._name}-{lane}-{turn}", "status": "RUNNING"})
            yield body.encode() + b" " * chance.choice([0, 100, 40_000])

    def _send_over(self, client: http.client.HTTPConnection, bodies: Iterable[bytes]) -> None:
        for body in bodies:
            status = post(client, body)
            self.answers[status] += 1
            if status == 200:
                self.acknowledged.add(body)
            if self._end.wait(_PAUSE):
                return
