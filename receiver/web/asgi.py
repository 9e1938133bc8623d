"""The receiver for an ASGI server: callbacks are answered right here, all else by Flask. ADR 8.

The answers are those of `web/callbacks.py`; what differs is that nobody holds a thread while the
body arrives or the commit is under way, so that neither slow clients nor a slow disk use them up.
"""

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, cast

import msgspec
from a2wsgi import WSGIMiddleware
from a2wsgi.wsgi_typing import WSGIApp
from flask import Flask

from receiver.errors import (
    BodyError,
    BodyTooLarge,
    BodyTruncated,
    ReceiverError,
    StoreUnavailable,
)
from receiver.intake import Delivery, Step
from receiver.signatures import HEADER
from receiver.storage.store import Receipt, Result
from receiver.web import Services, requests
from receiver.web.problems import Answer, answer_to

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PATH = "/callbacks/"
BODY_SECONDS = 20  # for a callback's body to arrive; the vendor's have a few hundred bytes
MOST_DRAINED_BYTES = 8 * 2**20  # of a body that is too large; what is not read resets the answer

_SIGNATURE = HEADER.lower().encode()
_REQUEST_ID = requests.HEADER.lower().encode()
_WEBHOOK_ID = b"elements-webhook-id"
_JSON = {"Content-Type": "application/json"}


class Adapter:
    """An ASGI application.

    flask -- the WSGI application of the same services. threads -- how many requests it may answer
    at a time in this process.
    """

    def __init__(self, flask: Flask, threads: int) -> None:
        self._services: Services = flask.extensions["receiver"]
        self._flask = WSGIMiddleware(_wsgi(flask), workers=threads)
        # Keys read anew, which a refusal asks for, must not wait for Flask's threads.
        self._readers = ThreadPoolExecutor(2, "keys")
        self._brought: _Commits | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; of what else a server may ask, only `lifespan` is known."""
        if scope["type"] != "http":
            await self._flask(scope, receive, send)  # type: ignore[arg-type]
        elif scope["method"] == "POST" and scope["path"].startswith(PATH):
            await self._callback(scope, receive, send)
        else:
            await self._flask(scope, _whole(receive), send)  # type: ignore[arg-type]

    async def _callback(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = scope["headers"]
        peer = self._peer(scope)
        try:
            body = await self._body(headers, receive)
            delivery = Delivery(
                instance=scope["path"][len(PATH) :].strip("/"),
                body=body,
                signature=_header(headers, _SIGNATURE),
                webhook_id=_header(headers, _WEBHOOK_ID),
                peer=peer,
                request=self._request_id(headers),
            )
            receipt = await self._received(delivery)
            answer = Answer(200, _JSON, msgspec.json.encode(receipt))
        except BodyError as error:
            self._services.intake.count_refusal(peer, error.reason)
            answer = answer_to(error, PATH)
        except Exception as error:  # noqa: BLE001 - whatever broke, the sender is told to come again
            answer = answer_to(error, PATH)
        requests.note_answer(self._services, PATH, answer.status)
        if self._services.settings.log_requests:
            requests.log_answer(scope["path"], "POST", answer.status, began, peer)
        await _send(answer, send)
        if answer.status == 413:  # noqa: PLR2004
            await _drain(receive)

    async def _body(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
        limit = self._services.settings.max_body_bytes
        announced = _header(headers, b"content-length")
        # The server has refused what is no number.
        if announced is not None and int(announced) > limit:
            raise BodyTooLarge(f"more than {limit} bytes")
        message = await receive()
        if not message.get("more_body"):  # what the vendor sends is here in one piece
            return await _gathered(message, receive, limit)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await _gathered(message, receive, limit)
        except TimeoutError:
            raise BodyTruncated(f"not whole after {BODY_SECONDS} s") from None

    async def _received(self, delivery: Delivery) -> Receipt:
        """Do as `Intake.receive`, without a thread that waits."""
        steps = self._services.intake.steps(delivery)
        # One for all steps: each may take its time, but the sender waits for them together.
        deadline = asyncio.get_running_loop().time() + self._services.settings.answer_within / 1000
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._done(step, deadline)
                except ReceiverError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return cast("Receipt", end.value)

    async def _done(self, step: Step, deadline: float) -> object:
        loop = asyncio.get_running_loop()
        if not callable(step):
            future = self._services.intake.writer.submit(step)
            return await self._commits().of(future, deadline - loop.time())
        try:
            async with asyncio.timeout_at(deadline):
                return await loop.run_in_executor(self._readers, step)
        except TimeoutError:
            raise StoreUnavailable("the keys could not be read in time") from None

    def _commits(self) -> "_Commits":
        # Not before a request: the event loop is not there when a worker makes its application.
        if self._brought is None:
            self._brought = _Commits(asyncio.get_running_loop())
        return self._brought

    def _request_id(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        if not self._services.settings.trusted_proxies:
            return None
        return requests.id_of(_header(headers, _REQUEST_ID), self._services)

    def _peer(self, scope: Scope) -> str:
        """The sender's address, by the proxies that are trusted; the rule is Werkzeug's."""
        hops = self._services.settings.trusted_proxies
        if hops:
            told = (_header(scope["headers"], b"x-forwarded-for") or "").split(",")
            if len(told) >= hops:
                return told[-hops].strip()
        client = scope.get("client")
        return str(client[0]) if client else ""


class _Commits:
    """Brings what the writer has done to the event loop, a batch at a time.

    `asyncio.wrap_future` would wake the loop up for each: a system call, and the interpreter's lock
    handed over, in the midst of the batch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: deque[tuple[asyncio.Future[Result], Future[Result]]] = deque()
        self._woken = False

    async def of(self, future: "Future[Result]", seconds: float) -> Result:
        """Give a future's result, or raise its error; StoreUnavailable when the time is over."""
        waiter: asyncio.Future[Result] = self._loop.create_future()
        future.add_done_callback(lambda done: self._put(waiter, done))
        deadline = self._loop.call_later(seconds, _expire, waiter, future)
        try:
            return await waiter
        finally:
            deadline.cancel()

    def _put(self, waiter: "asyncio.Future[Result]", done: "Future[Result]") -> None:
        # First this, then the look at `_woken`; below the other way round: none is left behind.
        self._done.append((waiter, done))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._bring)

    def _bring(self) -> None:
        self._woken = False
        while self._done:
            waiter, done = self._done.popleft()
            if waiter.done():
                continue
            if error := done.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(done.result())


def _expire(waiter: "asyncio.Future[Result]", future: "Future[Result]") -> None:
    future.cancel()
    if not waiter.done():
        waiter.set_exception(StoreUnavailable("not committed in time"))


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """A header's value, as WSGI gives it: latin-1, several joined by a comma, None if absent."""
    values = [value for key, value in headers if key == name]
    return b",".join(values).decode("latin-1") if values else None


async def _gathered(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
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


async def _drain(receive: Receive) -> None:
    """Read on for a while: closing upon unread bytes would reset the answer away."""
    drained = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while drained < MOST_DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


async def _send(answer: Answer, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _whole(receive: Receive) -> Receive:
    """Have a body that breaks off raise: to WSGI it would look like a whole one."""

    async def received() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BodyTruncated("the body broke off")
        return message

    return received


def _wsgi(flask: Flask) -> WSGIApp:
    def application(environ: Any, start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
        environ["wsgi.input_terminated"] = True  # or Werkzeug takes a chunked body for none
        environ["wsgi.errors"] = sys.stderr
        return flask(environ, start_response)

    return application
