"""Those who are told: HTTP servers on loopback that behave, or hang, reset, drip and never end."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from answering import answering, lower_headers, read_body, reply


@dataclass
class Client:
    """A server that keeps what was posted, and answers with `statuses` in turn, then 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    posted: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)


@contextmanager
def client() -> Iterator[Client]:
    made = Client()

    def take(request: BaseHTTPRequestHandler) -> None:
        made.posted.append((read_body(request), lower_headers(request)))
        reply(request, made.statuses.pop(0) if made.statuses else 200, made.answer, made.headers)

    with answering(take) as url:
        made.url = f"{url}/hook?x=1"
        yield made


@dataclass
class Odd:
    """A server whose connections each go to a function. ended -- how many of them are over."""

    port: int
    begun: int = 0
    ended: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def odd(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[Odd]:
    """Serve with `behave(connection, closing)`, which returns when the other side is gone."""
    listener = socket.create_server(("127.0.0.1", 0))
    made, closing = Odd(listener.getsockname()[1]), threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65_536)
                behave(connection, closing)
            except OSError:
                pass
        made.ended += 1

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            made.begun += 1
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield made
    closing.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


HEAD = b"HTTP/1.1 200 OK\r\n"


def hang(_: socket.socket, closing: threading.Event) -> None:
    closing.wait(60)


def close(_: socket.socket, _closing: threading.Event) -> None:
    """Say nothing at all."""


def reset(connection: socket.socket, _: threading.Event) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")


def drip_head(connection: socket.socket, closing: threading.Event) -> None:
    """A byte now and then: no single read ever waits for long."""
    connection.sendall(HEAD + b"X: ")
    while not closing.wait(0.05):
        connection.sendall(b"x")


def drip_body(connection: socket.socket, closing: threading.Event) -> None:
    connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
    while not closing.wait(0.05):
        connection.sendall(b"x")


def endless_body(connection: socket.socket, closing: threading.Event) -> None:
    connection.sendall(HEAD + b"Content-Length: 104857600\r\n\r\n")
    while not closing.is_set():
        connection.sendall(65_536 * b"x")


def endless_head(connection: socket.socket, closing: threading.Event) -> None:
    connection.sendall(HEAD)
    while not closing.is_set():
        connection.sendall(b"X-Filler: " + 4_000 * b"x" + b"\r\n")


def interim_answers(connection: socket.socket, closing: threading.Event) -> None:
    while not closing.is_set():
        connection.sendall(1_000 * b"HTTP/1.1 100 Continue\r\n\r\n")


def no_http(connection: socket.socket, _: threading.Event) -> None:
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def http2_only(connection: socket.socket, _: threading.Event) -> None:
    connection.sendall(
        b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80\0\x04\0\x01\0\0\0\x05\0\xff\xff\xff"
    )
