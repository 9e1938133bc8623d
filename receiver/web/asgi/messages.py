"""Reading ASGI's requests and writing its responses."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from receiver.errors import BodyTooLarge, BodyTruncated
from receiver.lib.ratelimit import client_address
from receiver.web.http import Response

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

BODY_SECONDS = 20  # for a body to arrive, or for the next piece of an upload
MIN_UPLOAD_RATE = 1024  # bytes a second, on average: who sends less would hold a thread for hours
_OF_A_BODY = frozenset((b"content-length", b"transfer-encoding"))
MAX_DRAINED_BYTES = 8 * 2**20  # of a body that is too large; what is not read resets the answer


def peer_of(scope: Scope, hops: int) -> str:
    """Return the address of who sent a request, by the proxies that are trusted."""
    client = scope.get("client")
    forwarded = header(scope["headers"], b"x-forwarded-for")
    return client_address(str(client[0]) if client else "", forwarded, hops)


def header(headers: Headers, name: bytes) -> str | None:
    """Return a header as WSGI has it: latin-1, several joined by a comma, None if absent."""
    values = [value for key, value in headers if key == name]
    return b",".join(values).decode("latin-1") if values else None


def announces_body(headers: Headers) -> bool:
    """Whether a request has a body, be it an empty one."""
    return any(name in _OF_A_BODY for name, _ in headers)


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """Return a body. Raises BodyTooLarge; BodyTruncated if it is not complete in BODY_SECONDS."""
    announced = int(header(headers, b"content-length") or 0)  # the server rejects other values
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise BodyTruncated(f"broke off after {len(body)} bytes")
                body += message.get("body", b"")
                if max(announced, len(body)) > limit:
                    break
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise BodyTruncated(f"not whole after {BODY_SECONDS} s") from None
    await _drain(receive)
    raise BodyTooLarge(f"more than {limit} bytes")


async def _drain(receive: Receive) -> None:
    """Read on for a while: closing upon unread bytes would reset the answer away."""
    drained = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while drained < MAX_DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def raise_on_disconnect(receive: Receive) -> Receive:
    """Have a body raise that breaks off, stalls or drips: WSGI would take it for a whole one."""
    waited, size = 0.0, 0  # for the client alone: not until a thread is free, nor for the disk

    async def received() -> Message:
        nonlocal waited, size
        left = BODY_SECONDS + size / MIN_UPLOAD_RATE - waited
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(BODY_SECONDS, left)):
                message = await receive()
        except TimeoutError:
            raise BodyTruncated(f"nothing came for {BODY_SECONDS} s, or too little") from None
        if message["type"] == "http.disconnect":
            raise BodyTruncated("the body broke off")
        waited += time.monotonic() - began
        size += len(message.get("body", b""))
        return message

    return received


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that has a body, read before, as its first message."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received


async def send_response(response: Response, send: Send) -> None:
    """Send a response; of one with a stream only the head."""
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    if response.status != 304 and response.stream is None:
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.stream is None:
        await send({"type": "http.response.body", "body": response.body})
