"""gunicorn's asgi worker, closing what it leaves open. Its name is in `serving.OPTIONS`.

What it adds touches names that gunicorn keeps to itself, so tests/e2e/test_serving.py holds each.
"""

import asyncio
import gc
import socket
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

THREADS = 16  # of Flask's in one process: for the API, the dashboard and the vendor's paths
HEAD_SECONDS = 20  # for the head of a connection's first request to arrive
IDLE_SECONDS = 2  # that a kept connection may stay once the worker is told to stop


class Connection(ASGIProtocol):  # type: ignore[misc]
    """One client's connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, unless there are `worker_connections` already."""
        super().connection_made(transport)
        self.worker.connections.add(self)
        self._late = self.worker.loop.call_later(HEAD_SECONDS, self._close_if_silent)
        if self.worker.nr_conns > self.cfg.worker_connections:
            self._close_transport()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._late.cancel()
        self.worker.connections.discard(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        """Answer a client that has closed its own side only; asyncio would close both."""
        receiver = self._body_receiver
        if receiver is None or self._awaiting_request:
            return False
        self._keepalive = 0
        if not receiver._complete:
            # The rest of the body will not come. This ends it as a time-out would.
            receiver._body_wait_expired = True
            receiver._wake_waiter()
        return True

    def _close_transport(self) -> None:
        super()._close_transport()
        # To a client that is gone no end can be written, and gunicorn stops at that error.
        self.transport.close()

    def _close_if_silent(self) -> None:
        # Of later requests, `keepalive` bounds the head too.
        if self.req_count == 1:
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close a connection that no request is under way on."""
        if self._awaiting_request:
            self._close_transport()


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]
    """A process that answers through `web/asgi.py`, given the WSGI application."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - gunicorn's
        super().__init__(*args, **kwargs)
        self.connections: set[Connection] = set()
        gasgi.ASGIProtocol = Connection  # the only way in that gunicorn leaves

    def load_wsgi(self) -> None:
        """Load the application."""
        from receiver.web.asgi import Application

        super().load_wsgi()
        self.asgi: Any = Application(self.asgi, THREADS)
        # What is loaded stays: no collection need look at it again.
        gc.collect()
        gc.freeze()

    def _setup_event_loop(self) -> None:
        super()._setup_event_loop()
        listen = self.loop.create_server

        async def create_server(factory: Any, *, sock: socket.socket, **options: Any) -> Any:  # noqa: ANN401
            # Connections are accepted by `backlog` at a time, so that the first worker to wake up
            # would take all that come together, and the others none.
            server = await listen(factory, sock=sock, backlog=1, **options)
            sock.listen(self.cfg.backlog)
            return server

        self.loop.create_server = create_server

    async def _shutdown(self) -> None:
        # Nobody has told a worker whose master is gone; until then it keeps connections alive.
        self.alive = False
        self.asgi.stop()
        # Proxies keep idle connections for long, and gunicorn would wait for each.
        asyncio.get_running_loop().call_later(IDLE_SECONDS, self._close_idle)
        await super()._shutdown()

    def _close_idle(self) -> None:
        for connection in tuple(self.connections):
            connection.close_if_idle()
