"""Driving wrk, the load generator: one thread, keep-alive connections."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import run
from processes import HOST, ToolError

_HERE = Path(__file__).parent
_MARK = "BENCH "


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run of wrk saw. Latencies are in ms.

    sent -- requests begun. answered -- with any status; refused -- of these, with one above 399.
    seconds -- for how long requests were begun. left -- how many were under way when the last was.
    position -- where in the file of bodies the next run may begin. wrapped -- how often the file
    was begun anew.
    """

    sent: int
    answered: int
    refused: int
    p50: float
    p99: float
    position: int = 0
    wrapped: int = 0
    seconds: int = 1
    left: int = 0

    @property
    def unanswered(self) -> int:
        """How many got no answer."""
        return max(0, self.sent - self.answered)

    @property
    def acknowledged(self) -> int:
        """How many were answered with success."""
        return self.answered - self.refused

    @property
    def rate(self) -> float:
        """Successes a second, without those that were answered after the last was begun."""
        return max(0, self.acknowledged - max(0, self.left - self.unanswered)) / self.seconds


def require() -> None:
    """Raises ToolError without wrk."""
    if shutil.which("wrk") is None:
        raise ToolError("wrk is not installed: apt-get install wrk")


def post(
    port: int,
    path: str,
    bodies: Path,
    header: str,
    *,
    connections: int,
    seconds: int,
    start: int = 0,
    repeat: int = 0,
) -> Load:
    """POST signed bodies from a file, beginning at the byte `start`.

    For some seconds more nothing is sent, so that what is under way gets its answer.
    """
    words = [str(bodies), header, str(start), str(repeat), str(seconds)]
    ending = 1 if connections <= 32 else 3
    told = _wrk("post.lua", _address(port, path), connections, seconds + ending, words)
    return Load(**told, seconds=seconds, left=connections)


def get(
    port: int,
    path: str,
    header: str,
    *,
    connections: int,
    seconds: int,
    numbers: tuple[int, int] = (0, 0),
) -> Load:
    """GET a path, followed by one of `numbers` (first, how many) at random if there are any.

    header -- says who asks: a whole line.
    """
    words = [str(numbers[0]), str(numbers[1]), header]
    return Load(
        **_wrk("get.lua", _address(port, path), connections, seconds, words), seconds=seconds
    )


def _wrk(
    script: str, address: str, connections: int, seconds: int, words: list[str]
) -> dict[str, Any]:
    shape = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    told = run(["wrk", *shape, "-s", str(_HERE / script), address, "--", *words])
    marked = [line for line in told.splitlines() if line.startswith(_MARK)]
    if not marked:
        raise ToolError(f"wrk told nothing: {told[-300:]}")
    return json.loads(marked[0].removeprefix(_MARK))


def _address(port: int, path: str) -> str:
    return f"http://{HOST}:{port}{path}"
