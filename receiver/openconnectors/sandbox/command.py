"""`receiver sandbox`, and serving it over HTTP."""

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, get_args

import click
import msgspec
from werkzeug.serving import WSGIRequestHandler, make_server

from receiver.errors import CredentialError
from receiver.openconnectors.sandbox.app import create_sandbox
from receiver.openconnectors.sandbox.deliveries import is_callback_url
from receiver.openconnectors.sandbox.faults import Faults, Options, signature_key
from receiver.openconnectors.sandbox.stage import Stage
from receiver.openconnectors.shapes import BASE, Shape
from receiver.openconnectors.signatures import SignatureKey

_POLL_SECONDS = 0.05  # until it sees that it shall stop
_SECONDS = click.FloatRange(min=0, max=86_400)


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
        server = make_server(
            options.host, options.port, app, threaded=True, request_handler=_Connection
        )
        thread = Thread(
            target=server.serve_forever, args=(_POLL_SECONDS,), name="sandbox-server", daemon=True
        )
        thread.start()
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{server.port}"
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


def _faults(_context: click.Context, _option: click.Parameter, value: str) -> Faults:
    try:
        return msgspec.json.decode(value, type=Faults)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise click.BadParameter(str(error)) from error


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
    "--shape",
    type=click.Choice(get_args(Shape)),
    default="v2",
    show_default=True,
    help="Shape of what is said of jobs; `document` is the OpenAPI document's, without an id.",
)
@click.option("--total-counts", is_flag=True, help="Count failed records as loaded too.")
@click.option("--callback-url", callback=_url, help="For jobs whose request names none.")
@click.option("--allow-remote", is_flag=True, help="Send callbacks to other hosts too.")
@click.option(
    "--faults",
    default="{}",
    metavar="JSON",
    callback=_faults,
    help='In force from the start, such as \'{"drop_callbacks": true, "html": 2}\'.',
)
def command(
    *,
    bind: tuple[str, int],
    signature_key_file: SignatureKey | None,
    first_job: int,
    job_seconds: float,
    retry_seconds: float,
    shape: Shape,
    total_counts: bool,
    callback_url: str | None,
    allow_remote: bool,
    faults: Faults,
) -> None:
    """Simulate the vendor's bulk API on a local port; any token and secret is taken.

    While it runs, `curl -T KEY-FILE http://HOST:PORT/sandbox/signature-key` gives it another key to
    sign with. `curl -X PUT -d '{"drop_callbacks": true}' http://HOST:PORT/sandbox/faults` puts
    those faults in the place of all others, `{}` ends them. GET shows them; /sandbox/requests and
    /sandbox/deliveries show what was requested and which callbacks were sent.

    Faults: drop_callbacks, reorder_callbacks, overtake (true); delay_callbacks, slow (seconds);
    duplicate_callbacks (copies); html, die_in_upload, die_after_upload (times); answer ({"status",
    "times", "retry_after"}); redirect ({"to", "times"}); final_status.
    """
    serve(
        Options(
            host=bind[0],
            port=bind[1],
            first_job=first_job,
            signature_key=signature_key_file,
            job_seconds=job_seconds,
            retry_seconds=retry_seconds,
            shape=shape,
            total_counts=total_counts,
            callback_url=callback_url,
            allow_remote=allow_remote,
            faults=faults,
        )
    )


COMMANDS = (command,)
