"""`receiver sandbox`."""

from pathlib import Path
from typing import get_args

import click
import msgspec

from receiver.errors import CredentialError
from receiver.openconnectors.sandbox.deliveries import is_callback_url
from receiver.openconnectors.sandbox.options import (
    Answer,
    Faults,
    Options,
    Redirect,
    Shape,
    signature_key,
)
from receiver.openconnectors.sandbox.server import serve
from receiver.openconnectors.signatures import SignatureKey

_ENDINGS = ("ERROR", "ABORTED", "CANCELLED")
_SECONDS = click.FloatRange(min=0, max=86_400)
_TIMES = click.IntRange(min=0)


def _address(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise click.BadParameter("must be HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _key(
    _context: click.Context, _option: click.Parameter, value: Path | None
) -> SignatureKey | None:
    if value is None:
        return None
    try:
        return signature_key(value.read_bytes())
    except CredentialError as error:
        raise click.BadParameter(str(error)) from error


def _url(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_callback_url(value):
        raise click.BadParameter("must be an http or https URL")
    return value


@click.command("sandbox")
@click.option(
    "--bind",
    default="127.0.0.1:9000",
    show_default=True,
    metavar="HOST:PORT",
    callback=_address,
    help="Where to listen; port 0 takes a free one.",
)
@click.option(
    "--signature-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_key,
    help="Sign callbacks with the key in this file; one final line end is dropped.",
)
@click.option(
    "--first-job",
    type=click.IntRange(1, 10**15),
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
    "--retries",
    type=click.IntRange(0, 9),
    default=5,
    show_default=True,
    help="Of each callback.",
)
@click.option(
    "--shape",
    type=click.Choice(get_args(Shape)),
    default="v2",
    show_default=True,
    help="Of bodies.",
)
@click.option("--callback-url", callback=_url, help="For jobs whose request names none.")
@click.option("--progress", is_flag=True, help="Notify STARTED and RUNNING too.")
@click.option("--allow-remote", is_flag=True, help="Send callbacks to other hosts too.")
@click.option("--drop-callbacks", is_flag=True, help="Fault: send none.")
@click.option("--delay-callbacks", type=_SECONDS, default=0.0, help="Fault: send them late.")
@click.option(
    "--duplicate-callbacks", type=click.IntRange(0, 100), default=0, help="Fault: copies."
)
@click.option("--reorder-callbacks", is_flag=True, help="Fault: hold and shuffle them.")
@click.option("--answer", type=(int, _TIMES), metavar="STATUS TIMES", help="Fault: API errors.")
@click.option("--die-in-upload", type=_TIMES, default=0, help="Fault: cut uploads off, no job.")
@click.option("--die-after-upload", type=_TIMES, default=0, help="Fault: a job, but no answer.")
@click.option("--overtake", is_flag=True, help="Fault: send callbacks before the answer.")
@click.option("--slow", type=_SECONDS, default=0.0, help="Fault: seconds before API answers.")
@click.option("--html", type=_TIMES, default=0, help="Fault: answers of HTML.")
@click.option("--redirect", type=(str, _TIMES), metavar="URL TIMES", help="Fault: redirects.")
@click.option("--final-status", type=click.Choice(_ENDINGS), help="Fault: how jobs end.")
def command(
    *,
    bind: tuple[str, int],
    signature_key_file: SignatureKey | None,
    first_job: int,
    job_seconds: float,
    retry_seconds: float,
    retries: int,
    shape: Shape,
    callback_url: str | None,
    progress: bool,
    allow_remote: bool,
    answer: tuple[int, int] | None,
    redirect: tuple[str, int] | None,
    **faults: object,
) -> None:
    """Stand in for the vendor's bulk API on a local port; any token and secret is taken.

    While it runs, `curl -T KEY-FILE http://HOST:PORT/sandbox/signature-key` gives it another key to
    sign with, and PUT /sandbox/faults other faults.
    """
    faults["answer"] = Answer(*answer) if answer else None
    faults["redirect"] = Redirect(*redirect) if redirect else None
    try:
        checked = msgspec.json.decode(msgspec.json.encode(faults), type=Faults)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from error
    serve(
        Options(
            host=bind[0],
            port=bind[1],
            first_job=first_job,
            signature_key=signature_key_file,
            job_seconds=job_seconds,
            retry_seconds=retry_seconds,
            retries=retries,
            shape=shape,
            callback_url=callback_url,
            progress=progress,
            allow_remote=allow_remote,
            faults=checked,
        )
    )


COMMANDS = (command,)
