"""Reading ASGI's requests and writing its answers."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from receiver.errors import BodyTooLarge, BodyTruncated
from receiver.lib.ratelimit import client_address
from receiver.web.http import Response

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

BODY_SECONDS = 20  # for a callback's body to arrive; the vendor's have a few hundred bytes
MOST_DRAINED_BYTES = 8 * 2**20  # of a body that is too large; what is not read resets the answer

_ABSOLUTE = re.compile(b"https?://[^/]*", re.IGNORECASE)


def peer_of(scope: Scope, hops: int) -> str:
    """Return the address of who sent a request, by the proxies that are trusted."""
    client = scope.get("client")
    forwarded = header(scope["headers"], b"x-forwarded-for")
    return client_address(str(client[0]) if client else "", forwarded, hops)


def to_origin_form(scope: Scope) -> None:
    """Take scheme and host off a target that has them, as any server must (RFC 9112, 3.2.2)."""
    if found := _ABSOLUTE.match(scope["raw_path"]):
        path = scope["raw_path"][found.end() :] or b"/"
        scope["raw_path"], scope["path"] = path, unquote_to_bytes(path).decode("utf-8", "replace")


def header(headers: Headers, name: bytes) -> str | None:
    """A header's value, as WSGI gives it: latin-1, several joined by a comma, None if absent."""
    values = [value for key, value in headers if key == name]
    return b",".join(values).decode("latin-1") if values else None


async def gathered(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    """Give a body whose first message is there. Raises BodyTooLarge, BodyTruncated."""
    body = bytearray()
    while True:
        if message["type"] != "http.request":
            raise BodyTruncated(f"broke off after {len(body)} bytes")
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(f"more than {limit} bytes")
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


async def drain(receive: Receive) -> None:
    """Read on for a while: closing upon unread bytes would reset the answer away."""
    drained = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while drained < MOST_DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def send_response(response: Response, send: Send, *, is_head: bool = False) -> None:
    """Send a response."""
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    if response.status != 304:  # noqa: PLR2004 - whose length would be that of the body it stands for
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else response.body})


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that has a body, read before, as its first message."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return received


def whole(receive: Receive) -> Receive:
    """Have a body that breaks off, or of which nothing comes for long, raise BodyTruncated.

    To WSGI a broken one would look like a whole one, and who waits for a piece holds a thread.
    """

    async def received() -> MutableMapping[str, Any]:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise BodyTruncated(f"nothing came for {BODY_SECONDS} s") from None
        if message["type"] == "http.disconnect":
            raise BodyTruncated("the body broke off")
        return message

    return received
