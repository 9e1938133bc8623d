"""What the bench needs of the machine: servers, questions to them, time and memory."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

import processes
from processes import HOST, ToolError, end, family, own_environment, start

MAX_SECONDS = 3600  # for a program; some install packages


class Unavailable(Exception):
    """A contender cannot be installed or started here; the message says why."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, without settings of a receiver, and with `extra`.

    Packages that only the tests bring, and that others use if they are there, seem not to be.
    """
    deployed = str(Path(__file__).parent / "deployed")
    return own_environment(**{"PYTHONPATH": deployed, **(extra or {})})


def run(argv: Sequence[str], extra: Mapping[str, str] | None = None, **options) -> str:
    """Run a program to its end; give its standard output. Raises ToolError."""
    return processes.run(argv, seconds=MAX_SECONDS, env=environment(extra), **options)


@contextmanager
def serving(
    argv: Sequence[str], extra: Mapping[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen]:
    """A server in a process group of its own, ended at the end."""
    process = start(argv, log, env=environment(extra), cwd=cwd)
    try:
        yield process
    finally:
        end(process)


def until_answering(
    process: subprocess.Popen, port: int, path: str, log: Path, *, wanted: int | None = None
) -> None:
    """Wait until a GET is answered, with the status `wanted` if one is. Raises ToolError."""
    began = time.perf_counter()
    while time.perf_counter() - began < 60:
        if process.poll() is not None:
            raise ToolError(f"the server ended: {log.read_text(errors='replace')[-600:]}")
        status = _status(port, path)
        if status is not None and wanted in (None, status):
            return
        time.sleep(0.005)
    raise ToolError(f"not ready in a minute: {log.read_text(errors='replace')[-600:]}")


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
    """Sign in at the dashboard; give the cookie. Raises ToolError."""
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
    raise ToolError(f"the dashboard does not take the token: {answer.status}")


def cpu_seconds(*roots: int) -> float:
    """User and system time of processes and their descendants, those that have ended included."""
    ticks = 0
    for pid in {pid for root in roots for pid in family(root)}:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


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


def description() -> str:
    """What the figures depend on besides the code."""
    cpus = Path("/proc/cpuinfo").read_text()
    model = next((line for line in cpus.splitlines() if line.startswith("model name")), ": unknown")
    load = " ".join(f"{load:.2f}" for load in os.getloadavg())
    cores = f"{len(os.sched_getaffinity(0))} cores, load generator too"
    software = f"Python {sys.version.split()[0]}, Linux {os.uname().release}"
    return f"{model.partition(':')[2].strip()}, {cores}, {software}, load average {load}"
