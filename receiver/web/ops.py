"""Health and metrics: /healthz, /readyz, /metrics."""

import os

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from receiver.database import migrations
from receiver.errors import StoreError, StoreUnavailable
from receiver.web import services
from receiver.web.answers import answer_json
from receiver.web.api import response

blueprint = Blueprint("ops", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """Tell that the process answers, whatever the database does: an outage must not kill nodes."""
    return response(answer_json({"status": "ok"}))


@blueprint.get("/readyz")
def readyz() -> Response:
    """Tell that callbacks can be committed now: writer, database and schema."""
    if not services().intake.writer.alive:
        raise StoreUnavailable("the writer has stopped")
    database = services().database
    if not migrations.is_current(database):
        raise StoreUnavailable("the schema is not the one of this release")
    try:
        database.check_writable()
    except StoreError as error:
        raise StoreUnavailable(str(error)) from error
    return response(answer_json({"status": "ready"}))


@blueprint.get("/metrics")
def metrics() -> Response:
    """Give what all workers of this node counted, and what the database knows, for Prometheus."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    stored = CollectorRegistry()
    stored.register(services().stored)
    return Response(
        generate_latest(registry) + generate_latest(stored), content_type=CONTENT_TYPE_LATEST
    )
