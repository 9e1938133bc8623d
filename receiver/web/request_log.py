"""What is noted of each request: its id, how it was answered, and a line in the log if asked."""

import re
import secrets
import time

import structlog
from flask import Flask, Response, g, request

from receiver import metrics
from receiver.web import Services, services

HEADER = "X-Request-ID"
CALLBACKS = "/callbacks/"

_ID = re.compile(r"[A-Za-z0-9._:+/=@~-]{1,128}")
_ROOMS = {
    "callbacks": "callbacks",
    "api": "api",
    "elements": "vendor",
    "healthz": "ops",
    "readyz": "ops",
    "metrics": "ops",
}

log = structlog.get_logger()


def register(app: Flask) -> None:
    """Note each request that Flask answers."""
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(lambda _: structlog.contextvars.clear_contextvars())


def id_of(sent: str | None, services_: Services) -> str | None:
    """The id that a trusted proxy gave a request, if it is one that can be written anywhere."""
    if sent and services_.settings.trusted_proxies and _ID.fullmatch(sent):
        return sent
    return None


def new_id() -> str:
    """Make an id for a request that has none."""
    return secrets.token_hex(8)


def note_answer(services_: Services, path: str, status: int) -> None:
    """Count an answer; those to callbacks also show this process's health."""
    room = _ROOMS.get(path.split("/", 2)[1], "dashboard")
    metrics.answers(room, status).inc()
    if room == "callbacks":
        services_.health.answered(status)


def note_callback(services_: Services, status: int) -> None:
    """Do as `note_answer` for one of a batch: see `metrics.count`."""
    metrics.count(metrics.answers("callbacks", status))
    services_.health.answered(status)


def log_answer(path: str, method: str, status: int, began: float, peer: str) -> None:
    """Write a line of an answer. began -- by time.perf_counter."""
    took = round(1000 * (time.perf_counter() - began), 1)
    log.info("answered", method=method, path=path, status=status, ms=took, peer=peer)


def _begin() -> None:
    g.began = time.perf_counter()
    g.request_id = id_of(request.headers.get(HEADER), services()) or new_id()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _end(response: Response) -> Response:
    note_answer(services(), request.path, response.status_code)
    if "request_id" in g:
        if not request.path.startswith(CALLBACKS):
            response.headers[HEADER] = g.request_id
        if services().settings.log_requests:
            peer = request.remote_addr or ""
            log_answer(request.path, request.method, response.status_code, g.began, peer)
    return response
