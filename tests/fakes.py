"""A receiver in this process, listening, between clients and the vendor's stand-in."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import msgspec
from builders import KEY, Receiver
from cryptography.fernet import Fernet
from flask import Flask
from nodes import eventually as until
from werkzeug.serving import WSGIRequestHandler, make_server

from receiver.app import callback_signer, create_app
from receiver.instances import keys as signature_keys
from receiver.instances import registry, tokens
from receiver.instances.keys import Keys
from receiver.lib.clock import now_ms
from receiver.openconnectors.client import VendorClient
from receiver.openconnectors.sandbox.faults import Faults, Options
from receiver.openconnectors.sandbox.server import running
from receiver.openconnectors.signatures import SignatureKey
from receiver.outbound.mail import Mailer
from receiver.outbound.sender import Sender
from receiver.reconcile.reconciler import Reconciler
from receiver.settings import Settings

ENCRYPTION_KEY = Fernet.generate_key().decode()
INSTANCES = ("gooddata", "freshbooks")
ROWS = b"email,name\na@example.com,A\nb@example.com,B\n"
BAD_ROWS = ROWS + b"not-an-address,C\n,D\n"
SECRETS = tuple(f"{name}-{kind}" for name in INSTANCES for kind in ("element", "secret"))


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None: ...


@contextmanager
def listening() -> Iterator[tuple[str, Callable[[Any], None]]]:
    """Give a URL, and what sets the WSGI application that answers there."""
    apps: list[Any] = []

    def newest(environ: Any, start: Any) -> Any:
        return apps[-1](environ, start)

    server = make_server("127.0.0.1", 0, newest, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}", apps.append
    server.shutdown()
    thread.join()
    server.server_close()


class Between(Receiver):
    """A receiver that both the stand-in and clients can reach; two instances."""

    def __init__(self, app: Flask, token: str, url: str, sandbox: Any, answer_with: Any) -> None:
        super().__init__(app, token)
        self.url, self.sandbox, self.answer_with = url, sandbox, answer_with
        self.http = httpx.Client(base_url=f"{url}/elements/api-v2", trust_env=False, timeout=60)

    def vendors(
        self,
        method: str,
        path: str,
        instance: str = "gooddata",
        *,
        token: str | None = None,
        **request: Any,
    ) -> httpx.Response:
        """Ask one of the vendor's own paths, as a client of the vendor does."""
        authorization = f"Element {instance}, User {token or self.token}"
        headers = {"Authorization": authorization, **request.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **request)

    def upload(
        self, content: bytes = ROWS, instance: str = "gooddata", **given: Any
    ) -> httpx.Response:
        path = given.pop("path", "/bulk/contact")
        name = given.pop("name", "sample.csv")
        return self.vendors(
            "POST",
            path,
            instance,
            params={"path": "/sample.csv"},
            files={"file": (name, content, "text/csv")},
            **given,
        )

    def uploaded(self, content: bytes = ROWS, instance: str = "gooddata", **given: Any) -> str:
        answer = self.upload(content, instance, **given)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str, instance: str = "gooddata") -> Any:
        return self.get(f"/jobs/{job_id}?instance={instance}").json

    def ended(self, job_id: str, instance: str = "gooddata") -> Any:
        """Give the job once the receiver knows that it ended."""

        def look() -> Any:
            found = self.job(job_id, instance)
            return found if found.get("learnt_by") else None

        return until(look)

    def ended_at_vendor(self, *ids: str) -> None:
        until(lambda: all(self.sandbox.stage.jobs.find(each).has_ended for each in ids))

    def faults(self, **faults: Any) -> None:
        self.sandbox.stage.options.faults = msgspec.convert(faults, Faults)

    def asked(self, template: str, job_id: str | None = None) -> int:
        """Count how often the stand-in was asked for a path, or for that of one job."""
        named = re.sub("{id}", job_id or "[^/]+", template)
        paths = re.compile(named.replace("{objectName}", "(?!query$|download$)[^/]+"))
        requests = self.sandbox.stage.requests
        return sum(count for request, count in requests.items() if paths.fullmatch(request))

    def summary(self) -> Any:
        return self.get("/summary").json

    def reconciler(self, **given: Any) -> Reconciler:
        """Another node's reconciler on the same database, that does not wait."""
        services = self.services
        vendor = given.pop("vendor", None) or services.vendor
        chosen = {"sleep": lambda _: None, "clock": services.clock, **given}
        settings = chosen.pop("settings", services.settings)
        return Reconciler(settings, services.database, services.intake, vendor, **chosen)

    def sender(self, clock: Callable[[], int] | None = None) -> Sender:
        """What a restarted node tells clients with."""
        services = self.services
        signers = {"callback": callback_signer(Keys(services.secret_box, ()), services.database)}
        mailer = Mailer(services.settings)
        used = (services.safe_http, mailer, signers, clock or services.clock)
        return Sender(services.database, *used)

    def close(self) -> None:
        self.http.close()
        self.services.vendor.close()
        super().close()


def add_instance(receiver: Receiver, name: str, hub: str | None = None) -> None:
    """Add an instance with secrets and the tests' signature key."""
    secret_box = receiver.services.secret_box
    with receiver.services.database.write() as session:
        element, secret = f"{name}-element".encode(), f"{name}-secret".encode()
        registry.add_instance(
            session, secret_box, name, now_ms(), hub=hub, element_token=element, user_secret=secret
        )
        signature_keys.add_key(session, secret_box, name, KEY.secret, now_ms())


@contextmanager
def between(
    database_url: str, clock: Callable[[], int] = now_ms, **given: Any
) -> Iterator[Between]:
    """Start a stand-in and a receiver. given -- Options of the one, Settings of the other."""
    options = {name: given.pop(name) for name in list(given) if hasattr(Options, name)}
    chosen = {"job_seconds": 0, "retry_seconds": 0.05, **options}
    with ExitStack() as stack:
        key = SignatureKey("sandbox", KEY.secret)
        sandbox = stack.enter_context(running(Options(signature_key=key, **chosen)))
        url, answer_with = stack.enter_context(listening())
        settings = Settings(
            database_url=database_url,
            **{
                "encryption_keys": (ENCRYPTION_KEY,),
                "vendor_url": sandbox.api,
                "public_url": url,
                "vendor_rate": 1000.0,
                "answer_within": 60_000,
                **given,
            },
        )
        app = create_app(settings, clock=clock)
        with app.extensions["receiver"].database.write() as session:
            token = tokens.create_token(session, "test", "operate", 1)
        receiver = Between(app, token, url, sandbox, answer_with)
        stack.callback(receiver.close)
        # Before that: a callback on its way would open the database again, and nobody close it.
        stack.callback(sandbox.stage.close)
        for name, hub in zip(INSTANCES, ("marketing", None), strict=True):
            add_instance(receiver, name, hub)
        answer_with(app)
        yield receiver


def made_elsewhere(receiver: Between, instance: str = "gooddata", rows: bytes = ROWS) -> str:
    """Have somebody else give the vendor a job, with no callback."""
    answer = httpx.post(
        f"{receiver.sandbox.api}/bulk/contact?path=/x.csv",
        headers={"Authorization": f"Element {instance}-element, User {instance}-secret"},
        files={"file": rows},
        trust_env=False,
    )
    return str(answer.json()["id"])


def impatient(receiver: Receiver) -> VendorClient:
    """Have the receiver's vendor client repeat without pauses."""
    vendor = receiver.services.vendor
    vendor._retrying.sleep = lambda _: None
    return vendor
