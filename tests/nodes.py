"""Receivers as nodes of a group: `receiver serve` on ports that outlive a kill."""

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from processes import free_port, own_environment
from sqlalchemy import create_engine, text

from receiver.database import migrations
from receiver.instances import keys as signature_keys
from receiver.instances import registry, tokens
from receiver.instances.encryption import SecretBox
from receiver.openconnectors.signatures import SignatureKey

DEADLINE = 60  # seconds; only what is broken needs them
KEY = SignatureKey("environment", b"a signature key that no log may show")
SERVE = (sys.executable, "-m", "receiver", "serve")
T = TypeVar("T")


def eventually(
    condition: Callable[[], Any], what: str = "what was waited for", *, within: float = DEADLINE
) -> Any:
    """Look again and again; return the first true answer, or fail after so many seconds."""
    pause, deadline = threading.Event(), time.monotonic() + within
    while not (answer := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} never came to be")
        pause.wait(0.02)
    return answer


def outcome_of(
    coroutine: Coroutine[Any, Any, T], run: Callable[[Coroutine[Any, Any, T]], T] = asyncio.run
) -> T:
    """Run it, not in this thread: Playwright's, in the same process, has a loop that runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run, coroutine).result()


def stored(database_url: str) -> list[bytes]:
    """The bodies in a database, read past the receiver and its deadlines."""
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect() as connection:
        bodies = [bytes(body) for (body,) in connection.execute(text("SELECT body FROM events"))]
    engine.dispose()
    return bodies


def make_token(database_url: str, name: str = "test") -> str:
    """A token that may act."""
    database = migrations.open_database(database_url)
    with database.write() as session:
        token = tokens.create_token(session, name, "operate", 1)
    database.close()
    return token


def add_instance(
    database_url: str, encryption_key: str, name: str, *keys: bytes, hub: str | None = None
) -> list[str]:
    """Add an instance with these signature keys; give its two secrets at the vendor."""
    secrets = [f"{name}-element-token", f"{name}-user-secret"]
    element, user = (secret.encode() for secret in secrets)
    database, secret_box = migrations.open_database(database_url), SecretBox([encryption_key])
    with database.write() as session:
        registry.add_instance(
            session, secret_box, name, 1, hub=hub, element_token=element, user_secret=user
        )
        for key in keys:
            signature_keys.add_key(session, secret_box, name, key, 1)
    database.close()
    return secrets


@dataclass
class Node:
    """A receiver, which can be killed and started again."""

    database_url: str
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    command: Sequence[str] = SERVE
    workers: int = 1
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"node-{self.port}.log"

    def start(self) -> None:
        """Start it; it is not ready yet."""
        variables = own_environment(
            RECEIVER_DATABASE_URL=self.database_url,
            EVENT_NOTIFICATION_SIGNATURE_KEY=KEY.secret.decode(),
            RECEIVER_TRUSTED_PROXIES="1",
            HOME=str(self.folder),
            **self.settings,
        )
        where = ("--bind", f"127.0.0.1:{self.port}", "--workers", str(self.workers))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *where],
                stdout=log,
                stderr=log,
                env=variables,
                cwd=self.folder,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it is ready."""
        eventually(self.is_ready, f"readiness on port {self.port}")

    def is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the node ended: {self.log.read_text(errors='replace')[-2000:]}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """End master and workers as a power cut would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)

    def freeze(self) -> None:
        """Stop master and workers in their tracks; connections stay open."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()

    def terminate(self) -> None:
        """Ask it to stop, and wait until it has."""
        self.ask_to_stop()
        assert self.process is not None
        self.process.wait(DEADLINE)

    def faults(self) -> list[str]:
        """Lines in its log that tell of a fault."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if "Traceback" in line or KEY.secret.decode() in line]


@contextmanager
def running_sandbox(folder: Path, *options: str, bind: str = "127.0.0.1:0") -> Iterator[str]:
    """Run the vendor's stand-in; give its URL."""
    command = (*SERVE[:-1], "sandbox", "--bind", bind, *options)
    variables = own_environment(HOME=str(folder))
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=variables, cwd=folder) as process:
        try:
            yield process.stderr.readline().decode().split()[-1].partition("/elements")[0]
        finally:
            process.terminate()


@contextmanager
def running(*nodes: Node) -> Iterator[None]:
    """Run nodes, all ready; none stays behind, and none had a fault."""
    try:
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait()
        yield
        for node in nodes:
            node.ask_to_stop()
        for node in nodes:
            node.terminate()
    finally:
        for node in nodes:
            if node.process is not None and node.process.poll() is None:
                node.kill()
    assert [fault for node in nodes for fault in node.faults()] == []


@contextmanager
def running_nodes(
    database_url: str, folder: Path, count: int = 2, workers: int = 1, **settings: str
) -> Iterator[list[Node]]:
    """Run nodes on one database."""
    nodes = [Node(database_url, folder, settings, workers=workers) for _ in range(count)]
    with running(*nodes):
        yield nodes
