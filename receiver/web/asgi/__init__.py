"""The receiver for an ASGI server: callbacks, API and probes are answered here, the rest by Flask.

What differs from the Flask views of the same services is who waits: nobody holds a thread while a
body arrives or a commit is under way, nor while a job is waited for or events are streamed; the API
reads in threads of its own, and probes wait for neither. ADR 12.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from flask import Flask
from structlog.contextvars import bound_contextvars

from receiver import metrics
from receiver.callbacks.deliveries import Delivery, Receipt, write_headers
from receiver.errors import BodyError, StoreUnavailable
from receiver.openconnectors.shapes import BASE, WEBHOOK_ID_HEADER
from receiver.openconnectors.signatures import HEADER
from receiver.web import Services, request_log
from receiver.web.api import ROUTES
from receiver.web.api.routes import Route, find_route
from receiver.web.api.stream import HEADERS as STREAM_HEADERS
from receiver.web.api.stream import MEDIA_TYPE as EVENT_STREAM
from receiver.web.asgi.messages import (
    Receive,
    Scope,
    Send,
    header,
    peer_of,
    read_body,
    replay,
    send_response,
)
from receiver.web.asgi.readers import Readers
from receiver.web.asgi.streams import Streams
from receiver.web.asgi.threads import FlaskThreads
from receiver.web.callbacks import PREFIX as CALLBACKS
from receiver.web.callbacks import answer_receipt
from receiver.web.http import Request, Response
from receiver.web.ops import PROBES, Probes
from receiver.web.problems import response_to

MAX_HELD = 64  # requests that wait for a job to end; each costs two looks a second
MAX_FORM_BYTES = 2**20

SIGNATURE = HEADER.lower().encode()
WEBHOOK_ID = WEBHOOK_ID_HEADER.lower().encode()
REQUEST_ID = request_log.HEADER.lower().encode()


class Connection(Protocol):
    """One client's connection."""

    def expire(self, now: float) -> None:
        """Close it if its client takes too long; now -- the loop's time."""


class Application:
    """An ASGI application.

    flask -- the WSGI application of the same services. threads -- how many requests it may answer
    at a time in this process. max_connections -- held; those above are closed. tick -- is called
    each second.
    """

    def __init__(
        self,
        flask: Flask,
        threads: int,
        max_connections: int = 1000,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.services: Services = flask.extensions["receiver"]
        self.connections: set[Connection] = set()
        self._flask = FlaskThreads(flask, threads)
        self._relay = FlaskThreads(flask, threads)  # for what waits for the vendor
        self.max_connections, self._tick = max_connections, tick
        self.max_body_bytes = self.services.settings.max_body_bytes
        self.answer_seconds = self.services.settings.answer_within / 1000
        self.readers = Readers()
        self._probes = Probes(self.services)
        self._held, self._stopping = 0, asyncio.Event()
        self._streams = Streams(self.services, self.readers)

    def stop(self) -> None:
        """Answer those who wait for a job as it stands now, and end all streams."""
        self._stopping.set()
        self._streams.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or begin and end with the server."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        scope["path"] = "/" + scope["path"].lstrip("/")
        method, path = scope["method"], scope["path"]
        if method == "POST" and path.startswith(CALLBACKS):
            await self._respond(scope, self._callback(scope, receive), send)
        elif method in ("GET", "HEAD") and path in PROBES:
            await self._respond(scope, self._probes.answer(path), send)
        elif method == "GET" and (found := self._find(scope)):
            response = await self._respond(scope, self._answered(found[1]), send)
            if response.stream is not None:
                await self._streams.send(response.stream, receive, send)
        elif path.startswith(BASE) or path.endswith(("/result", "/failed-rows")):
            await self._relay.answer(scope, receive, send)
        elif method in ("POST", "PATCH"):
            await self._form(scope, receive, send)
        else:
            await self._flask.answer(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.services.intake.writer.attach(asyncio.get_running_loop())
        seconds = asyncio.create_task(self._each_second())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        seconds.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _each_second(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            self._tick()
            metrics.write_counts()
            for connection in tuple(self.connections):
                connection.expire(loop.time())

    async def _respond(self, scope: Scope, answer: Awaitable[Response], send: Send) -> Response:
        began = time.perf_counter()
        result: Response | Exception
        try:
            result = await answer
        except Exception as error:  # noqa: BLE001 - answered as Flask would
            result = error
        response = self.finish(scope, result, began)
        await send_response(response, send)
        return response

    def finish(self, scope: Scope, answer: Response | Exception, began: float) -> Response:
        """Return the response, counted, logged if that is wanted, and with the request's id.

        began -- by time.perf_counter.
        """
        path = scope["path"]
        response = response_to(answer, path) if isinstance(answer, Exception) else answer
        id_ = self.request_id(header(scope["headers"], REQUEST_ID)) or request_log.new_id()
        request_log.note_answer(self.services, path, response.status)
        if self.services.settings.log_requests:
            with bound_contextvars(request_id=id_):
                peer, method = self._peer(scope), scope["method"]
                request_log.log_answer(path, method, response.status, began, peer)
        if path.startswith(CALLBACKS):
            return response
        return replace(response, headers={**response.headers, request_log.HEADER: id_})

    def note_callback(self, status: int, began: float, peer: str) -> None:
        """Do as `finish`, for an answer to a callback among others."""
        request_log.note_callback(self.services, status)
        if self.services.settings.log_requests:
            request_log.log_answer(CALLBACKS, "POST", status, began, peer)

    def request_id(self, value: str | None) -> str | None:
        """Return the id that a trusted proxy gave a request."""
        return request_log.id_of(value, self.services)

    # --- callbacks

    async def _callback(self, scope: Scope, receive: Receive) -> Response:
        headers, peer = scope["headers"], self._peer(scope)
        try:
            body = await read_body(headers, receive, self.max_body_bytes)
        except BodyError as error:
            self.services.intake.count_rejection(peer, error.reason)
            raise
        delivery = Delivery(
            instance=scope["path"][len(CALLBACKS) :].strip("/"),
            body=body,
            signature=header(headers, SIGNATURE),
            webhook_id=header(headers, WEBHOOK_ID),
            peer=peer,
            request=self.request_id(header(headers, REQUEST_ID)),
            headers=write_headers(headers),
        )
        answer: asyncio.Future[Receipt | Exception] = asyncio.get_running_loop().create_future()

        def done(result: Receipt | Exception) -> None:
            if not answer.done():
                answer.set_result(result)

        self.services.intake.submit(delivery, done)
        try:
            async with asyncio.timeout(self.answer_seconds):
                return answer_receipt(await answer)
        except TimeoutError:
            raise StoreUnavailable("not committed in time") from None

    # --- the API

    def question(self, scope: Scope) -> Callable[[], Response] | None:
        """Return what answers a GET in a reader; None if that is not all that it takes."""
        found = self._find(scope)
        if found is None or found[0].media_type == EVENT_STREAM or b"wait" in scope["query_string"]:
            return None
        return found[1]

    def _find(self, scope: Scope) -> tuple[Route, Callable[[], Response]] | None:
        """Return the route of a GET, and what answers it."""
        if found := find_route(ROUTES, "GET", scope["path"]):
            route, id_ = found
            return route, partial(route.answer, self.services, self._request(scope, id_))
        return None

    def _request(self, scope: Scope, id_: str) -> Request:
        headers = scope["headers"]
        return Request(
            path=scope["path"],
            id=id_,
            query=scope["query_string"].decode("latin-1"),
            authorization=header(headers, b"authorization"),
            if_none_match=header(headers, b"if-none-match"),
            peer=self._peer(scope),
            last_event_id=header(headers, b"last-event-id"),
        )

    def _peer(self, scope: Scope) -> str:
        return peer_of(scope, self.services.settings.trusted_proxies)

    async def _answered(self, answer: Callable[[], Response]) -> Response:
        response = await self.readers.read(answer)
        if response.stream is not None:
            self._streams.check_capacity()
            return replace(response, status=200, headers=STREAM_HEADERS)
        if response.hold is None or self._held >= MAX_HELD:
            return response
        self._held += 1
        try:
            for pause in response.hold.pauses():
                if response.hold is None or await self._stops_within(pause):
                    break
                response = await self.readers.read(response.hold.answer)
        finally:
            self._held -= 1
        return response

    async def _stops_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        return False

    # --- what Flask answers

    async def _form(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have Flask answer once the body is here: it must not hold a thread while it arrives."""
        try:
            body = await read_body(scope["headers"], receive, MAX_FORM_BYTES)
        except BodyError as error:
            await self._respond(scope, _raised(error), send)
        else:
            await self._flask.answer(scope, replay(body, receive), send)


async def _raised(error: Exception) -> Response:
    raise error
