"""Flask behind the event loop: in threads, through a2wsgi."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from typing import cast
from wsgiref.types import StartResponse, WSGIEnvironment

from a2wsgi.wsgi import WSGIMiddleware
from a2wsgi.wsgi_typing import WSGIApp
from flask import Flask

from receiver.errors import AnswerCut
from receiver.web.asgi.messages import (
    Message,
    Receive,
    Scope,
    Send,
    announces_body,
    raise_on_disconnect,
)

# Of the request that a thread answers: whether its client has left.
_GONE: ContextVar[threading.Event] = ContextVar("gone")


class FlaskThreads:
    """Answers requests of ASGI as a Flask application does, `threads` of them at a time."""

    def __init__(self, flask: Flask, threads: int) -> None:
        self._flask = flask
        # a2wsgi has types of its own for what ASGI and WSGI pass.
        middleware = WSGIMiddleware(cast("WSGIApp", self._application), threads)
        self._respond = cast("Callable[[Scope, Receive, Send], Awaitable[None]]", middleware)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request in a thread; it goes no further once its client has left."""
        gone = threading.Event()
        _GONE.set(gone)
        watching = None
        if not announces_body(scope["headers"]):
            watching = asyncio.ensure_future(_watch(receive, gone))
            receive = _no_body
        # The connection is closed then, as if it had ended here; that has been logged.
        with suppress(AnswerCut):
            await self._respond(scope, raise_on_disconnect(receive), send)
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


def _until_disconnect(pieces: Iterable[bytes], gone: threading.Event) -> Iterator[bytes]:
    """Yield the pieces of an answer until the client has left."""
    with ExitStack() as stack:
        if close := getattr(pieces, "close", None):
            stack.callback(close)
        for piece in pieces:
            if gone.is_set():
                return
            yield piece
