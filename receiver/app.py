"""The only place that wires things together."""

import atexit
import os
import sys
from collections.abc import Callable

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from receiver.clock import now_ms
from receiver.errors import SettingsError
from receiver.intake import Intake
from receiver.settings import Settings
from receiver.storage import migrations
from receiver.storage.credentials import KeyRing, Vault
from receiver.storage.database import Database
from receiver.web import Services, callbacks, events, jobs, ops, problems
from receiver.web.api import blueprint as api
from receiver.web.api import spec
from receiver.web.waiting import Waiters

APP_LOAD_ERROR = 4  # gunicorn gives up on this exit code of a worker, instead of trying for ever
MOST_WAITERS = 8  # in one process; the other half of its threads stays free for callbacks


def create_app(settings: Settings | None = None, *, clock: Callable[[], int] = now_ms) -> Flask:
    """Make the WSGI application.

    settings -- read from the environment if None; then a wrong one ends the process with one line.
    clock -- gives ms since the epoch.
    """
    if settings is not None:
        return _app(settings, clock)
    try:
        return _app(Settings.from_env(os.environ), clock)
    except SettingsError as error:
        sys.stderr.write(f"receiver: {error}\n")
        raise SystemExit(APP_LOAD_ERROR) from None


def _app(settings: Settings, clock: Callable[[], int]) -> Flask:
    database = migrations.opened(settings.database_url)
    ring = KeyRing(database, Vault(settings.encryption_keys), settings.default_keys)
    intake = Intake(settings, database, ring, clock)
    app = Flask("receiver", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.converters["anything"] = callbacks.AnythingConverter
    app.extensions["receiver"] = Services(settings, database, intake, Waiters(MOST_WAITERS), clock)
    for room in (callbacks.blueprint, api, ops.blueprint):
        app.register_blueprint(room)
    spec.register(app)
    problems.register(app)
    hops = settings.trusted_proxies
    if hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, hops, hops, hops)  # type: ignore[method-assign]
    atexit.register(_close, intake, database)
    return app


def _close(intake: Intake, database: Database) -> None:
    intake.writer.close()
    database.close()


__all__ = ["create_app", "events", "jobs"]
