"""`receiver demo`: the whole way once, with real servers, as a user would type it."""

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess  # nosec B404
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import click
import httpx
from cryptography.fernet import Fernet

from receiver.cli.output import UNREACHABLE, Failure

START_SECONDS = 30
INSTANCES = ("gooddata", "freshbooks")
BAD_ROWS = """\
,No,Address,,,Acme,
not-an-address,Mal,Formed,,,Acme,
norm.smith@acme.com,Norm,Again,,,Acme,
"""


@click.command()
@click.option("--keep", is_flag=True, help="Leave sandbox and receiver running until Ctrl-C.")
def demo(keep: bool) -> None:
    """Upload sample contacts to a simulator of the vendor, and wait for the signed callbacks."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="receiver-demo-")))
        sample = stack.enter_context(
            as_file(files("receiver.openconnectors.sandbox") / "contacts.csv")
        )
        (folder / "sample.csv").write_bytes(sample.read_bytes())
        (folder / "bad.csv").write_bytes(sample.read_bytes() + b"\n" + BAD_ROWS.encode())
        servers = _Servers(stack, folder)
        good = [_upload_and_wait(servers, instance) for instance in INSTANCES]
        bad = _lose_records(servers)
        click.echo()
        for job in (*good, bad):
            records = job["records"]
            click.echo(
                f"Job {job['id']} of {job['instance']}: outcome {job['outcome']}, learnt by"
                f" {job['learnt_by']}, {records['loaded']} of {records['submitted']} records loaded"
            )
        right = all(map(_is_right, good)) and bad["outcome"] == "partial"
        if keep:
            click.echo(f"\nStill running: {servers.url}/ with the token {servers.token}")
            click.echo("Ctrl-C ends both.")
            signal.sigwait([signal.SIGINT, signal.SIGTERM])
    sys.exit(0 if right else 1)


def _is_right(job: dict[str, Any]) -> bool:
    told = (job["outcome"], job["learnt_by"])
    records = {"submitted": 10, "loaded": 10, "failed": 0, "reported": 10}
    return told == ("succeeded", "callback") and job["records"] == records


class _Servers:
    """The sandbox and the receiver, two instances, and a token."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder
        for name in ("signature-key", "element-token", "user-secret"):
            (folder / name).write_text(secrets.token_urlsafe(24))
        vendor = f"127.0.0.1:{_free_port()}"
        self.url = f"http://127.0.0.1:{_free_port()}"
        (folder / "encryption-keys").write_bytes(Fernet.generate_key())
        settings = {
            "RECEIVER_DATABASE_URL": f"sqlite:///{folder / 'receiver.db'}",
            "RECEIVER_ENCRYPTION_KEYS_FILE": str(folder / "encryption-keys"),
            "RECEIVER_PUBLIC_URL": self.url,
            "OPEN_CONNECTORS_URL": f"http://{vendor}/elements/api-v2",
        }
        kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        environment = {**kept, **settings}
        click.echo(
            "# A simulator of the vendor, two instances, the receiver, and a token to ask it with"
        )
        click.echo(f"$ export {' '.join(f'{name}={value}' for name, value in settings.items())}")
        key = ("--signature-key-file", str(folder / "signature-key"))
        sandbox = ("sandbox", "--bind", vendor, *key)
        stack.enter_context(_running(sandbox, environment))
        for instance in INSTANCES:
            token = ("--element-token-file", str(folder / "element-token"))
            secret = ("--user-secret-file", str(folder / "user-secret"))
            add = ("instances", "add", instance, *key, *token, *secret, "--hub", "marketing")
            _receiver(add, environment)
        serve = ("serve", "--bind", self.url.removeprefix("http://"))
        stack.enter_context(_running(serve, environment))
        self.token = _receiver(("tokens", "create", "demo", "--scope", "operate"), environment)
        _until_ready(f"{self.url}/readyz")
        _until_ready(f"http://{vendor}/elements/api-v2/objects")

    def vendors(self, instance: str, *words: str) -> Any:  # noqa: ANN401 - JSON
        """Ask one of the vendor's own paths, the last of `words`, as the seeds do."""
        *options, path = words
        header = f"Authorization: Element {instance}, User {self.token}"
        url = f"{self.url}/elements/api-v2/hubs/marketing{path}"
        return _curl(("curl", "-sS", "-H", header, *options, url), self.folder)

    def ask(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Ask the receiver's own API."""
        header = f"Authorization: Bearer {self.token}"
        return _curl(("curl", "-sS", "-H", header, f"{self.url}/api/v1{path}"), self.folder)


def _upload_and_wait(servers: _Servers, instance: str) -> dict[str, Any]:
    click.echo(f"\n# {instance}: which objects are there?")
    servers.vendors(instance, "/objects")
    click.echo(f"\n# {instance}: upload ten contacts")
    upload = ("-X", "POST", "-F", "file=@sample.csv", "/bulk/contact?path=/sample.csv")
    job_id = servers.vendors(instance, *upload)["id"]
    click.echo("\n# Wait for the outcome: the answer comes as soon as the signed callback does")
    job: dict[str, Any] = servers.ask(f"/jobs/{job_id}?instance={instance}&wait=30")
    click.echo("\n# The status, as a client of the vendor asks for it")
    servers.vendors(instance, f"/bulk/{job_id}/status")
    click.echo("\n# The source")
    servers.ask(f"/jobs/{job_id}/events?instance={instance}")
    return job


def _lose_records(servers: _Servers) -> dict[str, Any]:
    instance = INSTANCES[0]
    click.echo("\n# A second file, three of its rows bad: the vendor says COMPLETED all the same")
    upload = ("-X", "POST", "-F", "file=@bad.csv", "/bulk/contact?path=/bad.csv")
    job_id = servers.vendors(instance, *upload)["id"]
    job: dict[str, Any] = servers.ask(f"/jobs/{job_id}?instance={instance}&wait=30")
    click.echo("\n# Which records failed, and why")
    deadline = time.monotonic() + START_SECONDS
    path = f"{servers.url}/api/v1/jobs/{job_id}/errors?instance={instance}"
    headers = {"Authorization": f"Bearer {servers.token}"}
    while not httpx.get(path, headers=headers).json().get("errors"):
        if time.monotonic() > deadline:
            raise Failure(UNREACHABLE, "demo_failed", "the errors were not fetched in time")
        time.sleep(0.2)
    servers.ask(f"/jobs/{job_id}/errors?instance={instance}")
    return job


def _is_setting(name: str) -> bool:
    return name.startswith(("RECEIVER_", "OPEN_CONNECTORS_", "EVENT_NOTIFICATION_"))


def _curl(words: tuple[str, ...], folder: Path) -> Any:  # noqa: ANN401 - JSON
    """Show a curl command and do what it would do, so that curl itself is not needed."""
    click.echo(f"$ {shlex.join(words)}")
    options = list(words[1:])
    headers, upload, method = {}, None, "GET"
    while len(options) > 1:
        option = options.pop(0)
        if option == "-H":
            name, _, value = options.pop(0).partition(": ")
            headers[name] = value
        elif option == "-F":
            upload = folder / options.pop(0).removeprefix("file=@")
        elif option == "-X":
            method = options.pop(0)
    with ExitStack() as stack:
        sent = {"file": stack.enter_context(upload.open("rb"))} if upload else None
        answer = httpx.request(method, options[0], headers=headers, files=sent, timeout=60)
    click.echo(json.dumps(answer.json(), indent=2))
    if not answer.is_success:
        raise Failure(UNREACHABLE, "demo_failed", f"{options[0]} answered {answer.status_code}")
    return answer.json()


@contextmanager
def _running(words: tuple[str, ...], environment: dict[str, str]) -> Iterator[None]:
    click.echo(f"$ {shlex.join(('receiver', *words))} &")
    command = [sys.executable, "-m", "receiver", *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603  # nosec B603
    try:
        yield
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _receiver(words: tuple[str, ...], environment: dict[str, str]) -> str:
    click.echo(f"$ {shlex.join(('receiver', *words))}")
    command = [sys.executable, "-m", "receiver", *words]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603  # nosec B603
    return done.stdout.strip()


def _until_ready(url: str) -> None:
    headers = {"Authorization": "Element demo-element, User demo-user"}
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, headers=headers, timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise Failure(UNREACHABLE, "demo_failed", f"{url} did not come up in {START_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


COMMANDS = (demo,)
