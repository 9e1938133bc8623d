"""The only place that wires things together."""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import httpx
import structlog
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from receiver.alarms import channels
from receiver.alarms.watcher import PERIOD_SECONDS, Watcher
from receiver.background import Background, Health, Task
from receiver.callbacks.intake import Intake
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.database.retention import LOOK_SECONDS, Retention
from receiver.errors import SettingsError, StoreError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib import logs
from receiver.lib.clock import now_ms
from receiver.lib.http_client import check_environment
from receiver.lib.ratelimit import Limits, client_address
from receiver.lib.safe_http import SafeClient
from receiver.metrics import QUEUE_LENGTH, Stored
from receiver.openconnectors.client import VendorClient
from receiver.openconnectors.shapes import WEBHOOK_ID_HEADER
from receiver.openconnectors.signatures import HEADER, SHORT_KEY_BYTES, sign
from receiver.outbound.mail import Mailer
from receiver.outbound.queue import Message
from receiver.outbound.sender import SEND_PAUSE_SECONDS, Outgoing, Sender, Signer
from receiver.reconcile.reconciler import CHECK_SECONDS, Reconciler
from receiver.settings import Settings
from receiver.subscriptions import registry as subscriptions
from receiver.web import Services, callbacks, ops, problems, request_log
from receiver.web.api import ROUTES, routes
from receiver.web.dashboard import blueprint as dashboard
from receiver.web.dashboard.pages import compile_templates
from receiver.web.ops import Measurements
from receiver.web.relay import relay

APP_LOAD_ERROR = 4  # gunicorn gives up on this exit code of a worker, instead of trying for ever

log = structlog.get_logger()


def create_app(
    settings: Settings | None = None,
    *,
    clock: Callable[[], int] = now_ms,
    transport: httpx.BaseTransport | None = None,
    writer: str | None = None,
) -> Flask:
    """Make the WSGI application.

    settings -- read from the environment if None; then a wrong one ends the process with one line,
    and background work is done.
    clock -- gives ms since the epoch. transport -- carries requests to the vendor. writer -- see
    `Intake`.
    """
    if settings is not None:
        return _app(settings, clock, transport, writer)[0]
    try:
        check_environment()
        app, background = _app(Settings.from_env(os.environ), clock, transport, writer)
    except SettingsError as error:
        sys.stderr.write(f"receiver: {error}\n")
        raise SystemExit(APP_LOAD_ERROR) from None
    compile_templates(app)
    background.start()
    return app


def _app(
    settings: Settings,
    clock: Callable[[], int],
    transport: httpx.BaseTransport | None,
    writer: str | None,
) -> tuple[Flask, Background]:
    logs.configure()
    database = migrations.open_database(settings.database_url)
    secret_box = SecretBox(settings.encryption_keys)
    keys = Keys(secret_box, settings.default_keys)
    intake = Intake(settings, database, keys, clock, writer)
    vendor = VendorClient(settings.vendor_url, transport)
    safe_http = SafeClient(settings.forward_allow)
    reconciler = Reconciler(settings, database, intake, vendor, clock=clock)
    signers = {
        "callback": callback_signer(keys, database),
        "alarm": channels.signer(settings),
        subscriptions.KIND: subscriptions.signer(database, secret_box),
    }
    observers = {subscriptions.KIND: subscriptions.note_attempt}
    sender = Sender(database, safe_http, Mailer(settings), signers, clock, observers=observers)
    retention = Retention(settings, database, clock)
    health = Health(clock, lambda: intake.reason)

    def beat() -> None:
        logs.flush()
        health.beat(database, alive=intake.writer.alive)
        reconciler.beat()

    def observe() -> bool:  # here, and not with each batch, since a writer that hangs has none
        QUEUE_LENGTH.set(intake.writer.waiting)
        database.watch_file()
        return False

    watcher = Watcher(settings, database, sender.send, clock)
    tasks = [
        Task(reconciler.fetch_errors),
        Task(reconciler.check_queues, pause=CHECK_SECONDS),
        Task(sender.step, pause=SEND_PAUSE_SECONDS, close=partial(sender.step, begin=False)),
        Task(retention.step, pause=LOOK_SECONDS),
        Task(observe),
        # At once, or the dashboard would say after each start that alarms are not checked.
        Task(watcher.check, pause=PERIOD_SECONDS, close=watcher.release, at_once=True),
    ]
    background = Background(tasks, beat)
    if any(len(key.secret) < SHORT_KEY_BYTES for key in settings.default_keys):
        log.warning("a signature key of the instance default is short", bytes=SHORT_KEY_BYTES)
    limits = Limits(settings.api_rate, settings.failed_tokens_a_minute)
    stored = Stored(Measurements(settings, database, clock).read)
    services = Services(
        settings=settings,
        database=database,
        intake=intake,
        limits=limits,
        secret_box=secret_box,
        vendor=vendor,
        safe_http=safe_http,
        clock=clock,
        health=health,
        stored=stored,
        reconciler=reconciler,
        sender=sender,
    )
    atexit.register(_close, background, intake, database)
    return _flask(services), background


def callback_signer(keys: Keys, database: Database) -> Signer:
    """Sign what clients are sent as the vendor signs, with their instance's newest key."""

    def sign_callback(message: Message, _now: int) -> Outgoing:
        # Read anew: what a retired key signs proves nothing any more.
        of_instance = keys.refresh(database).instances.get(message.instance or "")
        headers = {}
        if of_instance is not None and of_instance.keys:
            headers[HEADER] = sign(message.body, of_instance.keys[0])
        # No other text can be sent as it came.
        webhook_id = message.webhook_id
        if webhook_id and webhook_id.isascii() and webhook_id.isprintable():
            headers[WEBHOOK_ID_HEADER] = webhook_id
        return Outgoing(message.body, headers)

    return sign_callback


def _flask(services: Services) -> Flask:
    app = Flask("receiver", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.extensions["receiver"] = services
    for room in (callbacks, relay, ops, problems, request_log):
        room.register(app)
    routes.register(app, ROUTES)
    app.register_blueprint(dashboard)
    hops = services.settings.trusted_proxies
    proxied = ProxyFix(app.wsgi_app, 0, hops, hops)
    app.wsgi_app = _as_sent(proxied, hops)  # type: ignore[assignment, method-assign]
    return app


def _as_sent(wsgi: WSGIApplication, hops: int) -> WSGIApplication:
    """Take the path from the request line alone, and the address as the trusted proxies have it.

    A server may take a header SCRIPT_NAME off the path: so `/callbacks/metrics` would be
    `/metrics`, past a proxy that lets out no more than `/callbacks/`.
    """

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["PATH_INFO"] = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        environ["SCRIPT_NAME"] = ""
        forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        environ["REMOTE_ADDR"] = client_address(environ.get("REMOTE_ADDR", ""), forwarded, hops)
        return wsgi(environ, start_response)

    return application


def _close(background: Background, intake: Intake, database: Database) -> None:
    with contextlib.suppress(StoreError):  # leases end by themselves, if later
        background.close()
    with contextlib.suppress(ValueError):  # standard error may be closed by now
        logs.flush(at_once=True)
    intake.writer.close()
    with contextlib.suppress(StoreError):  # at the end of the process, there is nothing to save
        database.close()
