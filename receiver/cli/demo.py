"""`receiver demo`: the whole way once, with real servers, as a user would type it."""

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess  # nosec B404 - starts this very program, with arguments of its own
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

from receiver.cli.exits import UNREACHABLE, Failure, of_outcome

START_SECONDS = 30
INSTANCE = "default"


@click.command()
@click.option("--keep", is_flag=True, help="Leave sandbox and receiver running until Ctrl-C.")
def demo(keep: bool) -> None:
    """Upload the sample contacts to a stand-in of the vendor, and wait for the signed callback."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="receiver-demo-")))
        sample = stack.enter_context(as_file(files("receiver.sandbox") / "contacts.csv"))
        shutil.copy(sample, folder / "sample.csv")
        job, url, token = _walk(stack, folder)
        succeeded = job["outcome"] == "succeeded" and job["records"]["loaded"] == 10  # noqa: PLR2004
        click.echo(f"\nJob {job['id']}: outcome {job['outcome']}, learnt by {job['learnt_by']},")
        click.echo(f"{job['records']['loaded']} of 10 records loaded.")
        if keep:
            click.echo(f"\nStill running: {url}/ with the token {token} (Ctrl-C ends both)")
            signal.sigwait([signal.SIGINT, signal.SIGTERM])
    sys.exit(0 if succeeded else of_outcome(job["outcome"]) or UNREACHABLE)


def _walk(stack: ExitStack, folder: Path) -> tuple[dict[str, Any], str, str]:
    key = folder / "signature-key"
    key.write_text(secrets.token_urlsafe(24))
    vendor, url = f"127.0.0.1:{_free_port()}", f"http://127.0.0.1:{_free_port()}"
    environment = {
        **{name: value for name, value in os.environ.items() if "RECEIVER_" not in name},
        "RECEIVER_DATABASE_URL": f"sqlite:///{folder / 'receiver.db'}",
        "EVENT_NOTIFICATION_SIGNATURE_KEY_FILE": str(key),
        "RECEIVER_PUBLIC_URL": url,
    }
    environment.pop("EVENT_NOTIFICATION_SIGNATURE_KEY", None)
    environment.pop("EVENT_NOTIFICATION_SIGNATURE_KEY_PREVIOUS", None)

    click.echo("# The vendor's stand-in, the receiver, and a token to ask it with")
    sandbox = ("sandbox", "--bind", vendor, "--signature-key-file", str(key))
    stack.enter_context(_running(sandbox, environment))
    stack.enter_context(_running(("serve", "--bind", url.removeprefix("http://")), environment))
    token = _receiver(("tokens", "create", "demo", "--scope", "read"), environment)
    base = f"http://{vendor}/elements/api-v2"
    _until_ready(f"{url}/readyz")
    _until_ready(f"{base}/objects")

    secrets_ = "Authorization: Element demo-element, User demo-user"
    curl = ("curl", "-sS", "-H", secrets_)
    click.echo("\n# Which objects are there?")
    _curl((*curl, f"{base}/objects"), folder)
    click.echo("\n# Upload ten contacts, and have the end of the job told to the receiver")
    callback = f"Elements-Async-Callback-Url: {url}/callbacks/{INSTANCE}"
    upload = ("-X", "POST", "-H", callback, "-F", "file=@sample.csv")
    job_id = _curl((*curl, *upload, f"{base}/bulk/contact?path=/sample.csv"), folder)["id"]
    click.echo("\n# Wait for the outcome: the answer comes as soon as the signed callback does")
    bearer = ("curl", "-sS", "-H", f"Authorization: Bearer {token}")
    job = _curl((*bearer, f"{url}/api/v1/jobs/{job_id}?wait=30"), folder)
    click.echo("\n# What told so")
    _curl((*bearer, f"{url}/api/v1/jobs/{job_id}/events"), folder)
    return job, url, token


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
