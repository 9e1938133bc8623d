"""Processes of tests and tools: their environment, their ports, their end."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
PYTHON = sys.executable
OURS = ("RECEIVER_", "EVENT_NOTIFICATION_", "OPEN_CONNECTORS_", "GUNICORN_", "PROMETHEUS_")
LONGEST_END = 40  # seconds; longer than gunicorn lets requests finish

# Below what the system gives to outgoing connections; each worker of pytest has ports of its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.count(14_000 + 500 * (_WORKER % 32) + os.getpid() % 250)
_started: list[subprocess.Popen[bytes]] = []


class ToolError(Exception):
    """A run of a tool cannot go on; the message says why. Not a violation of a promise."""


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def free_port() -> int:
    """A port that nobody listens on, and that no outgoing connection will take."""
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise AssertionError


def own_environment(**settings: str) -> dict[str, str]:
    """This process's environment with these settings of the receiver and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**inherited, **settings}


def start(argv: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a group of its own; what it says goes to `log`."""
    with log.open("ab") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        options = {"start_new_session": True, **streams, **options}
        process: subprocess.Popen[bytes] = subprocess.Popen(list(argv), **options)
    _started.append(process)
    return process


def run(argv: Sequence[str], *, seconds: float = 60, **options: Any) -> str:
    """Run a program to its end; give its standard output. Raises ToolError."""
    shown = " ".join(argv[-6:])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(argv, Path(os.devnull), **pipes, **options)
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ToolError(f"{shown}: not done in {seconds:.0f} s") from None
    finally:
        end(process, signal.SIGKILL)
    if process.returncode:
        told = (errors or out).decode(errors="replace").strip().splitlines()[-1:]
        raise ToolError(f"{shown}: {' '.join(told)}")
    return out.decode(errors="replace")


def children(pid: int) -> list[int]:
    """The processes that a process started and that still run."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def is_writer(pid: int) -> bool:
    """Whether a process is the one that writes for a receiver's workers."""
    with suppress(OSError):
        return b"writer_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def tell(pids: Iterable[int], sign: signal.Signals) -> None:
    """Send a signal to each of some processes; those that are gone do not mind."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    """End a process and all it started: as asked, then by force."""
    if process.poll() is None:
        everyone = family(process.pid)
        tell(everyone, signal.SIGCONT)
        tell([process.pid], how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LONGEST_END)
        tell({*everyone, *family(process.pid)} - {process.pid}, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
        process.wait()
    if process in _started:
        _started.remove(process)


def end_all() -> None:
    """End whatever was started and is not ended yet, the youngest first."""
    while _started:
        process = _started[-1]
        end(process, signal.SIGQUIT if "postgres" in str(process.args) else signal.SIGTERM)


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> float:
    """Look again and again until it is so; give the seconds it took. Raises ToolError."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise ToolError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - began
