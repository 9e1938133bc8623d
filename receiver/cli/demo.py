"""Trying it out: `sandbox` simulates the vendor, `demo` goes the whole way with real servers."""

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
from inspect import getdoc
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import get_args

import click
import httpx
import msgspec
from cryptography.fernet import Fernet

from receiver.cli.options import read_address, reads, secret_option
from receiver.cli.output import Exit, Failure, describe, table
from receiver.client import Client, Job, Records
from receiver.client.flows import API
from receiver.database import migrations
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import add_key
from receiver.instances.registry import VendorOptions, add_instance
from receiver.instances.tokens import create_token
from receiver.lib.clock import now_ms
from receiver.openconnectors.sandbox.deliveries import read_callback_url
from receiver.openconnectors.sandbox.faults import Faults, Options
from receiver.openconnectors.shapes import BASE, Shape
from receiver.openconnectors.signatures import HEADER, SignatureKey

START_SECONDS = 60
STOP_SECONDS = 3
_SECONDS = click.FloatRange(min=0, max=86_400)
_FAULTS = "\n\n".join(f"\b\n{text}" for text in (getdoc(Faults) or "").split("\n\n"))
BAD_ROWS = """
,No,Address,,,Acme,
not-an-address,Mal,Formed,,,Acme,
norm.smith@acme.com,Norm,Again,,,Acme,
"""


@click.command()
@click.option("--keep", is_flag=True, help="Leave sandbox and receiver running until Ctrl-C.")
def demo(keep: bool) -> None:
    """Upload sample contacts to a simulator of the vendor, and wait for the signed callbacks."""
    from receiver.openconnectors.sandbox.server import running  # loads Flask

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


def _faults(text: str) -> Faults:
    try:
        return msgspec.json.decode(text, type=Faults)
    except msgspec.ValidationError as error:
        what, _, path = str(error).replace("`", "").partition(" - at $.")
        raise ValueError(f"{path or 'what is given'}: {what[0].lower()}{what[1:]}") from None
    except msgspec.DecodeError:
        raise ValueError(f"{text}: is no JSON") from None


@click.command(epilog=_FAULTS)
@click.option(
    "--bind",
    default="127.0.0.1:9000",
    show_default=True,
    metavar="HOST:PORT",
    callback=lambda _context, _option, text: read_address(text),
    help="Where to listen; port 0 takes a free one.",
)
@secret_option("--signature-key-file", "signature_key", "the key that callbacks are signed with")
@click.option(
    "--first-job",
    type=click.IntRange(1, 10**14),
    default=1234,
    show_default=True,
    help="The id of the first job. A sandbox started anew needs a higher one, or a receiver with a"
    " new database, which would take its jobs for those of before.",
)
@click.option(
    "--job-seconds",
    type=_SECONDS,
    default=1.0,
    show_default=True,
    help="From a job's creation to its end.",
)
@click.option(
    "--retry-seconds",
    type=_SECONDS,
    default=1.0,
    show_default=True,
    help="Before the first retry of a callback; 8 times longer before each next one.",
)
@click.option(
    "--shape",
    type=click.Choice(get_args(Shape)),
    default="v2",
    show_default=True,
    help="Shape of what is said of jobs; `document` is the OpenAPI document's, without an id.",
)
@click.option("--total-counts", is_flag=True, help="Count failed records as loaded too.")
@click.option("--callback-url", callback=reads(read_callback_url), help="Where no other is named.")
@click.option("--allow-remote", is_flag=True, help="Send callbacks to other hosts too.")
@click.option(
    "--faults",
    default="{}",
    metavar="JSON",
    callback=reads(_faults),
    help='In force from the start, such as \'{"drop_callbacks": true, "html": 2}\'.',
)
@click.pass_context
def sandbox(context: click.Context, /, signature_key: bytes | None, **_options: object) -> None:
    """Simulate the vendor's bulk API on a local port; any token and secret is taken.

    While it runs, `curl -T KEY-FILE http://HOST:PORT/sandbox/signature-key` gives it another key to
    sign with. `curl -X PUT -d '{"drop_callbacks": true}' http://HOST:PORT/sandbox/faults` puts
    those faults in the place of all others, `{}` ends them. GET shows them; /sandbox/requests and
    /sandbox/deliveries show what was requested and which callbacks were sent.
    """
    from receiver.openconnectors.sandbox.server import serve  # loads Flask

    key = None if signature_key is None else SignatureKey("sandbox", signature_key)
    serve(Options(**{**context.params, "signature_key": key}))  # each option is a field there
