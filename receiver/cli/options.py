"""Options that commands share, and what is read from them: a secret, a duration, a client.

Secrets are given as files, never as arguments, which every user of a machine can see.
"""

import re
import socket
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TypeAlias, TypeVar

import click

from receiver.cli.output import plain
from receiver.client import Client
from receiver.client.clients import check_token, check_url
from receiver.errors import CredentialError
from receiver.settings import duration_ms, secret_from_file

Command: TypeAlias = Callable[..., None]
Decorator: TypeAlias = Callable[[Command], Command]

T = TypeVar("T")

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]*):([0-9]{1,5})")
_FILE = click.Path(dir_okay=False, allow_dash=True)

json_option = click.option("--json", "json_", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Delete without asking.")
limit_option = click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many."
)
wait_option = click.option(
    "--wait", type=click.IntRange(0), default=0, help="Seconds to wait for the job's end."
)


def only(what: str, *names: str, choices: Sequence[str] | None = None) -> Decorator:
    """Return an option, to be repeated, that leaves out whatever is not one of those named."""
    choice = click.Choice(choices) if choices else None
    return click.option(*names, multiple=True, type=choice, help=f"Only {what}; repeatable.")


def reads(convert: Callable[[str], T]) -> Callable[..., T | None]:
    """Have an option's text read by a function that raises ValueError or CredentialError."""

    def callback(_context: click.Context, _option: click.Parameter, text: str | None) -> T | None:
        try:
            return None if text is None else convert(text)
        except (ValueError, RecursionError, CredentialError) as error:
            raise click.BadParameter(str(error)) from None

    return callback


def not_empty(text: str) -> str:
    """Return what was given. Raises ValueError if a script had nothing to give."""
    if not text.strip("/ "):
        raise ValueError("is empty")
    return text


def read_address(bind: str) -> tuple[str, int]:
    """Return host and port of `--bind`.

    Raises click.UsageError if nothing can listen there: a server would try for seconds, or end with
    a paragraph of its own.
    """
    match = _ADDRESS.fullmatch(bind)
    if not match or int(match[2]) >= 1 << 16:
        wanted = "must be HOST:PORT, like 127.0.0.1:8000, with a port up to 65535"
        raise click.UsageError(f"--bind {bind}: {wanted}")
    address = match[1].strip("[]"), int(match[2])
    try:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET  # as servers do
        socket.create_server(address, family=family).close()
    except OSError as error:
        reason = (error.strerror or "it cannot be used").partition(" (")[0].lower()
        raise click.UsageError(f"--bind {bind}: {reason}; choose another one") from None
    return address


def secret_option(option: str, name: str, what: str, required: bool = False) -> Decorator:
    """Return the option for a secret's file, of which a command gets the content.

    One final line end is dropped. Raises OSError or click.UsageError while options are read.
    """
    text = f"File of {what}; `-` reads standard input."
    return click.option(option, name, type=_FILE, callback=_secret, help=text, required=required)


def _secret(context: click.Context, option: click.Parameter, path: str | None) -> bytes | None:
    if path is None or context.resilient_parsing:
        return None
    content = secret_from_file("/dev/stdin" if path == "-" else path)
    if not content:
        text = f"{option.opts[0]} {path}: the file is empty, there is no secret in it"
        raise click.UsageError(text)
    return content


def _token(context: click.Context, option: click.Parameter, path: str | None) -> str | None:
    content = _secret(context, option, path)
    if content is None:
        return None
    token = content.decode("utf-8", "surrogateescape").strip()
    try:
        check_token(token)
    except ValueError:
        raise click.UsageError(f"--token-file {path}: there is no token in it") from None
    return token


def pass_client(command: Command) -> Command:
    """Add to a command `--url` and `--token-file`, and a Client as its argument `client`."""

    @click.option(
        "--url",
        callback=reads(check_url),
        envvar="RECEIVER_URL",
        default="http://127.0.0.1:8000",
        show_default=True,
        show_envvar=True,
        help="Where the receiver answers.",
    )
    @click.option(
        "--token-file",
        "token",
        type=_FILE,
        callback=_token,
        envvar="RECEIVER_TOKEN_FILE",
        show_envvar=True,
        help="The file that holds the API token; `-` reads standard input.",
    )
    @wraps(command)
    def invoke(url: str, token: str | None, **arguments: object) -> None:
        if token is None:
            what = "--token-file is missing (or RECEIVER_TOKEN_FILE)"
            raise click.UsageError(f"{what}: `receiver tokens create` makes a token")
        with Client(url, token) as client:
            command(client=client, **arguments)

    return invoke


def duration(option: str, text: str) -> int:
    """Read a duration that was typed; return ms. Raises click.UsageError."""
    try:
        return duration_ms(text)
    except ValueError as error:
        raise click.UsageError(f"{option} {plain(text)}: {error}") from None
