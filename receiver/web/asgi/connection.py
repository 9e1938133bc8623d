"""A short way for callbacks and the API's GETs, before everything else.

A whole, plain `POST /callbacks/…` or `GET /api/v1/…` is answered without a task and a framework.
Whatever is odd about a request goes the general way, through `Application`. Parsing is httptools'
in any case.
"""

import asyncio
import re
import time
from collections.abc import Callable
from math import inf

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from receiver.callbacks.deliveries import Delivery, Receipt, write_headers
from receiver.errors import BodyError, BodyTooLarge, StoreUnavailable
from receiver.lib.ratelimit import client_address
from receiver.web.api.routes import BASE
from receiver.web.asgi import REQUEST_ID, SIGNATURE, WEBHOOK_ID
from receiver.web.asgi.bounds import BoundedConnection
from receiver.web.asgi.messages import Scope, announces_body
from receiver.web.callbacks import PREFIX, answer_receipt
from receiver.web.http import Response

_PLAIN_CALLBACK = re.compile(re.escape(PREFIX.encode()) + rb"([A-Za-z0-9_.-]+)")
_PLAIN_QUESTION = re.compile(rb"(%b(?:/[A-Za-z0-9_.-]+)+)(?:\?([^#]*))?" % BASE.encode())
_LENGTH, _FORWARDED = b"content-length", b"x-forwarded-for"
_READ = frozenset((SIGNATURE, WEBHOOK_ID, REQUEST_ID, _LENGTH, _FORWARDED))
_NOBODY = asyncio.Event()  # waits for a request's body: it has no task


class _Exchange(RequestResponseCycle):
    """A request that waits for its answer, in the place of a cycle with a task."""

    def __init__(self, *, keep_alive: bool) -> None:
        # All that uvicorn looks at; the rest serves a task.
        self.response_complete = self.disconnected = False
        self.keep_alive, self.message_event = keep_alive, _NOBODY
        self.began = time.perf_counter()


class _Question(_Exchange):
    """A GET of the API, which waits for a reader."""

    def __init__(self, scope: Scope, answer: Callable[[], Response], *, keep_alive: bool) -> None:
        super().__init__(keep_alive=keep_alive)
        self.request, self.answer = scope, answer


class _Callback(_Exchange):
    """A callback that arrives or waits for its commit."""

    def __init__(
        self,
        instance: str,
        found: dict[bytes, bytes],
        headers: str,
        peer: str,
        *,
        keep_alive: bool,
    ) -> None:
        super().__init__(keep_alive=keep_alive)
        self.instance, self.found, self.headers, self.peer = instance, found, headers, peer
        self.content: bytes | bytearray = b""
        self.due = inf  # when it is to be answered, by the loop's time

    def add(self, body: bytes) -> None:
        """Add to the body; nearly always this is all of it, and is not copied."""
        if isinstance(self.content, bytearray):
            self.content += body
        else:
            self.content = bytearray(self.content + body) if self.content else body

    def text(self, name: bytes) -> str | None:
        """Return a header as WSGI has it."""
        value = self.found.get(name)
        return None if value is None else value.decode("latin-1")


class Connection(BoundedConnection):
    """A client's connection."""

    def on_headers_complete(self) -> None:
        """Begin to take a callback, or to answer another request."""
        self.check_head()
        if self.parser.should_upgrade():  # and is parsed anew
            return
        if not self._begin_exchange():
            super().on_headers_complete()

    def _begin_exchange(self) -> bool:
        """Begin to answer a plain callback or question; return whether it is one."""
        if (
            self.is_busy()
            or self.expect_100_continue
            or self.flow.write_paused
            or self.parser.get_http_version() != "1.1"
        ):
            return False
        method = self.parser.get_method()
        if method == b"POST" and (match := _PLAIN_CALLBACK.fullmatch(self.url)):
            self._begin_callback(match[1].decode())
            return True
        if method == b"GET" and (match := _PLAIN_QUESTION.fullmatch(self.url)):
            return self._begin_question(match[1].decode(), match[2] or b"")
        return False

    def _keeps_alive(self) -> bool:
        return self.parser.should_keep_alive() and not self._is_stopping

    def _begin_callback(self, instance: str) -> None:
        found: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in _READ:
                found[name] = found[name] + b"," + value if name in found else value
        peer = self._peer(found.get(_FORWARDED))
        headers = write_headers(self.headers)
        keep_alive = self._keeps_alive()
        self.cycle = _Callback(instance, found, headers, peer, keep_alive=keep_alive)
        if int(found.get(_LENGTH, b"0")) > self._application.max_body_bytes:
            self.break_off(BodyTooLarge("more than may be"))

    def _begin_question(self, path: str, query: bytes) -> bool:
        if announces_body(self.headers):
            return False
        scope: Scope = {**self.scope, "method": "GET", "path": path, "query_string": query}
        answer = self._application.question(scope)
        if answer is None:
            return False
        self.cycle = _Question(scope, answer, keep_alive=self._keeps_alive())
        return True

    def on_body(self, body: bytes) -> None:
        """Take some of its body."""
        callback = self.cycle
        if not isinstance(callback, _Callback):
            super().on_body(body)
        elif not callback.response_complete:
            self._body_bytes += len(body)
            callback.add(body)
            if self._body_bytes > self._application.max_body_bytes:
                self.break_off(BodyTooLarge("more than may be"))

    def on_message_complete(self) -> None:
        """Take it as a whole."""
        super().on_message_complete()
        exchange = self.cycle
        if isinstance(exchange, _Callback) and not exchange.response_complete:
            self._submit(exchange)
        elif isinstance(exchange, _Question):
            self._ask(exchange)

    def break_off(self, error: BodyError) -> bool:
        """Answer a callback whose body cannot be had, and end the connection."""
        callback = self.cycle
        if not isinstance(callback, _Callback):
            return False
        self._application.services.intake.count_rejection(callback.peer, error.reason)
        callback.keep_alive = False
        self._ignores_input = True
        self._answer_callback(callback, error)
        return True

    def _submit(self, callback: _Callback) -> None:
        delivery = Delivery(
            instance=callback.instance,
            body=bytes(callback.content),
            signature=callback.text(SIGNATURE),
            webhook_id=callback.text(WEBHOOK_ID),
            peer=callback.peer,
            request=self._application.request_id(callback.text(REQUEST_ID)),
            headers=callback.headers,
        )
        callback.content = b""

        callback.due = self.loop.time() + self._application.answer_seconds

        def done(answer: Receipt | Exception) -> None:
            if not callback.response_complete:
                self._answer_callback(callback, answer)

        self._application.services.intake.submit(delivery, done)

    def _ask(self, question: _Question) -> None:
        def done(answer: Response | Exception) -> None:
            response = self._application.finish(question.request, answer, question.began)
            self._answer(question, response)

        self._application.readers.submit(question.answer, done)

    def expire(self, now: float) -> None:
        """Answer a callback that is not committed in time; else see to slow clients."""
        callback = self.cycle
        if not isinstance(callback, _Callback) or callback.response_complete or now < callback.due:
            super().expire(now)
        else:
            self._answer_callback(callback, StoreUnavailable("not committed in time"))

    def _peer(self, forwarded: bytes | None) -> str:
        socket = self.client[0] if self.client else ""
        hops = self._application.services.settings.trusted_proxies
        return client_address(socket, forwarded.decode("latin-1") if forwarded else None, hops)

    def _answer_callback(self, callback: _Callback, answer: Receipt | Exception) -> None:
        response = answer_receipt(answer)
        self._answer(callback, response)
        self._application.note_callback(response.status, callback.began, callback.peer)

    def _answer(self, exchange: _Exchange, response: Response) -> None:
        exchange.response_complete = True
        if self.transport.is_closing():
            return
        self.write(response, keep_alive=exchange.keep_alive)
        if not exchange.keep_alive:
            self.end()
        elif self.pipeline or self._refusal:
            self.on_response_complete()
        else:
            self._since = self.loop.time()
