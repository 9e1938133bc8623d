"""Flask behind the event loop: in threads, through a2wsgi."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from typing import cast
from wsgiref.types import StartResponse, WSGIEnvironment

from a2wsgi.asgi_typing import HTTPScope, SendEvent
from a2wsgi.asgi_typing import Receive as AnyReceive
from a2wsgi.asgi_typing import Send as AnySend
from a2wsgi.wsgi import WSGIResponder
from a2wsgi.wsgi_typing import ExceptionInfo, WriteCallable, WSGIApp
from flask import Flask
from werkzeug.datastructures import Headers

from receiver.errors import AnswerCut
from receiver.web.asgi.messages import Message, Receive, Scope, Send, raise_on_disconnect

MAX_SHORT_BYTES = 64 * 1024  # of an answer that is handed to the event loop whole
_OF_A_BODY = frozenset((b"content-length", b"transfer-encoding"))
_MAX_PIECES = 10  # handed over and not sent: a slow client holds up its own thread

# Of the request that a thread answers: whether its client has left.
_GONE: ContextVar[threading.Event] = ContextVar("gone")


class FlaskThreads:
    """Answers requests of ASGI as a Flask application does, `threads` of them at a time."""

    def __init__(self, flask: Flask, threads: int) -> None:
        self._flask = flask
        self._threads = ThreadPoolExecutor(threads, "flask")

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request in a thread; it goes no further once its client has left."""
        # a2wsgi has types of its own for what ASGI and WSGI pass.
        application = cast("WSGIApp", self._application)
        responder = _Responder(application, self._threads, _MAX_PIECES)
        respond = cast("Callable[[Scope, Receive, Send], Awaitable[None]]", responder)
        gone = threading.Event()
        _GONE.set(gone)
        watching = None
        if not any(name in _OF_A_BODY for name, _ in scope["headers"]):
            watching = asyncio.ensure_future(_watch(receive, gone))
            receive = _no_body
        # The connection is closed then, as if it had ended here; that has been logged.
        with suppress(AnswerCut):
            await respond(scope, raise_on_disconnect(receive), send)
        if watching:
            watching.cancel()

    def _application(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        environ["wsgi.input_terminated"] = True  # or Werkzeug takes a chunked body for none
        environ["wsgi.errors"] = sys.stderr
        return _until_disconnect(self._flask(environ, start_response), _GONE.get())


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _watch(receive: Receive, gone: threading.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


class _Responder(WSGIResponder):
    """Hands a short answer to the event loop all at once.

    a2wsgi waits for the loop at each piece, head and end included: three times for a page, which
    took as long as to make it. An answer of unknown length still goes in pieces, since the next one
    may take long; so does the answer to a request with a body, which must not wait for the rest of
    that body.
    """

    def __init__(self, app: WSGIApp, executor: ThreadPoolExecutor, send_queue_size: int) -> None:
        super().__init__(app, executor, send_queue_size)
        self._is_get = self._is_short = False
        self._messages: list[SendEvent] = []

    async def __call__(self, scope: HTTPScope, receive: AnyReceive, send: AnySend) -> None:
        self._is_get = scope["method"] == "GET"
        await super().__call__(scope, receive, send)
        for message in self._messages:
            await send(message)

    def start_response(
        self,
        status: str,
        response_headers: list[tuple[str, str]],
        exc_info: ExceptionInfo | None = None,
    ) -> WriteCallable:
        """Take the head, in the thread."""
        length = Headers(response_headers).get("Content-Length", "")
        self._is_short = self._is_get and length.isdecimal() and int(length) <= MAX_SHORT_BYTES
        return super().start_response(status, response_headers, exc_info)

    def send(self, message: SendEvent | None) -> None:
        """Take a piece, in the thread."""
        if self._is_short and message is not None:
            self._messages.append(message)
        else:
            super().send(message)


def _until_disconnect(pieces: Iterable[bytes], gone: threading.Event) -> Iterator[bytes]:
    """Yield the pieces of an answer until the client has left."""
    with ExitStack() as stack:
        if close := getattr(pieces, "close", None):
            stack.callback(close)
        for piece in pieces:
            if gone.is_set():
                return
            yield piece
