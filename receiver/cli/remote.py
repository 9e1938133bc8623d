"""Asking a running receiver, and the secrets that this takes.

Secrets are given as files, never as arguments, which every user of a machine can see.
"""

import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, TypeAlias, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

import click
import httpx

from receiver.cli.output import CREDENTIALS, UNREACHABLE, USAGE, Failure, plain
from receiver.lib.http_client import new_client
from receiver.settings import secret_from_file

T = TypeVar("T")
Parameter: TypeAlias = str | int | Sequence[str] | None


class RequestOptions(TypedDict, total=False):
    """What httpx sends with a request."""

    params: Mapping[str, Any]
    json: object
    files: Any
    timeout: float | None


_REJECTED = {401: CREDENTIALS, 403: CREDENTIALS, 404: USAGE, 400: USAGE, 406: USAGE, 409: USAGE}

TIMEOUT_SECONDS = 10
_API = "/api/v1"

secret_file = click.Path(dir_okay=False, allow_dash=True)


def secret(path: str | None) -> bytes | None:
    """Return a secret's file, less one final line end; `-` is standard input.

    Raises OSError if it cannot be read.
    """
    return None if path is None else secret_from_file("/dev/stdin" if path == "-" else path)


class Remote:
    """A receiver's API. url -- its base. token -- None for what needs none."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url, self._token = url, token
        base, _, rest = url.partition(_API)
        if not url.startswith(("http://", "https://")):
            raise click.UsageError(f"--url {url}: must be http or https")
        if rest.strip("/") == "" and base != url:
            raise click.UsageError(f"--url {url}: leave {_API} out, {base} is enough")
        try:
            is_url = bool(httpx.URL(url) and urlsplit(url).hostname)
        except (httpx.InvalidURL, ValueError):
            is_url = False
        if not is_url:
            raise click.UsageError(f"--url {url}: is not a URL")
        self._client = new_client(base_url=url, timeout=TIMEOUT_SECONDS)

    def get(self, path: str, *, hold: float = 0, **parameters: Parameter) -> httpx.Response:
        """Ask the API; raise a Failure for an answer other than 2xx and 404.

        hold -- seconds the receiver may hold its answer back.
        """
        return self._ask("GET", path, TIMEOUT_SECONDS + hold, parameters)

    def post(self, path: str, **parameters: Parameter) -> httpx.Response:
        """Have the API do something, however long it takes: to ask again would do it twice."""
        return self._ask("POST", path, None, parameters)

    def page(self, path: str, name: str, **parameters: Parameter) -> dict[str, Any]:
        """Ask for a list called `name`."""
        answer = self._ask("GET", path, TIMEOUT_SECONDS, parameters)
        if answer.status_code == 404 and "/jobs/" not in path:
            raise _not_a_receiver(answer)
        return checked(answer, name)

    def vendor(
        self, method: str, path: str, instance: str, **request: Unpack[RequestOptions]
    ) -> httpx.Response:
        """Send a request to one of the vendor's own paths, as a client of the vendor would."""
        authorization = f"Element {instance}, User {self._token}"
        answer = self._send(method, f"/elements/api-v2{path}", authorization, **request)
        if answer.status_code == 404:
            raise Failure(USAGE, *_problem(answer))
        return answer

    def save(
        self, path: str, file: IO[bytes], on_progress: Callable[[int], None], **parameters: str
    ) -> None:
        """Write what the API answers to a file, piece by piece; raise a Failure if it does not."""
        try:
            with self._client.stream(
                "GET",
                f"{_API}{path}",
                params=parameters,
                headers={"Authorization": f"Bearer {self._token}"},
                timeout=60,
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise Failure(_REJECTED.get(answer.status_code, UNREACHABLE), *_problem(answer))
                for piece in answer.iter_bytes():
                    file.write(piece)
                    on_progress(len(piece))
        except httpx.HTTPError as error:
            raise unreachable(self._url, error) from None

    def _ask(
        self, method: str, path: str, timeout: float | None, parameters: Mapping[str, Parameter]
    ) -> httpx.Response:
        named = {name: value for name, value in parameters.items() if value not in (None, ())}
        authorization = f"Bearer {self._token}"
        return self._send(method, f"{_API}{path}", authorization, params=named, timeout=timeout)

    def _send(
        self, method: str, path: str, authorization: str, **request: Unpack[RequestOptions]
    ) -> httpx.Response:
        headers = {"Authorization": authorization}
        try:
            answer = self._client.request(method, path, headers=headers, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(self._url, error) from None
        if answer.status_code in (401, 403):
            raise Failure(CREDENTIALS, *_problem(answer))
        if answer.status_code >= 500:
            raise Failure(UNREACHABLE, *_problem(answer))
        if not answer.is_success and answer.status_code != 404:
            raise Failure(USAGE, *_problem(answer))
        return answer


def checked(answer: httpx.Response, *names: str) -> dict[str, Any]:
    """Return a JSON object that has those names; raise a Failure for what no receiver answers."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not answer.is_success or not isinstance(content, dict) or set(names) - set(content):
        raise Failure(UNREACHABLE, *_problem(answer))
    return content


def unreachable(url: str, error: Exception) -> Failure:
    """Return the failure for a request that got no answer: why, in the system's own words."""
    text = f"no answer from {url}: {why(error)}; is the receiver running there?"
    return Failure(UNREACHABLE, "unreachable", text)


def why(error: BaseException) -> str:
    """Say why a request failed: neither a class name, nor an error number, nor a line of C."""
    if isinstance(error, httpx.TimeoutException):
        return "it took too long"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate cannot be verified: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "TLS failed; is it http instead of https?"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return str(error).rstrip(".") or "the connection broke"


def _problem(answer: httpx.Response) -> tuple[str, str]:
    try:
        problem = answer.json()
        if "message" in problem:  # the vendor's shape
            return f"http_{answer.status_code}", plain(problem["message"])
        return str(problem["code"]), plain(f"{problem['title']}: {problem['detail']}")
    except (ValueError, KeyError, TypeError):
        failure = _not_a_receiver(answer)
        return failure.code, failure.message


def _not_a_receiver(answer: httpx.Response) -> Failure:
    text = f"{answer.url.host} answered {answer.status_code}, not as a receiver: check --url"
    return Failure(UNREACHABLE, "not_a_receiver", text)


def asks_a_receiver(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--url` and `--token-file`, and a Remote as its argument `remote`."""

    def invoke(url: str, token_file: str | None, **arguments: object) -> T:
        if token_file is None:
            raise click.UsageError(
                "--token-file is missing (or RECEIVER_TOKEN_FILE): `receiver tokens create` makes a"
                " token"
            )
        return command(remote=Remote(url, _token(token_file)), **arguments)

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
    token = (secret(path) or b"").decode("ascii", "backslashreplace").strip()
    if not token:
        raise click.UsageError(f"--token-file {path}: the file is empty")
    if not token.isprintable() or "\\" in token:
        raise click.UsageError(f"--token-file {path}: there is no token in it")
    return token
