"""Health and metrics: /healthz, /readyz, /metrics."""

import os
from collections.abc import Callable, Mapping

import flask
from flask import Blueprint
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from receiver.database import migrations
from receiver.errors import StoreError, StoreUnavailable
from receiver.web import Services, services
from receiver.web.http import Response, json_response
from receiver.web.problems import flask_response

HEALTHZ = "/healthz"  # the only one that waits for nothing
READYZ = "/readyz"
READY = json_response({"status": "ready"})
READY_SECONDS = 0.5  # for SQLite's lock: a probe is to be answered within a second


def healthz(_services: Services) -> Response:
    """Say that the process answers, whatever the database does: an outage must not kill nodes."""
    return json_response({"status": "ok"})


def readyz(services: Services) -> Response:
    """Say that callbacks can be committed now: writer, database and schema."""
    if not services.intake.writer.alive:
        raise StoreUnavailable("the writer has stopped")
    try:
        migrations.check_ready(services.database, READY_SECONDS)
    except StoreError as error:
        raise StoreUnavailable(str(error)) from error
    return READY


def metrics(services: Services) -> Response:
    """Return what all workers of this node counted, and what the database knows, for Prometheus."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    stored = CollectorRegistry()
    stored.register(services.stored)
    body = generate_latest(registry) + generate_latest(stored)
    return Response(200, {"Content-Type": CONTENT_TYPE_LATEST}, body)


PROBES: Mapping[str, Callable[[Services], Response]] = {
    HEALTHZ: healthz,
    READYZ: readyz,
    "/metrics": metrics,
}


def blueprint() -> Blueprint:
    """Return Flask's rules for the probes."""
    made = Blueprint("ops", __name__)
    for path, probe in PROBES.items():
        made.add_url_rule(path, path.strip("/"), _flask_view(probe))
    return made


def _flask_view(probe: Callable[[Services], Response]) -> Callable[[], flask.Response]:
    return lambda: flask_response(probe(services()))
