"""The vendor's API, as far as a run asks it: it answers well, late, with 429, or 500 for one job.

What it says of a job changes nothing in that: CREATED is the first word of all.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from processes import HOST

from receiver.openconnectors.shapes import BASE

SILENT = 60.0  # seconds; longer than any fault


class Vendor(ThreadingHTTPServer):
    """Answers from threads. asked -- paths. limits -- seconds of Retry-After while it is 429."""

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Answer)
        self.asked: list[str] = []
        self.limits = 0
        self.broken_job = ""
        self.speaks = threading.Event()
        self.speaks.set()
        threading.Thread(target=self.serve_forever, name="vendor", daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Mind nobody who has given up waiting."""

    @property
    def url(self) -> str:
        """What stands for the vendor's base URL."""
        return f"http://{HOST}:{self.server_port}{BASE}"

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Take requests, and answer them only afterwards."""
        self.speaks.clear()
        try:
            yield
        finally:
            self.speaks.set()


class _Answer(BaseHTTPRequestHandler):
    server: Vendor

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.speaks.wait(SILENT)
        job = re.search("/bulk/([^/?]+)/status", self.path)
        if self.server.limits:
            self._say(429, {"message": "too many requests"})
        elif job and job[1] == self.server.broken_job:
            self._say(500, {"message": "this job cannot be read"})
        else:
            self._say(200, {"id": job[1], "status": "CREATED"} if job else [])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        self.server.speaks.wait(SILENT)
        self._say(400, {"message": "this is no vendor that takes files"})

    def _say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", str(self.server.limits))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
