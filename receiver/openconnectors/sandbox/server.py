"""Serving a sandbox over HTTP."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import click
from werkzeug.serving import WSGIRequestHandler, make_server

from receiver.openconnectors.sandbox.app import create_sandbox
from receiver.openconnectors.sandbox.faults import Options
from receiver.openconnectors.sandbox.stage import Stage
from receiver.openconnectors.shapes import BASE

_POLL_SECONDS = 0.05  # until it sees that it shall stop


@dataclass(frozen=True, slots=True)
class Running:
    """A sandbox that listens.

    url -- its root, without a slash at the end.
    api -- the vendor's base URL.
    """

    url: str
    api: str
    stage: Stage


class _Connection(WSGIRequestHandler):
    error_message_format = '{"requestId": "0", "message": "this is no HTTP request"}'
    error_content_type = "application/json"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: `GET /sandbox/requests` shows what was requested."""

    def connection_dropped(
        self, error: BaseException, environ: dict[str, Any] | None = None
    ) -> None:
        """Close the connection that a fault cut off: else the server waits for another request."""
        del error, environ
        self.close_connection = True


@contextmanager
def running(options: Options) -> Iterator[Running]:
    """Serve a sandbox from threads of this process until the block is left."""
    app = create_sandbox(options)
    stage: Stage = app.extensions["sandbox"]
    with closing(stage):
        host, port = options.bind
        server = make_server(host, port, app, threaded=True, request_handler=_Connection)
        thread = Thread(
            target=server.serve_forever, args=(_POLL_SECONDS,), name="sandbox-server", daemon=True
        )
        thread.start()
        url = f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
        try:
            yield Running(url, url + BASE, stage)
        finally:
            stage.closing.set()
            server.shutdown()
            thread.join()
            server.server_close()


def serve(options: Options) -> None:
    """Serve a sandbox until SIGTERM or SIGINT; write its base URL to standard error."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with running(options) as sandbox:
        click.echo(f"sandbox listening on {sandbox.api}", err=True)
        stop.wait()
