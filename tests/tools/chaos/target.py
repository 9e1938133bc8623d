"""A subscriber's endpoint, killed and started again: it notes each delivery, then answers.

Its folder holds `secret`, as the receiver printed it; `mode`, if it is to answer 500 (`fails`) or
not at all (`hangs`); and `seen`, a line of JSON for each delivery. A line is written at once and
before the answer, so what was accepted is on record whenever the process is killed.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from typing import Any

from processes import HOST, PYTHON, ROOT, end, free_port, own_environment, start
from standardwebhooks import Webhook, WebhookVerificationError

HANGS = 30.0  # seconds; longer than an attempt


@dataclass(frozen=True, slots=True)
class Seen:
    """A delivery that arrived. accepted -- whether it was to be answered 204."""

    id: str
    verified: bool
    accepted: bool
    body: str

    @property
    def job(self) -> tuple[str, str]:
        """Its job: (id, instance)."""
        shown = self.data
        return shown["id"], shown["instance"]

    @property
    def data(self) -> dict[str, Any]:
        """The job, as it was sent."""
        shown: dict[str, Any] = json.loads(self.body)["data"]
        return shown


@dataclass
class Target:
    """An endpoint in a process of its own. host -- a name of the loopback."""

    name: str
    folder: Path
    host: str = HOST
    port: int = field(default_factory=free_port)
    _process: Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self._seen: list[Seen] = []
        self._read = 0

    @property
    def url(self) -> str:
        """Where it takes deliveries."""
        return f"http://{self.host}:{self.port}/{self.name}"

    def start(self) -> None:
        """Start it, with what it had noted before."""
        argv = [PYTHON, __file__, str(self.port), str(self.folder)]
        env = own_environment(PYTHONPATH=str(ROOT / "tests"))
        self._process = start(argv, self.folder / "log", env=env)

    def kill(self) -> None:
        """Kill it outright."""
        if self._process is not None:
            end(self._process, signal.SIGKILL)

    def behave(self, mode: str) -> None:
        """Have it do so from now on; '' is well."""
        (self.folder / "mode").write_text(mode)

    def note(self, *seen: Seen) -> None:
        """Note what never came."""
        with (self.folder / "seen").open("a") as notes:
            notes.writelines(f"{json.dumps(asdict(one))}\n" for one in seen)

    def seen(self) -> list[Seen]:
        """Everything that arrived so far, in its order."""
        path = self.folder / "seen"
        if path.exists():
            with path.open("rb") as notes:
                notes.seek(self._read)
                lines = notes.read().split(b"\n")
            self._read += sum(len(line) + 1 for line in lines[:-1])
            self._seen += [Seen(**json.loads(line)) for line in lines[:-1] if line]
        return self._seen


class _Answer(BaseHTTPRequestHandler):
    server: "_Endpoint"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # who sent it was killed on the way
            self.close_connection = True
            return
        mode = self.server.mode
        self.server.note(dict(self.headers), body, accepted=not mode)
        if mode == "hangs":
            deadline = time.monotonic() + HANGS
            while self.server.mode == "hangs" and time.monotonic() < deadline:
                time.sleep(0.1)
            self.close_connection = True
            return
        self.send_response(500 if mode else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Endpoint(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, folder: Path) -> None:
        self._folder = folder
        self._webhook = Webhook((folder / "secret").read_text().strip())
        self._notes = os.open(folder / "seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        super().__init__((HOST, port), _Answer)

    @property
    def mode(self) -> str:
        """What it is to do instead of answering well."""
        path = self._folder / "mode"
        return path.read_text() if path.exists() else ""

    def note(self, headers: dict[str, str], body: bytes, *, accepted: bool) -> None:
        """Verify a delivery and write it down, in one piece."""
        headers = {name.lower(): value for name, value in headers.items()}
        try:
            self._webhook.verify(body, headers)
        except WebhookVerificationError:
            verified = False
        else:
            verified = True
        seen = {
            "id": headers.get("webhook-id", ""),
            "verified": verified,
            "accepted": accepted,
            "body": body.decode(errors="replace"),
        }
        os.write(self._notes, json.dumps(seen).encode() + b"\n")


if __name__ == "__main__":
    _Endpoint(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
