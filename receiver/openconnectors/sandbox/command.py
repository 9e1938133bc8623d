"""`receiver sandbox`, and serving it over HTTP."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar, get_args

import click
import msgspec
from werkzeug.serving import WSGIRequestHandler, make_server

from receiver.errors import CredentialError
from receiver.openconnectors.sandbox.app import create_sandbox
from receiver.openconnectors.sandbox.deliveries import read_callback_url
from receiver.openconnectors.sandbox.faults import Faults, Options, signature_key
from receiver.openconnectors.sandbox.stage import Stage
from receiver.openconnectors.shapes import BASE, Shape

_POLL_SECONDS = 0.05  # until it sees that it shall stop
_SECONDS = click.FloatRange(min=0, max=86_400)

_FAULTS = "\n\n".join(f"\b\n{text}" for text in (getdoc(Faults) or "").split("\n\n"))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Running:
    """A sandbox that listens.

    url -- its root, without a slash at the end.
    api -- the vendor's base URL.
    """

    url: str
    api: str
    stage: Stage


class _Connection(WSGIRequestHandler):
    error_message_format = '{"requestId": "0", "message": "this is no HTTP request"}'
    error_content_type = "application/json"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: `GET /sandbox/requests` shows what was requested."""

    def connection_dropped(
        self, error: BaseException, environ: dict[str, Any] | None = None
    ) -> None:
        """Close the connection that a fault cut off: else the server waits for another request."""
        del error, environ
        self.close_connection = True


@contextmanager
def running(options: Options) -> Iterator[Running]:
    """Serve a sandbox from threads of this process until the block is left."""
    app = create_sandbox(options)
    stage: Stage = app.extensions["sandbox"]
    with closing(stage):
        host, port = options.bind
        server = make_server(host, port, app, threaded=True, request_handler=_Connection)
        thread = Thread(
            target=server.serve_forever, args=(_POLL_SECONDS,), name="sandbox-server", daemon=True
        )
        thread.start()
        url = f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
        try:
            yield Running(url, url + BASE, stage)
        finally:
            stage.closing.set()
            server.shutdown()
            thread.join()
            server.server_close()


def serve(options: Options) -> None:
    """Serve a sandbox until SIGTERM or SIGINT; write its base URL to standard error."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with running(options) as sandbox:
        click.echo(f"sandbox listening on {sandbox.api}", err=True)
        stop.wait()


def _read(convert: Callable[[str], T]) -> Callable[..., T | None]:
    """Have an option's text read by a function that raises ValueError or CredentialError."""

    def callback(_context: click.Context, _option: click.Parameter, text: str | None) -> T | None:
        try:
            return None if text is None else convert(text)
        except (ValueError, RecursionError, CredentialError) as error:
            raise click.BadParameter(str(error)) from error

    return callback


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError("must be HOST:PORT")
    address = host.removeprefix("[").removesuffix("]"), int(port)
    try:  # werkzeug's server would end the process with a paragraph of its own
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = (error.strerror or "it cannot be used").lower()
        raise ValueError(f"{text}: {reason}; choose another one") from None
    return address


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
    callback=_read(_address),
    help="Where to listen; port 0 takes a free one.",
)
@click.option(
    "--signature-key-file",
    "signature_key",
    type=click.Path(exists=True, dir_okay=False),
    callback=_read(lambda path: signature_key(Path(path).read_bytes())),
    help="Sign callbacks with the key in this file; one final line end is dropped.",
)
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
@click.option("--callback-url", callback=_read(read_callback_url), help="Where no other is named.")
@click.option("--allow-remote", is_flag=True, help="Send callbacks to other hosts too.")
@click.option(
    "--faults",
    default="{}",
    metavar="JSON",
    callback=_read(_faults),
    help='In force from the start, such as \'{"drop_callbacks": true, "html": 2}\'.',
)
@click.pass_context
def sandbox(context: click.Context, /, **_options: object) -> None:
    """Simulate the vendor's bulk API on a local port; any token and secret is taken.

    While it runs, `curl -T KEY-FILE http://HOST:PORT/sandbox/signature-key` gives it another key to
    sign with. `curl -X PUT -d '{"drop_callbacks": true}' http://HOST:PORT/sandbox/faults` puts
    those faults in the place of all others, `{}` ends them. GET shows them; /sandbox/requests and
    /sandbox/deliveries show what was requested and which callbacks were sent.
    """
    serve(Options(**context.params))  # each option is a field there
