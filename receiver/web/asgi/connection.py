"""A short way for callbacks, before everything else.

A whole, plain `POST /callbacks/…` is answered without a task, a scope and a framework. Whatever is
odd about a request goes the general way, through `Application`. Parsing is httptools' in any case.
"""

import asyncio
import re
import time
from math import inf

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from receiver.callbacks.deliveries import Delivery, Receipt, write_headers
from receiver.errors import BodyError, BodyTooLarge, StoreUnavailable
from receiver.lib.ratelimit import client_address
from receiver.web.asgi import REQUEST_ID, SIGNATURE, WEBHOOK_ID
from receiver.web.asgi.bounds import BoundedConnection
from receiver.web.callbacks import PREFIX, answer_receipt
from receiver.web.http import Response

_PREFIX = PREFIX.encode()
_PLAIN = re.compile(re.escape(_PREFIX) + rb"([A-Za-z0-9_.-]+)")
_LENGTH, _FORWARDED = b"content-length", b"x-forwarded-for"
_READ = frozenset((SIGNATURE, WEBHOOK_ID, REQUEST_ID, _LENGTH, _FORWARDED))
_NOBODY = asyncio.Event()  # waits for a callback's body: it has no task


class _Callback(RequestResponseCycle):
    """A callback that arrives or waits for its commit, in the place of a cycle with a task."""

    def __init__(
        self,
        instance: str,
        found: dict[bytes, bytes],
        headers: str,
        peer: str,
        *,
        keep_alive: bool,
    ) -> None:
        # All that uvicorn looks at; the rest serves a task.
        self.response_complete = self.disconnected = False
        self.keep_alive, self.message_event = keep_alive, _NOBODY
        self.instance, self.found, self.headers, self.peer = instance, found, headers, peer
        self.content: bytes | bytearray = b""
        self.due = inf  # when it is to be answered, by the loop's time
        self.began = time.perf_counter()

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
        match = self._plain_callback()
        if match is None:
            super().on_headers_complete()
            return
        found: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in _READ:
                found[name] = found[name] + b"," + value if name in found else value
        keep_alive = self.parser.should_keep_alive() and not self._is_stopping
        peer = self._peer(found.get(_FORWARDED))
        headers = write_headers(self.headers)
        self.cycle = _Callback(match[1].decode(), found, headers, peer, keep_alive=keep_alive)
        if int(found.get(_LENGTH, b"0")) > self._application.max_body_bytes:
            self.break_off(BodyTooLarge("more than may be"))

    def _plain_callback(self) -> re.Match[bytes] | None:
        if (
            not self.url.startswith(_PREFIX)
            or self.parser.get_method() != b"POST"
            or self.is_busy()
            or self.expect_100_continue
            or self.parser.get_http_version() != "1.1"
        ):
            return None
        return _PLAIN.fullmatch(self.url)

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
        if isinstance(self.cycle, _Callback) and not self.cycle.response_complete:
            self._submit(self.cycle)

    def break_off(self, error: BodyError) -> bool:
        """Answer a callback whose body cannot be had, and end the connection."""
        callback = self.cycle
        if not isinstance(callback, _Callback):
            return False
        self._application.services.intake.count_rejection(callback.peer, error.reason)
        callback.keep_alive = False
        self._ignores_input = True
        self._answer(callback, answer_receipt(error))
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
                self._answer(callback, answer_receipt(answer))

        self._application.services.intake.submit(delivery, done)

    def expire(self, now: float) -> None:
        """Answer a callback that is not committed in time; else see to slow clients."""
        callback = self.cycle
        if not isinstance(callback, _Callback) or callback.response_complete or now < callback.due:
            super().expire(now)
        else:
            self._answer(callback, answer_receipt(StoreUnavailable("not committed in time")))

    def _peer(self, forwarded: bytes | None) -> str:
        socket = self.client[0] if self.client else ""
        hops = self._application.services.settings.trusted_proxies
        return client_address(socket, forwarded.decode("latin-1") if forwarded else None, hops)

    def _answer(self, callback: _Callback, response: Response) -> None:
        callback.response_complete = True
        is_gone = self.transport.is_closing()
        if not is_gone:
            self.write(response, keep_alive=callback.keep_alive)
        self._application.note_callback(response.status, callback.began, callback.peer)
        if is_gone:
            return
        if not callback.keep_alive:
            self.end()
        elif self.pipeline or self._refusal:
            self.on_response_complete()
        else:
            self._since = self.loop.time()
