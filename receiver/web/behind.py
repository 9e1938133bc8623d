"""Flask behind the event loop: in threads, through a2wsgi."""

import asyncio
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from a2wsgi import WSGIMiddleware
from a2wsgi.wsgi import WSGIResponder
from a2wsgi.wsgi_typing import WSGIApp
from flask import Flask
from werkzeug.datastructures import Headers

from receiver.web.scopes import Receive, Scope, Send, whole

MOST_HELD_BYTES = 64 * 1024  # of an answer that is handed to the event loop whole
_MOST_PIECES = 10  # handed over and not sent: a slow client holds up its own thread

# Of the request that a thread answers: whether its client has left.
_GONE: ContextVar[threading.Event] = ContextVar("gone")


class FlaskThreads:
    """Answers requests of ASGI as a Flask application does, `threads` of them at a time."""

    def __init__(self, flask: Flask, threads: int) -> None:
        self._middleware = WSGIMiddleware(_wsgi(flask), workers=threads)
        self._answering: set[asyncio.Future[None]] = set()

    async def other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is not HTTP."""
        await self._middleware(scope, receive, send)  # type: ignore[arg-type]

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request in a thread, which is awaited though the client be gone.

        a2wsgi, cancelled, would let the thread wait for ever to hand over its next piece.
        """
        gone = threading.Event()
        _GONE.set(gone)
        responder = _Responder(self._middleware.app, self._middleware.executor)
        answered = responder(scope, whole(receive), send)
        answering = asyncio.ensure_future(answered)
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)
        try:
            await asyncio.shield(answering)
        except asyncio.CancelledError:
            gone.set()
            raise


class _Responder(WSGIResponder):
    """Brings a short answer to the event loop all at once.

    a2wsgi waits for the loop at each piece, head and end included: three times for a page, which
    took as long as to make it. An answer of no told length comes in pieces as before: the next one
    may be long in coming. So does one to a request with a body: it is not to wait for what is done
    about the rest of that.
    """

    def __init__(self, wsgi: WSGIApp, threads: ThreadPoolExecutor) -> None:
        super().__init__(wsgi, threads, _MOST_PIECES)
        self._asks = self._short = False
        self._held: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - a2wsgi's
        self._asks = scope["method"] == "GET"
        await super().__call__(scope, receive, send)
        for message in self._held:
            await send(message)

    def start_response(self, status: Any, response_headers: Any, exc_info: Any = None) -> Any:  # noqa: ANN401
        """Take the head, in the thread."""
        length = Headers(response_headers).get("Content-Length", "")
        told = length.isdecimal() and int(length) <= MOST_HELD_BYTES
        self._short = self._asks and told
        return super().start_response(status, response_headers, exc_info)

    def send(self, message: Any) -> None:  # noqa: ANN401 - a2wsgi's
        """Take a piece, in the thread."""
        if self._short:
            self._held.append(message)
        else:
            super().send(message)


def _wsgi(flask: Flask) -> WSGIApp:
    def application(environ: Any, start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
        environ["wsgi.input_terminated"] = True  # or Werkzeug takes a chunked body for none
        environ["wsgi.errors"] = sys.stderr
        return _while_wanted(flask(environ, start_response), _GONE.get())

    return application


def _while_wanted(pieces: Iterable[bytes], gone: threading.Event) -> Iterator[bytes]:
    """Pass on an answer, no further than there is a client for it."""
    with ExitStack() as stack:
        if close := getattr(pieces, "close", None):
            stack.callback(close)
        for piece in pieces:
            if gone.is_set():
                return
            yield piece
