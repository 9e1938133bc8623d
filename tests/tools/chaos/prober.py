"""The program that probes nodes, each given as NAME:PORT, and writes a line of JSON a probe.

It goes before the other processes where it may, and notes where the time of a probe went. A file
NAME.pid in the current folder says which process is a node's first.
"""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HOST, PATHS, PAUSE, TIMEOUT = "127.0.0.1", ("/healthz", "/readyz"), 0.2, 25.0  # seconds
NICE = -10
OWN = Path("/proc/thread-self")


class Spent(NamedTuple):
    """What a thread has worked so far, and waited for a processor though it had work, seconds."""

    worked: float
    queued: float


def main(nodes: list[str]) -> None:
    """Probe until the input ends, or a thread does: then nobody may take silence for health."""
    threading.excepthook = _end
    with suppress(PermissionError):
        os.nice(NICE)
    for node in nodes:
        name, _, port = node.rpartition(":")
        threading.Thread(target=_watch, args=(name, int(port)), daemon=True).start()
    sys.stdin.read()


def _end(failed: threading.ExceptHookArgs) -> None:
    sys.__excepthook__(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    os._exit(1)


def _watch(name: str, port: int) -> None:
    due = time.monotonic()
    while True:
        for path in PATHS:
            _probe(name, port, path, due)
            due = time.monotonic()
        due += PAUSE
        time.sleep(PAUSE)


def _probe(name: str, port: int, path: str, due: float) -> None:
    own, threads = _spent(OWN), {thread: _spent(thread) for thread in _threads(name)}
    began = time.monotonic()
    try:
        with socket.create_connection((HOST, port), TIMEOUT) as client:
            connected = time.monotonic()
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            status = int(client.recv(65536).split(b" ", 2)[1])
    except (OSError, IndexError, ValueError):
        return
    ended = time.monotonic()
    spent = [(_spent(thread), before) for thread, before in threads.items()]
    told = {
        "node": name,
        "path": path,
        "status": status,
        "began": began,
        "seconds": ended - began,
        "late": began - due,
        "connect": connected - began,
        "queued": _spent(OWN).queued - own.queued,
        "worked": sum(after.worked - before.worked for after, before in spent),
        "starved": max((after.queued - before.queued for after, before in spent), default=0.0),
        "runnable": _runnable(),
    }
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


def _threads(name: str) -> list[Path]:
    """All threads of a node's processes, its master's left out."""
    with suppress(OSError, ValueError):  # it ends, or is just being started
        master = Path(f"/proc/{int(Path(f'{name}.pid').read_text())}")
        children = (master / "task" / master.name / "children").read_text().split()
        return [thread for pid in children for thread in Path(f"/proc/{pid}/task").iterdir()]
    return []


def _spent(thread: Path) -> Spent:
    try:
        worked, queued, _ = (thread / "schedstat").read_text().split()
    except (OSError, ValueError):  # it ended, or this kernel does not say
        return Spent(0.0, 0.0)
    return Spent(int(worked) / 1e9, int(queued) / 1e9)


def _runnable() -> int:
    """How many threads of the machine run, or would."""
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])


if __name__ == "__main__":
    main(sys.argv[1:])
