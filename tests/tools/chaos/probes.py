"""Probes of every node, all the time: whatever goes wrong, they are answered within a second."""

import http.client
import threading
import time
from typing import NamedTuple

from processes import HOST
from receivers import Node

PATHS, PAUSE, TIMEOUT = ("/healthz", "/readyz"), 0.2, 25.0  # seconds


class Probe(NamedTuple):
    """A probe that a running node answered. began -- on the monotonic clock."""

    began: float
    seconds: float
    status: int
    what: str


class Prober:
    """Probes each node from a thread of its own.

    What a node leaves unanswered that starts, ends or was killed does not count.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.seen: list[Probe] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(node,)) for node in nodes]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop probing."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, node: Node) -> None:
        ready = 0  # the start after which it was ready
        while not self._stopped.wait(PAUSE):
            for path in PATHS:
                starts, began = node.starts, time.monotonic()
                status = _status(node.port, path)
                if (path, status) == ("/readyz", 200):
                    ready = starts
                if status and not node.down and ready == starts == node.starts:
                    took = time.monotonic() - began
                    self.seen.append(Probe(began, took, status, f"{path} of {node.name}"))


def _status(port: int, path: str) -> int:
    """GET a path; 0 without an answer."""
    client = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT)
    try:
        client.request("GET", path)
        return client.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        client.close()
