"""What commands that ask a running receiver share, and the secrets that this takes.

Secrets are given as files, never as arguments, which every user of a machine can see.
"""

import shlex
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

import click
from msgspec.structs import asdict

from receiver.cli.output import (
    CREDENTIALS,
    STILL_RUNNING,
    UNREACHABLE,
    USAGE,
    Failure,
    exit_code_of,
    plain,
)
from receiver.client import (
    Client,
    ClientError,
    CredentialsRejected,
    Job,
    NoSuchInstance,
    RequestRejected,
)
from receiver.client.clients import check_token
from receiver.client.clients import check_url as check
from receiver.settings import secret_from_file

T = TypeVar("T")

secret_file = click.Path(dir_okay=False, allow_dash=True)


def secret(path: str | None) -> bytes | None:
    """Return a secret's file, less one final line end; `-` is standard input.

    Raises OSError if it cannot be read.
    """
    return None if path is None else secret_from_file("/dev/stdin" if path == "-" else path)


def check_url(url: str) -> None:
    """Raise click.UsageError if that cannot be a receiver's base URL."""
    try:
        check(url)
    except ValueError as error:
        raise click.UsageError(f"--url {error}") from None


def no_instance(name: str, instances: Iterable[str]) -> Failure:
    """Return the failure for an instance that does not exist; it names those that do."""
    return failure(NoSuchInstance(name, instances))


def failure(error: ClientError) -> Failure:
    """Return the failure that an error of the client is; no answer can steer the terminal."""
    code = CREDENTIALS if isinstance(error, CredentialsRejected) else UNREACHABLE
    code = USAGE if isinstance(error, RequestRejected) else code
    return Failure(code, error.code, plain(error))


def pass_client(command: Callable[..., T]) -> Callable[..., T]:
    """Add to a command `--url` and `--token-file`, and a Client as its argument `client`."""

    def invoke(url: str, token_file: str | None, **arguments: object) -> T:
        if token_file is None:
            raise click.UsageError(
                "--token-file is missing (or RECEIVER_TOKEN_FILE): `receiver tokens create` makes a"
                " token"
            )
        token = _token(token_file)
        check_url(url)
        try:
            with Client(url, token) as client:
                return command(client=client, **arguments)
        except ClientError as error:
            raise failure(error) from None

    invoke.__doc__, invoke.__name__ = command.__doc__, command.__name__
    invoke.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    with_token = click.option(
        "--token-file",
        type=secret_file,
        envvar="RECEIVER_TOKEN_FILE",
        show_envvar=True,
        help="The file that holds the API token; `-` reads standard input.",
    )(invoke)
    return click.option(
        "--url",
        envvar="RECEIVER_URL",
        default="http://127.0.0.1:8000",
        show_default=True,
        show_envvar=True,
        help="Where the receiver answers.",
    )(with_token)


def _token(path: str) -> str:
    token = (secret(path) or b"").decode("utf-8", "surrogateescape").strip()
    if not token:
        raise click.UsageError(f"--token-file {path}: the file is empty")
    try:
        check_token(token)
    except ValueError:
        raise click.UsageError(f"--token-file {path}: there is no token in it") from None
    return token


def exit_with_outcome(job: Job, waited: int) -> NoReturn:
    """Exit as the outcome says; where the wait was over, say how to go on waiting."""
    code = exit_code_of(job.outcome)
    if code == STILL_RUNNING and waited:
        again = ["receiver", "job", job.id, "--instance", job.instance, "--wait", str(waited)]
        click.echo(f"still in progress; go on waiting with: {shlex.join(again)}", err=True)
    sys.exit(code)


def describe(job: Job) -> str:
    """Describe a job in a few lines."""
    records = ", ".join(f"{plain(number)} {name}" for name, number in asdict(job.records).items())
    lines = [
        f"job {plain(job.id)} of {job.instance}: {job.outcome} ({plain(job.status)})",
        f"  records          {records}",
    ]
    lines += [
        f"  {name.replace('_', ' '):<16} {plain(getattr(job, name))}"
        for name in ("object", "direction", "file", "message", "learnt_by", "ended_at")
        if getattr(job, name) is not None
    ]
    if job.files_expire_at:
        lines.append(f"  fetch files by   {job.files_expire_at} (assumed)")
    if job.conflict:
        lines.append("  conflict         two different endings were reported")
    return "\n".join(lines)
