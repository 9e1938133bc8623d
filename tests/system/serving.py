"""Receivers as they run in production: gunicorn, its workers, and clients over TCP."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from nodes import DEADLINE, KEY, eventually, make_token
from processes import ROOT, children, is_writer, own_environment

from receiver.openconnectors.signatures import HEADER, SignatureKey, sign

TOKEN_NAME = "e2e"
SERVE = (sys.executable, "-m", "receiver", "serve", "--bind", "127.0.0.1:0", "--workers", "1")

Headers = Sequence[tuple[str, str]]


@dataclass
class Client:
    """A kept-alive connection to a receiver."""

    port: int
    connection: http.client.HTTPConnection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        self.connection.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Any = ()) -> Any:
        """Send a request; give (status, body)."""
        self.connection.request(method, path, body, dict(headers))
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def call_back(self, body: bytes, key: SignatureKey = KEY) -> Any:
        """POST a signed callback, until it is not 503; give (status, what the JSON says).

        A busy machine may not store it in the time that senders wait.
        """
        signed = {HEADER: sign(body, key)}.items()

        def answer() -> Any:
            status, content = self.ask("POST", "/callbacks/default", body, signed)
            return status != 503 and (status, json.loads(content))

        return eventually(answer, "an answer but 503")


@dataclass
class Served:
    """A running receiver."""

    process: subprocess.Popen[bytes]
    port: int
    token: str
    database_url: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def master(self) -> int:
        """The pid of gunicorn's master; under strace, it is strace's child."""
        if Path(self.process.args[0]).name == "strace":
            return children(self.process.pid)[0]
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """Who answers; not the process that writes for them."""
        return [pid for pid in children(self.master) if not is_writer(pid)]

    def client(self) -> Client:
        return Client(self.port)

    def get(self, path: str) -> Any:
        """Ask the API; give what the JSON says."""
        status, content = self.get_bytes(path)
        assert status == 200, content
        return json.loads(content)

    def get_bytes(self, path: str) -> tuple[int, bytes]:
        with self.client() as client:
            return client.ask(
                "GET", f"/api/v1{path}", headers=[("Authorization", f"Bearer {self.token}")]
            )

    def all_of(self, what: str) -> list[dict[str, Any]]:
        """Every job or event, over all pages."""
        found, cursor = [], ""
        for _ in range(100):
            page = self.get(f"/{what}?limit=1000{cursor}")
            found += page[what]
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"
        return pytest.fail("more than 100 pages")

    def is_ready(self) -> bool:
        try:
            with self.client() as client:
                return client.ask("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def raw(self, sent: bytes, *, half_close: bool = False) -> tuple[int, bytes]:
        """Send bytes over a connection of their own; give (status, body) of the first answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            method = sent.partition(b" ")[0].decode()
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            content = answer.status, answer.read()
            answer.close()
            return content

    def terminate(self) -> int:
        """Ask it to stop; give its exit code."""
        if self.process.poll() is None:
            os.kill(self.master, signal.SIGTERM)
        return self.process.wait(DEADLINE)


@contextmanager
def running(
    database_url: str, folder: Path, command: Iterable[str] = SERVE, **environment: str
) -> Iterator[Served]:
    """Run a receiver until the end; fail if it wrote a traceback or a secret to its log."""
    token = make_token(database_url, TOKEN_NAME)
    settings = {
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "RECEIVER_DATABASE_URL": database_url,
        "EVENT_NOTIFICATION_SIGNATURE_KEY": KEY.secret.decode(),
    }
    variables = own_environment(**{**settings, **environment})
    log = folder / f"stderr-{os.urandom(4).hex()}"
    at_work = ROOT if any(word == "wsgi:app" for word in command) else folder
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command), stdout=output, stderr=output, env=variables, cwd=at_work
        )
    served = Served(process, 0, token, database_url, log)
    try:
        served.port = eventually(lambda: port_in(served), "the start")
        eventually(served.is_ready, "readiness")
        yield served
    finally:
        stop(served)
    written = log.read_text(errors="replace")
    secrets = (KEY.secret.decode(), token, token.removeprefix("rcv_"))
    assert [secret for secret in secrets if secret in written] == []
    assert "Traceback" not in written, written


def port_in(served: Served) -> int | None:
    written = served.log.read_text(errors="replace")
    if served.process.poll() is not None:
        pytest.fail(f"it ended with {served.process.returncode}: {written}")
    match = re.search(r"Listening at: http://127\.0\.0\.1:([0-9]+)", written)
    return int(match[1]) if match else None


def stop(served: Served) -> None:
    """Stop it, whatever state it is in; no worker stays behind."""
    if served.process.poll() is not None:
        return
    left = [served.master, *served.workers]
    try:
        served.terminate()
    except subprocess.TimeoutExpired:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        served.process.kill()
        served.process.wait(DEADLINE)
        raise
