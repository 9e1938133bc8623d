"""The receiver for an ASGI server: callbacks, API and probes are answered here, the rest by Flask.

What differs from the Flask views of the same services is who waits: nobody holds a thread while a
callback's body arrives or its commit is under way, nor while a job is waited for; the API reads in
threads of its own, and probes wait for neither. ADR 8.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import msgspec
from flask import Flask

from receiver.callbacks.intake import Delivery, Step
from receiver.callbacks.store import Receipt
from receiver.errors import BodyError, BodyTooLarge, BodyTruncated, ReceiverError, StoreUnavailable
from receiver.openconnectors.signatures import HEADER
from receiver.web import Services, request_log
from receiver.web.api import ROUTES
from receiver.web.behind import FlaskThreads
from receiver.web.commits import Commits
from receiver.web.http import JSON, Request, Response
from receiver.web.ops import HEALTHZ, PROBES
from receiver.web.problems import VENDORS_PATHS, response_to
from receiver.web.routes import find_route
from receiver.web.scopes import (
    BODY_SECONDS,
    Headers,
    Receive,
    Scope,
    Send,
    drain,
    gathered,
    header,
    peer_of,
    replay,
    send_response,
    to_origin_form,
)

T = TypeVar("T")

CALLBACKS = "/callbacks/"
READERS = 8  # threads that answer the API; each has a connection of its own
READ_SECONDS = 5.0  # for a reader to be free: what came before may take the database's 3 s each
MAX_HELD = 64  # requests that wait for a job to end; each costs two looks a second
PROBE_SECONDS = 4.0
MAX_FORM_BYTES = 2**20

_SIGNATURE = HEADER.lower().encode()
_REQUEST_ID = request_log.HEADER.lower().encode()
_WEBHOOK_ID = b"elements-webhook-id"


class Application:
    """An ASGI application.

    flask -- the WSGI application of the same services. threads -- how many requests it may answer
    at a time in this process, and as many that wait for the vendor.
    """

    def __init__(self, flask: Flask, threads: int) -> None:
        self._services: Services = flask.extensions["receiver"]
        self._flask = FlaskThreads(flask, threads)
        # What waits for the vendor holds up nothing else.
        self._relay = FlaskThreads(flask, threads)
        # Keys read anew, which a refusal asks for, must not wait for Flask's threads.
        self._key_readers = ThreadPoolExecutor(2, "keys")
        self._readers = ThreadPoolExecutor(READERS, "readers")
        self._probers = ThreadPoolExecutor(len(PROBES), "probes")
        self._probing: dict[str, asyncio.Future[Response]] = {}
        self._held, self._stopping = 0, asyncio.Event()
        self._brought: Commits | None = None

    def stop(self) -> None:
        """Answer those who wait for a job as it stands now."""
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; of what else a server may ask, only `lifespan` is known."""
        if scope["type"] != "http":
            await self._flask.other(scope, receive, send)
            return
        to_origin_form(scope)
        method, path = scope["method"], scope["path"]
        if method == "POST" and path.startswith(CALLBACKS):
            await self._callback(scope, receive, send)
        elif method in ("GET", "HEAD") and path in PROBES:
            await self._respond(scope, self._probe(path), send)
        elif method == "GET" and (found := find_route(ROUTES, method, path)):
            route, id_ = found
            answer = partial(route.answer, self._services, self._request(scope, id_))
            await self._respond(scope, self._answered(answer), send)
        elif path.startswith(VENDORS_PATHS) or path.endswith("/result"):
            await self._relay.answer(scope, receive, send)
        elif method == "POST":
            await self._form(scope, receive, send)
        else:
            await self._flask.answer(scope, receive, send)

    async def _callback(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = scope["headers"]
        peer = self._peer(scope)
        try:
            body = await self._whole_body(headers, receive, self._services.settings.max_body_bytes)
            delivery = Delivery(
                instance=scope["path"][len(CALLBACKS) :].strip("/"),
                body=body,
                signature=header(headers, _SIGNATURE),
                webhook_id=header(headers, _WEBHOOK_ID),
                peer=peer,
                request=self._request_id(headers),
            )
            receipt = await self._received(delivery)
            answer = Response(200, JSON, msgspec.json.encode(receipt))
        except BodyError as error:
            self._services.intake.count_refusal(peer, error.reason)
            answer = response_to(error, CALLBACKS)
        except Exception as error:  # noqa: BLE001 - whatever broke, the sender is told to come again
            answer = response_to(error, CALLBACKS)
        request_log.note_answer(self._services, CALLBACKS, answer.status)
        if self._services.settings.log_requests:
            request_log.log_answer(scope["path"], "POST", answer.status, began, peer)
        await send_response(answer, send)
        if answer.status == 413:  # noqa: PLR2004
            await drain(receive)

    def _request(self, scope: Scope, id_: str) -> Request:
        headers = scope["headers"]
        return Request(
            path=scope["path"],
            id=id_,
            query=scope["query_string"].decode("latin-1"),
            authorization=header(headers, b"authorization"),
            if_none_match=header(headers, b"if-none-match"),
            peer=self._peer(scope),
        )

    async def _respond(self, scope: Scope, answer: Awaitable[Response], send: Send) -> None:
        began, path = time.perf_counter(), scope["path"]
        try:
            response = await answer
        except Exception as error:  # noqa: BLE001 - answered as Flask would
            response = response_to(error, path)
        request_log.note_answer(self._services, path, response.status)
        if self._services.settings.log_requests:
            answered = (path, scope["method"], response.status, began, self._peer(scope))
            request_log.log_answer(*answered)
        id_ = self._request_id(scope["headers"]) or request_log.new_id()
        headers = {**response.headers, request_log.HEADER: id_}
        is_head = scope["method"] == "HEAD"
        await send_response(replace(response, headers=headers), send, is_head=is_head)

    async def _answered(self, answer: Callable[[], Response]) -> Response:
        response = await self._read(answer)
        if response.hold is None or self._held >= MAX_HELD:
            return response
        self._held += 1
        try:
            for pause in response.hold.pauses():
                if response.hold is None or await self._stops_within(pause):
                    break
                response = await self._read(response.hold.look)
        finally:
            self._held -= 1
        return response

    async def _stops_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    async def _read(self, read: Callable[[], T]) -> T:
        latest = time.monotonic() + READ_SECONDS

        def in_time() -> T:
            if time.monotonic() > latest:
                raise StoreUnavailable("too many ask at the moment")
            return read()

        return await asyncio.get_running_loop().run_in_executor(self._readers, in_time)

    async def _probe(self, path: str) -> Response:
        """Answer a probe; those that come meanwhile share what it sees."""
        probe = partial(PROBES[path], self._services)
        if path == HEALTHZ:
            return probe()
        if path not in self._probing:
            loop = asyncio.get_running_loop()
            self._probing[path] = loop.run_in_executor(self._probers, probe)
            self._probing[path].add_done_callback(lambda _: self._probing.pop(path))
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return await asyncio.shield(self._probing[path])
        except TimeoutError:
            raise StoreUnavailable("it takes too long") from None

    async def _form(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have Flask answer once the body is here: it must not hold a thread while it arrives."""
        try:
            body = await self._whole_body(scope["headers"], receive, MAX_FORM_BYTES)
        except BodyError as error:
            response = response_to(error, scope["path"])
            await self._respond(scope, _done(response), send)
            if response.status == 413:  # noqa: PLR2004
                await drain(receive)
        else:
            await self._flask.answer(scope, replay(body, receive), send)

    @staticmethod
    async def _whole_body(headers: Headers, receive: Receive, limit: int) -> bytes:
        announced = header(headers, b"content-length")
        # The server has refused what is no number.
        if announced is not None and int(announced) > limit:
            raise BodyTooLarge(f"more than {limit} bytes")
        message = await receive()
        if not message.get("more_body"):  # what the vendor sends is here in one piece
            return await gathered(message, receive, limit)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await gathered(message, receive, limit)
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
            return await self._commits().of(step, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                return await loop.run_in_executor(self._key_readers, step)
        except TimeoutError:
            raise StoreUnavailable("the keys could not be read in time") from None

    def _commits(self) -> Commits:
        # Not before a request: the event loop is not there when a worker makes its application.
        if self._brought is None:
            self._brought = Commits(self._services.intake.writer, asyncio.get_running_loop())
        return self._brought

    def _peer(self, scope: Scope) -> str:
        return peer_of(scope, self._services.settings.trusted_proxies)

    def _request_id(self, headers: Headers) -> str | None:
        if not self._services.settings.trusted_proxies:
            return None
        return request_log.id_of(header(headers, _REQUEST_ID), self._services)


async def _done(response: Response) -> Response:
    return response
