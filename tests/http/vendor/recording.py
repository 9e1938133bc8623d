"""A receiver as it runs in production, between raw clients and an upstream that records bytes."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from cryptography.fernet import Fernet
from nodes import DEADLINE, Node, add_instance, make_token, running_nodes
from sqlalchemy import create_engine, text

from receiver.openconnectors.shapes import DELIVERIES

BASE = b"/elements/api-v2"
LIMIT = 110_000_000  # bytes of an upload
CREATED = b'{"id": "%d", "status": "CREATED", "odd": 1.10}'


class Message(NamedTuple):
    """A request or an answer as its bytes say: start line, headers in order, body."""

    start: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.headers if each == name]


def read_message(
    stream, *, has_body: bool = True, piece: Callable[[int], object] = bool
) -> Message:
    """Read a message; names of headers in lower case. Raises EOFError where it breaks off."""
    start = stream.readline().rstrip(b"\r\n")
    if not start:
        raise EOFError
    headers = []
    while line := stream.readline().rstrip(b"\r\n"):
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip()))
    named = dict(headers)
    body = bytearray()
    if not has_body:
        return Message(start, headers, b"")
    if b"chunked" in named.get(b"transfer-encoding", b"").lower():
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
    elif (length := named.get(b"content-length")) is not None:
        left = int(length)
        while left and (got := stream.read(min(left, 1 << 20))):
            piece(len(got))
            left -= len(got)
            body += got if len(body) < 1 << 22 else b""
        if left:
            raise EOFError
    elif start.startswith(b"HTTP/"):
        body += stream.read()
    return Message(start, headers, bytes(body))


@dataclass
class Recorder:
    """An upstream that records what clients have sent to it, and answers with `answer`."""

    got: list[Message] = field(default_factory=list)
    answer: Callable[[Message], bytes] | None = None
    ids: int = 1000
    begun: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, suppress(OSError, EOFError):
            while True:
                message = read_message(stream, piece=lambda _: self.begun.set())
                if DELIVERIES.encode() in message.start:
                    # The node asks so by itself, a minute after its start: no client did.
                    connection.sendall(answer(200, b"[]", close=False))
                    continue
                self.got.append(message)
                connection.sendall((self.answer or self._usual)(message))
                if self.answer is not None:
                    return

    def _usual(self, message: Message) -> bytes:
        self.ids += 1
        head = message.start.startswith(b"HEAD")
        return answer(200, CREATED % self.ids, head=head, close=False)


def answer(
    status: int, body: bytes = b"", *headers: bytes, head: bool = False, close: bool = True
) -> bytes:
    """Write an answer; without a type among its headers it is JSON.

    close -- says that the connection ends: or another request might already be on its way on it.
    """
    typed = headers or (b"Content-Type: application/json",)
    lines = [b"HTTP/1.1 %d Said" % status, b"Content-Length: %d" % len(body), *typed]
    lines += [b"Connection: close"] if close else []
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head else body)


@dataclass
class Through:
    """A receiver whose vendor is a Recorder."""

    node: Node
    recorder: Recorder
    token: str

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.node.port), timeout=DEADLINE) as made:
            yield made

    def ask(
        self, method: bytes, target: bytes, headers: list[bytes] | None = None, body: bytes = b""
    ) -> Message:
        """Send a request as these bytes and give the answer."""
        given = [] if headers is None else headers
        with self.connected() as connection, connection.makefile("rb") as stream:
            connection.sendall(self.head(method, target, given) + body)
            return read_message(stream, has_body=method != b"HEAD")

    def head(self, method: bytes, target: bytes, headers: list[bytes]) -> bytes:
        own = [b"Host: receiver.example.com", b"Authorization: " + self.authorization]
        return b"\r\n".join([b"%s %s HTTP/1.1" % (method, BASE + target), *own, *headers, b"", b""])

    @property
    def authorization(self) -> bytes:
        return f"User {self.token}, Organization o-1, Element gooddata".encode()

    def forget_the_pace(self) -> None:
        """Let the vendor be asked again at once, whatever it said before."""
        engine = create_engine(self.node.database_url)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM paces"))
        engine.dispose()

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as the API tells it."""
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"http://127.0.0.1:{self.node.port}/api/v1/jobs/{job_id}"
        return httpx.get(url, headers=headers, trust_env=False).json()

    def memory(self) -> int:
        """The most that a worker ever held, in bytes."""
        master = self.node.process.pid
        workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        found = [
            re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in workers
        ]
        return max(int(size[1]) << 10 for size in found)

    def sent(self) -> Message:
        """The request that went on last."""
        return self.recorder.got[-1]


@contextmanager
def receivers(database_url: str, folder: Path, count: int) -> Iterator[list[Through]]:
    """Nodes on one database, with one Recorder for their vendor."""
    key, recorder = Fernet.generate_key().decode(), Recorder()
    token = make_token(database_url)
    add_instance(database_url, key, "gooddata")
    settings = {
        "RECEIVER_ENCRYPTION_KEYS": key,
        "RECEIVER_PUBLIC_URL": "https://hooks.example.com",
        "RECEIVER_MAX_UPLOAD_BYTES": str(LIMIT),
        "OPEN_CONNECTORS_URL": f"http://127.0.0.1:{recorder.port}/elements/api-v2",
        "OPEN_CONNECTORS_RATE": "1000",
    }
    with running_nodes(database_url, folder, count, **settings) as nodes:
        yield [Through(node, recorder, token) for node in nodes]
    recorder.close()
