"""The wires of the run: lanes of the TCP proxy, a program of its own, and how to hurt them."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import PYTHON, ToolError, free_port, start

PROGRAM = Path(__file__).with_name("proxy.py")


class Wires:
    """Named lanes, each a port that leads to another."""

    def __init__(self, log: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = start([PYTHON, str(PROGRAM)], log, **pipes)
        self._lock = threading.Lock()
        self.lanes: dict[str, int] = {}

    def lay(self, lane: str, target: int) -> int:
        """Open a lane to a port; give the port that leads there."""
        self.lanes[lane] = free_port()
        self._tell(lane, listen=self.lanes[lane], target=target)
        return self.lanes[lane]

    def lead(self, lane: str, target: int) -> None:
        """Lead new connections to another port; those that are open stay."""
        self._tell(lane, target=target)

    @contextmanager
    def hurt(self, lanes: list[str], mode: str, **how: float) -> Iterator[None]:
        """Have lanes in another mode for a while."""
        for lane in lanes:
            self._tell(lane, mode=mode, **how)
        try:
            yield
        finally:
            for lane in lanes:
                self._tell(lane, mode="pass")

    def _tell(self, lane: str, **told: Any) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ToolError("the proxy has no ears")
        with self._lock:
            stdin.write(json.dumps({"lane": lane, **told}).encode() + b"\n")
            stdin.flush()
            if stdout.readline() != b"done\n":
                raise ToolError("the proxy ended")
