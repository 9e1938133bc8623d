"""An attack: bytes to send, and what is answered to them, by a node itself and by a proxy.

What a proxy refuses is its own affair and changes with its version. Ours is that it answers or
closes, that no node has a fault, and that nothing comes of it that is not said here.
"""

import re
from dataclasses import dataclass

from nodes import KEY
from proxies import OUTSIDE

from receiver.openconnectors.signatures import HEADER, sign

HOST = f"Host: {OUTSIDE}\r\n".encode()
BODY = b'{"id":"hostile","status":"RUNNING"}'
SIGNED = f"{HEADER}: {sign(BODY, KEY)}\r\n".encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
POST = b"POST /callbacks/default HTTP/1.1\r\n" + HOST
# What an attacker would have the receiver see as a request of its own, and the request after it.
SMUGGLED = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
NEXT = b"GET /callbacks/next HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
CLOSE = b"Connection: close\r\n"
WAYS = ("direct", "nginx", "haproxy")
REFUSED = re.compile(r"4\d\d|501|505|-")


@dataclass(frozen=True)
class Case:
    """Bytes, sent over a connection of their own.

    answers -- all statuses until a node closes the connection, interim ones included; `-` is none.
    After a bar, what a proxy may let come of it, where that differs. For each of these statuses a
    proxy may also refuse (4xx, 501, 505), or close the connection.
    half_close -- the sender says after the bytes that no more will come.
    head -- they ask with HEAD.
    """

    name: str
    answers: str
    sent: bytes
    half_close: bool = False
    head: bool = False

    def allows(self, way: str, got: str) -> bool:
        """Whether these may be the answers in one of WAYS."""
        direct, _, proxied = self.answers.partition(" | ")
        if way == "direct":
            return got == direct
        allowed, final = (
            [status for status in told.split() if not status.startswith("1")]
            for told in (proxied or direct, got)
        )
        return len(final) <= len(allowed) and all(
            status == may or REFUSED.fullmatch(status)
            for status, may in zip(final, allowed, strict=False)
        )


def post(*lines: bytes, body: bytes = BODY, then: bytes = NEXT) -> bytes:
    """A signed callback with these header lines, and a request after it."""
    return POST + SIGNED + b"".join(lines) + b"\r\n" + body + then


def line(target: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    """A request that asks for a target and for the end of the connection."""
    return b"%b %b %b\r\n" % (method, target, version) + HOST + CLOSE + b"\r\n"


def headed(*lines: bytes) -> bytes:
    """A signed callback with these header lines, alone."""
    return post(*lines, LENGTH, CLOSE, then=b"")
