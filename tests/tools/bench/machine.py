"""What the bench needs of the machine: processes, ports, memory, and how to say something."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

HOST = "127.0.0.1"
PYTHON = sys.executable
OURS = ("RECEIVER_", "EVENT_NOTIFICATION_", "OPEN_CONNECTORS_", "PROMETHEUS_MULTIPROC_DIR")


class BenchError(Exception):
    """The run cannot go on; the message says why."""


class Unavailable(Exception):
    """A contender cannot be installed or started here; the message says why."""


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, without settings of a receiver, and with `extra`.

    Packages that only the tests bring, and that others use if they are there, seem not to be.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, "PYTHONPATH": str(Path(__file__).parent / "deployed"), **(extra or {})}


def run(argv: Sequence[str], extra: Mapping[str, str] | None = None, **options) -> str:
    """Run a program to its end; give its standard output. Raises BenchError."""
    done = subprocess.run(
        argv, env=environment(extra), capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise BenchError(f"{Path(argv[0]).name} {' '.join(argv[1:4])}: {' '.join(told)}")
    return done.stdout


def free_port() -> int:
    """A port on which nobody listens at the moment."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


@contextmanager
def serving(
    argv: Sequence[str], extra: Mapping[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen]:
    """A server in a process group of its own, ended at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            env=environment(extra),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived their master


def until_answering(
    process: subprocess.Popen, port: int, path: str, log: Path, *, wanted: int | None = None
) -> None:
    """Wait until a GET is answered, with the status `wanted` if one is. Raises BenchError."""
    began = time.perf_counter()
    while time.perf_counter() - began < 60:
        if process.poll() is not None:
            raise BenchError(f"the server ended: {log.read_text(errors='replace')[-600:]}")
        status = _status(port, path)
        if status is not None and wanted in (None, status):
            return
        time.sleep(0.005)
    raise BenchError(f"not ready in a minute: {log.read_text(errors='replace')[-600:]}")


def _status(port: int, path: str) -> int | None:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def post_once(port: int, path: str, body: bytes, headers: Mapping[str, str]) -> int:
    """POST a body; give the status of the answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def get_once(port: int, path: str, token: str) -> tuple[int, bytes]:
    """GET a path; give the status and the body of the answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def bearer(token: str) -> str:
    """The header that carries a token."""
    return f"Authorization: Bearer {token}"


def sign_in(port: int, token: str) -> str:
    """Sign in at the dashboard; give the cookie. Raises BenchError."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Sec-Fetch-Site": "same-origin",
        }
        connection.request("POST", "/sign-in", urlencode({"token": token}), headers)
        answer = connection.getresponse()
        cookies = answer.headers.get_all("Set-Cookie", ())
    finally:
        connection.close()
    for cookie in cookies:
        if cookie.startswith("receiver-session="):
            return cookie.partition(";")[0]
    raise BenchError(f"the dashboard does not take the token: {answer.status}")


def workers_of(pid: int) -> list[int]:
    """The child processes of a gunicorn master."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    return found


def cpu_seconds(*roots: int) -> float:
    """User and system time of processes and their descendants, those that have ended included."""
    ticks = 0
    for pid in {pid for root in roots for pid in family(root)}:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def is_writer(pid: int) -> bool:
    """Whether a process is the one that writes for all workers."""
    with suppress(OSError):
        return b"writer_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def fdatasync_ms(folder: Path) -> float:
    """The median time that the disk under `folder` takes to keep a page, ms."""
    path, times = folder / "fdatasync", []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        for page in range(200):
            os.pwrite(descriptor, b"x" * 4096, page * 4096)
            began = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(times) * 1000


def description() -> dict[str, object]:
    """What the figures depend on besides the code."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": model[0] if model else "unknown",
        "cores": sorted(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "kernel": os.uname().release,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
