"""Trying it out: the whole way once with real servers, a test callback, a signature by hand."""

import os
import secrets
import shlex
import signal
import socket
import subprocess  # nosec B404
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
from cryptography.fernet import Fernet

from receiver.callbacks.diagnosis import diagnose
from receiver.callbacks.trigger import send_signed
from receiver.cli.options import json_option, read_url, secret_option
from receiver.cli.output import (
    CREDENTIALS,
    OK,
    UNREACHABLE,
    USAGE,
    Failure,
    describe,
    show,
    table,
)
from receiver.cli.serve import open_database
from receiver.client import Job, NoSuchInstance
from receiver.client.clients import unreachable
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib.clock import now_ms
from receiver.openconnectors.signatures import HEADER, SignatureKey
from receiver.settings import DEFAULT_INSTANCE, Settings, read_file

START_SECONDS = 60
STOP_SECONDS = 3
BAD_ROWS = """
,No,Address,,,Acme,
not-an-address,Mal,Formed,,,Acme,
norm.smith@acme.com,Norm,Again,,,Acme,
"""
SECRETS = ("signature-key", "element-token", "user-secret")


@click.command()
@click.option("--keep", is_flag=True, help="Leave sandbox and receiver running until Ctrl-C.")
def demo(keep: bool) -> None:
    """Upload sample contacts to a simulator of the vendor, and wait for the signed callbacks."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="receiver-demo-")))
        sample = (files("receiver.openconnectors.sandbox") / "contacts.csv").read_text()
        (folder / "contacts.csv").write_text(sample)
        (folder / "bad.csv").write_text(sample + BAD_ROWS)
        servers = _start(stack, folder)
        is_right = _load_all(servers) and _load_some(servers)
        if keep:
            click.echo(f"\nDashboard: {servers.url}/\nToken:     {servers.token}")
            stops = {signal.SIGINT, signal.SIGTERM}
            signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # or one that comes now would be lost
            click.echo("Both servers run until Ctrl-C.")
            signal.sigwait(stops)
        else:
            click.echo("\n`make demo KEEP=1` leaves both servers running, with a dashboard.")
    sys.exit(0 if is_right else 1)


def _load_all(servers: "_Servers") -> bool:
    """Upload ten good contacts; return whether all were loaded and a callback said so."""
    _title("1. Upload ten contacts, as to the vendor: another base URL and token, all else alike")
    job_id = servers.upload("gooddata", "contacts.csv")
    _title("2. Wait for the outcome: the answer comes as soon as the signed callback has")
    job = servers.wait("gooddata", job_id)
    _title("3. The callback that said so: its signature and its bytes")
    [event] = servers.ask(f"/events?instance=gooddata&job={job_id}")["events"]
    event = servers.get(f"/events/{event['id']}").json()
    click.echo(f"{HEADER}: {event['headers'][HEADER.lower()]}")
    click.echo(servers.get(f"/events/{event['id']}/body").text)
    records = {"submitted": 10, "loaded": 10, "failed": 0, "reported": 10}
    reached = (job["outcome"], job["learnt_by"], job["records"])
    return reached == ("succeeded", "callback", records)


def _load_some(servers: "_Servers") -> bool:
    """Upload a file with three bad rows; return whether the outcome says so."""
    _title("4. Upload thirteen, three of them bad. The vendor says COMPLETED all the same")
    job_id = servers.upload("freshbooks", "bad.csv")
    job = servers.wait("freshbooks", job_id)
    _title("5. Which records failed, and why")
    path = f"/jobs/{job_id}/errors?instance=freshbooks"
    _until(lambda: servers.get(path).json()["errors"], "the failed records")
    click.echo(table(servers.ask(path)["errors"], ("row", "message")))
    return bool(job["outcome"] == "partial")


@dataclass(frozen=True)
class _Servers:
    """The sandbox and the receiver, and a token of the receiver's."""

    url: str
    token: str
    folder: Path

    def upload(self, instance: str, file: str) -> str:
        """Upload a file on the vendor's own path, as the vendor's clients do; return its job."""
        url = f"{self.url}/elements/api-v2/bulk/contact?path=/{file}"
        headers = {"Authorization": f"Element {instance}, User {self.token}"}
        header = f"Authorization: {headers['Authorization']}"
        _show("curl", "-H", header, "-F", f"file=@{file}", url)
        with (self.folder / file).open("rb") as content:
            answer = httpx.post(url, headers=headers, files={"file": content}, timeout=60)
        click.echo(answer.text)
        return str(_checked(answer).json()["id"])

    def wait(self, instance: str, job_id: str) -> dict[str, Any]:
        """Wait for a job's end; show how it ended."""
        job = self.ask(f"/jobs/{job_id}?instance={instance}&wait=30")
        click.echo(describe(msgspec.convert(job, Job)))
        return job

    def ask(self, path: str) -> dict[str, Any]:
        """Ask the receiver's own API, and show how."""
        _show("curl", "-H", f"Authorization: Bearer {self.token}", f"{self.url}/api/v1{path}")
        content: dict[str, Any] = self.get(path).json()
        return content

    def get(self, path: str) -> httpx.Response:
        """Ask the receiver's own API."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return _checked(httpx.get(f"{self.url}/api/v1{path}", headers=headers, timeout=60))


def _start(stack: ExitStack, folder: Path) -> _Servers:
    """Start sandbox and receiver until the stack is closed, with two instances and a token."""
    for name in SECRETS:
        (folder / name).write_text(secrets.token_urlsafe(24))
    (folder / "encryption-keys").write_bytes(Fernet.generate_key())
    vendor, url = f"127.0.0.1:{_free_port()}", f"http://127.0.0.1:{_free_port()}"
    environment = {
        **{name: value for name, value in os.environ.items() if not _is_setting(name)},
        "RECEIVER_DATABASE_URL": f"sqlite:///{folder / 'receiver.db'}",
        "RECEIVER_ENCRYPTION_KEYS_FILE": str(folder / "encryption-keys"),
        "RECEIVER_PUBLIC_URL": url,
        "OPEN_CONNECTORS_URL": f"http://{vendor}/elements/api-v2",
    }
    options = {name: (f"--{name}-file", str(folder / name)) for name in SECRETS}
    key = options["signature-key"]
    stack.enter_context(_running(("sandbox", "--bind", vendor, *key), environment))
    added = [word for option in options.values() for word in option]
    for instance in ("gooddata", "freshbooks"):
        _receiver(("instances", "add", instance, *added), environment)
    token = _receiver(("tokens", "create", "demo", "--scope", "operate"), environment)
    serve = ("serve", "--bind", url.removeprefix("http://"))
    stack.enter_context(_running(serve, environment))
    _until(lambda: _is_ready(f"{url}/readyz"), url)
    click.echo(f"A simulator of the vendor: http://{vendor}\nThe receiver:              {url}")
    return _Servers(url, token, folder)


def _title(text: str) -> None:
    click.echo(f"\n{text}\n")


def _show(*words: str) -> None:
    """Show a command as it would be typed; curl itself is not needed."""
    click.echo(f"$ {shlex.join(words)}")


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    text = f"{answer.url} answered {answer.status_code}: {answer.text}"
    raise Failure(UNREACHABLE, "demo_failed", text)


def _is_setting(name: str) -> bool:
    return name.startswith(("RECEIVER_", "OPEN_CONNECTORS_", "EVENT_NOTIFICATION_"))


@contextmanager
def _running(words: tuple[str, ...], environment: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "receiver", *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603  # nosec B603
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()


def _receiver(words: tuple[str, ...], environment: dict[str, str]) -> str:
    command = [sys.executable, "-m", "receiver", *words]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603  # nosec B603
    return done.stdout.strip()


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(
                UNREACHABLE, "demo_failed", f"{what} did not answer within {START_SECONDS} s"
            )
        time.sleep(0.1)


def _is_ready(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2).is_success
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    valid, detail = diagnose(read_file(body), signature, key)
    show({"valid": valid, "detail": detail}, detail, json_)
    sys.exit(OK if valid else CREDENTIALS)


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
    try:
        sent = send_signed(target, instance, key, now_ms())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(url, error) from None
    if sent.status == 401:
        detail = (
            f"rejected (401): the receiver has another key for {instance}, or does not know this"
            " instance, or something on the way changed the body"
        )
        raise Failure(CREDENTIALS, "not_verified", detail)
    if sent.status == 503:
        raise Failure(UNREACHABLE, "not_stored", "not accepted (503); the vendor will retry")
    if sent.status != 200 or sent.event is None:
        detail = f"{url} answered {sent.status}, not as a receiver: check --url"
        raise Failure(UNREACHABLE, "not_a_receiver", detail)
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
        raise Failure(USAGE, "no_key", text)
    return of_instance.keys[0]


COMMANDS = (demo, verify, trigger)
