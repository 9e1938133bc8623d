"""Probes of every node, all the time: whatever goes wrong, they are answered within a second."""

import json
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

from processes import PYTHON, ToolError, end, start
from receivers import Node

PROGRAM = Path(__file__).with_name("prober.py")


class Probe(NamedTuple):
    """A probe that a running node answered. began -- on the monotonic clock; what follows, seconds.

    late -- from when it was due until it began. queued -- what the prober waited for a processor.
    worked -- what the node's processes worked meanwhile. starved -- what that of its threads waited
    for a processor that waited the longest. runnable -- the machine's threads that run, or would.
    """

    node: str
    path: str
    status: int
    began: float
    seconds: float
    late: float
    connect: float
    queued: float
    worked: float
    starved: float
    runnable: int

    def __str__(self) -> str:
        parts = ("late", "connect", "queued", "worked", "starved")
        told = ", ".join(f"{part} {getattr(self, part):.2f}" for part in parts)
        return (
            f"{self.path} of {self.node} took {self.seconds:.2f} s, {self.status}"
            f" ({told}, {self.runnable} runnable)"
        )


class Prober:
    """What the program that probes has seen. As a thread here it would wait for the sender's.

    What a node answers, or leaves unanswered, that starts, ends or was killed does not count.
    """

    def __init__(self, nodes: list[Node], folder: Path) -> None:
        self.seen: list[Probe] = []
        self._nodes = {node.name: node for node in nodes}
        self._ready: dict[str, float] = {}  # by node, the change after which it was ready
        argv = [PYTHON, "-S", str(PROGRAM), *(f"{node.name}:{node.port}" for node in nodes)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = start(argv, folder / "prober.log", cwd=folder, **pipes)
        self._thread = threading.Thread(target=self._read, name="probes", daemon=True)
        self._thread.start()

    def since(self, number: int) -> list[Probe]:
        """What it has seen after so many. Raises ToolError if it ended."""
        if self._process.poll() is not None:
            raise ToolError("the prober ended")
        return self.seen[number:]

    def close(self) -> None:
        """Stop probing."""
        end(self._process)
        self._thread.join()

    def _read(self) -> None:
        if self._process.stdout is None:
            raise ToolError("the prober has no voice")
        for line in self._process.stdout:
            self._note(Probe(**json.loads(line)))

    def _note(self, probe: Probe) -> None:
        node = self._nodes[probe.node]
        changed = node.changed
        if node.down or node.orphaned or probe.began < changed:
            return
        if (probe.path, probe.status) == ("/readyz", 200):
            self._ready[node.name] = changed
        if self._ready.get(node.name) == changed:
            self.seen.append(probe)
