"""Trying it out: the whole way once with real servers, a test callback, a signature by hand."""

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess  # nosec B404
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import click
import httpx
from cryptography.fernet import Fernet

from receiver.callbacks.diagnosis import diagnose
from receiver.callbacks.trigger import send_signed
from receiver.cli.options import json_option, read_url, secret_option
from receiver.cli.output import Exit, Failure, describe, show, table
from receiver.cli.serve import open_database
from receiver.client import Client, Job, NoSuchInstance, Records
from receiver.client.flows import API
from receiver.database import migrations
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys, add_key
from receiver.instances.registry import VendorOptions, add_instance
from receiver.instances.tokens import create_token
from receiver.lib.clock import now_ms
from receiver.openconnectors.sandbox.faults import Options
from receiver.openconnectors.shapes import BASE
from receiver.openconnectors.signatures import HEADER, SignatureKey
from receiver.settings import DEFAULT_INSTANCE, Settings, read_file

_CODES = {0: "unreachable", 401: "not_verified", 503: "not_stored"}  # of `trigger`, by status
START_SECONDS = 60
STOP_SECONDS = 3
MAX_BODY_BYTES = 2**26  # far more than any callback has
BAD_ROWS = """
,No,Address,,,Acme,
not-an-address,Mal,Formed,,,Acme,
norm.smith@acme.com,Norm,Again,,,Acme,
"""


@click.command()
@click.option("--keep", is_flag=True, help="Leave sandbox and receiver running until Ctrl-C.")
def demo(keep: bool) -> None:
    """Upload sample contacts to a simulator of the vendor, and wait for the signed callbacks."""
    from receiver.openconnectors.sandbox.command import running  # loads Flask

    key = SignatureKey("sandbox", secrets.token_urlsafe(24).encode())
    with (
        TemporaryDirectory(prefix="receiver-demo-") as folder,
        running(Options(signature_key=key)) as vendor,
        _serving(Path(folder), vendor.api, key.secret) as (url, token),
        Client(url, token) as client,
    ):
        click.echo(f"A simulator of the vendor: {vendor.url}\nThe receiver:              {url}")
        walk = _Walk(url, token, Path(folder), client)
        is_right = walk.load_all() and walk.load_some()
        if keep:
            click.echo(f"\nDashboard: {url}/\nToken:     {token}")
            stop = Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            click.echo("Both servers run until Ctrl-C.")
            stop.wait()
        else:
            click.echo("\n`make demo KEEP=1` leaves both servers running, with a dashboard.")
    sys.exit(0 if is_right else 1)


@dataclass(frozen=True)
class _Walk:
    """The steps, each with the command that would be typed for it; curl itself is not needed."""

    url: str
    token: str
    folder: Path
    client: Client

    def load_all(self) -> bool:
        """Upload ten good contacts; return whether all were loaded and a callback said so."""
        sample = (files("receiver.openconnectors.sandbox") / "contacts.csv").read_text()
        _title(
            "1. Upload ten contacts, as to the vendor: another base URL and token, all else alike"
        )
        job_id = self.upload("gooddata", "contacts.csv", sample)
        _title("2. Wait for the outcome: the answer comes as soon as the signed callback has")
        job = self.wait("gooddata", job_id)
        _title("3. The callback that said so: its signature and its bytes")
        self.show_question(f"/events?instance=gooddata&job={job_id}")
        listed = self.client.page("/events", "events", instance=job.instance, job=job_id)
        path = f"/events/{listed['events'][0]['id']}"
        headers = self.client.page(path, "headers")["headers"]
        click.echo(f"{HEADER}: {headers[HEADER.lower()]}")
        bearer, body = {"Authorization": f"Bearer {self.token}"}, f"{self.url}{API}{path}/body"
        click.echo(httpx.get(body, headers=bearer, timeout=START_SECONDS).text)
        reached = (job.outcome, job.learnt_by, job.records)
        return reached == ("succeeded", "callback", Records(10, 10, 0, 10))

    def load_some(self) -> bool:
        """Upload a file with three bad rows; return whether the outcome says so."""
        sample = (self.folder / "contacts.csv").read_text()
        _title("4. Upload thirteen, three of them bad. The vendor says COMPLETED all the same")
        job_id = self.upload("freshbooks", "bad.csv", sample + BAD_ROWS)
        job = self.wait("freshbooks", job_id)
        _title("5. Which records failed, and why")
        self.show_question(f"/jobs/{job_id}/errors?instance=freshbooks")
        failed = self.client.errors(job, wait=START_SECONDS)
        click.echo(table(failed.errors, ("row", "message")))
        return job.outcome == "partial"

    def upload(self, instance: str, file: str, content: str) -> str:
        """Upload a file on the vendor's own path, as the vendor's clients do; return its job."""
        (self.folder / file).write_text(content)
        authorization = f"Authorization: Element {instance}, User {self.token}"
        url = f"{self.url}{BASE}/bulk/contact?path=/{file}"
        _show("curl", "-H", authorization, "-F", f"file=@{file}", url)
        created = self.client.submit(self.folder / file, object="contact", instance=instance)
        click.echo(json.dumps(created.answer, separators=(",", ":")))
        return created.id

    def wait(self, instance: str, job_id: str) -> Job:
        """Wait for a job's end; show how it ended."""
        self.show_question(f"/jobs/{job_id}?instance={instance}&wait=30")
        job = self.client.wait(job_id, instance=instance, timeout=START_SECONDS)
        click.echo(describe(job))
        return job

    def show_question(self, path: str) -> None:
        """Show how the receiver's own API is asked."""
        _show("curl", "-H", f"Authorization: Bearer {self.token}", f"{self.url}{API}{path}")


def _title(text: str) -> None:
    click.echo(f"\n{text}\n")


def _show(*words: str) -> None:
    click.echo(f"$ {shlex.join(words)}")


@contextmanager
def _serving(folder: Path, vendor: str, key: bytes) -> Iterator[tuple[str, str]]:
    """Run a receiver that has two instances; give its URL and a token."""
    settings = ("RECEIVER_", "OPEN_CONNECTORS_", "EVENT_NOTIFICATION_")
    inherited = {name: it for name, it in os.environ.items() if not name.startswith(settings)}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    url, encryption_key = f"http://{bind}", Fernet.generate_key().decode()
    database_url = f"sqlite:///{folder / 'receiver.db'}"
    environment = {
        **inherited,
        "RECEIVER_DATABASE_URL": database_url,
        "RECEIVER_ENCRYPTION_KEYS": encryption_key,
        "RECEIVER_PUBLIC_URL": url,
        "OPEN_CONNECTORS_URL": vendor,
    }
    secret_box, now = SecretBox([encryption_key]), now_ms()
    options = VendorOptions(element_token=key, user_secret=key)  # the simulator takes any
    with closing(migrations.open_database(database_url)) as database, database.write() as session:
        for instance in ("gooddata", "freshbooks"):
            add_instance(session, secret_box, instance, now, **options)
            add_key(session, secret_box, instance, key, now)
        token = create_token(session, "demo", "operate", now)
    command = [sys.executable, "-m", "receiver", "serve", "--bind", bind]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603  # nosec B603
    try:
        _wait_until_ready(url)
        yield url, token
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=2).is_success:
                return
        time.sleep(0.1)
    text = f"{url} did not answer within {START_SECONDS} s"
    raise Failure(Exit.UNREACHABLE, "demo_failed", text)


@click.command()
@click.option(
    "--body",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    help="File with the exact bytes of the delivery.",
)
@click.option("--signature", required=True, help="The value of Elements-Webhook-Signature.")
@secret_option("--key-file", "key", "the signature key", required=True)
@json_option
def verify(body: str, signature: str, key: bytes, json_: bool) -> None:
    """Check a signature, and say what is wrong with it. Offline."""
    valid, detail = diagnose(read_file(body, MAX_BODY_BYTES), signature, key)
    show({"valid": valid, "detail": detail}, detail, json_)
    sys.exit(Exit.OK if valid else Exit.CREDENTIALS)


@click.command()
@click.option(
    "--url",
    callback=read_url,
    envvar="RECEIVER_PUBLIC_URL",
    required=True,
    show_envvar=True,
    help="The receiver's public URL, or the whole callback URL.",
)
@click.option("--instance", default=DEFAULT_INSTANCE, show_default=True, help="Whose callback.")
@secret_option("--key-file", "secret", "the key, if not of the environment or the database")
@json_option
def trigger(url: str, instance: str, secret: bytes | None, json_: bool) -> None:
    """Send a signed test callback the way the vendor's come.

    It is an event of kind `other`, marked as a test, and touches no job. In `keys list`, its key
    was used like by any other.
    """
    key = _key(instance) if secret is None else SignatureKey("file", secret)
    target = url if "/callbacks/" in url else f"{url.rstrip('/')}/callbacks/{instance}"
    sent = send_signed(target, instance, key, now_ms())
    if sent.event is None:
        exit_code = Exit.CREDENTIALS if sent.status == 401 else Exit.UNREACHABLE
        code = _CODES.get(sent.status, "not_a_receiver")
        raise Failure(exit_code, code, "; ".join(sent.problem(url)))
    content = {"status": 200, "event": sent.event, "duplicate": sent.duplicate}
    show(content, f"verified and stored as event {sent.event}", json_)


def _key(instance: str) -> SignatureKey:
    settings = Settings.from_env(os.environ)
    if instance == DEFAULT_INSTANCE and settings.default_keys:
        return settings.default_keys[0]
    with open_database() as (_, database):
        keys = Keys(SecretBox(settings.encryption_keys), settings.default_keys)
        instances = keys.refresh(database).instances
    of_instance = instances.get(instance)
    if of_instance is None:
        raise NoSuchInstance(instance, instances)
    if not of_instance.keys:
        text = f"there is no usable key of {instance}: name one with --key-file"
        raise Failure(Exit.USAGE, "no_key", text)
    return of_instance.keys[0]
