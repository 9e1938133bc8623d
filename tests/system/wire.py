"""Bytes over a socket, and the answers that come back, whatever they are."""

import re
import socket
from contextlib import suppress

from nodes import DEADLINE


def exchange(port: int, sent: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes to a port of this machine; give all that comes back until it is closed there."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as wire:
        with suppress(OSError):  # refused meanwhile
            wire.sendall(sent)
            if half_close:
                wire.shutdown(socket.SHUT_WR)
        return read_all(wire)


def read_all(wire: socket.socket) -> bytes:
    """Read until the other side closes."""
    answer = b""
    with suppress(OSError):
        while piece := wire.recv(65_536):
            answer += piece
    return answer


def statuses(answer: bytes, *, head: bool = False) -> str:
    """The statuses of all answers, `100 200` for instance; `?` for what is no answer.

    head -- the answers are to HEAD, and have no bodies.
    """
    found = []
    while answer:
        match = re.match(rb"HTTP/1\.[01] ([1-5]\d\d) ?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n", answer)
        if not match:
            return " ".join([*found, "?"])
        found.append(match[1].decode())
        bodiless = head or found[-1] in {"204", "304"} or found[-1].startswith("1")
        answer = answer[match.end() :]
        if not bodiless:
            answer = _after_body(match[0].lower(), answer)
    return " ".join(found)


def _after_body(head: bytes, rest: bytes) -> bytes:
    if b"\r\ntransfer-encoding: chunked\r\n" in head:
        while chunk := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
            size = int(chunk[1], 16)
            rest = rest[chunk.end() + size + 2 :]
            if not size:
                break
        return rest
    length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
    return rest[int(length[1]) :] if length else b""
