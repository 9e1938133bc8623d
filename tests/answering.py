"""HTTP servers on loopback for which a test answers: vendors, targets and strangers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None], port: int = 0) -> Iterator[str]:
    """Have a function answer each request in a thread of its own; give the server's URL."""

    class Connection(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_PUT = do_GET  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Connection)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """Read what came with a request."""
    return request.rfile.read(int(request.headers.get("Content-Length") or 0))


def lower_headers(request: BaseHTTPRequestHandler) -> dict[str, str]:
    """Return a request's headers, their names in lower case."""
    return {name.lower(): value for name, value in request.headers.items()}


def reply(
    request: BaseHTTPRequestHandler,
    status: int = 200,
    content: bytes = b"",
    headers: dict[str, str] | None = None,
) -> None:
    """Answer a request; its length is that of the content unless `headers` say otherwise."""
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(content)
