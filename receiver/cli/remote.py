"""Asking a running receiver, and the secrets that this takes.

Secrets are given as files, never as arguments, which every user of a machine can see.
"""

import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
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
        check_url(url)
        self._url, self._token = url, token
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
        """Ask for a list called `name`; raise a Failure if it is of no instance that exists."""
        answer = self._ask("GET", path, TIMEOUT_SECONDS, parameters)
        if answer.status_code == 404 and "/jobs/" not in path:
            raise _not_a_receiver(answer)
        found = checked(answer, name)
        named = parameters.get("instance")
        if not found[name] and isinstance(named, tuple):
            self.require_instances(named)
        return found

    def require_instances(self, named: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return all instances by name; raise a Failure if one of those named is not there."""
        listed = checked(self.get("/instances"), "instances")["instances"]
        instances = {instance["name"]: instance for instance in listed}
        for name in named:
            if name not in instances:
                raise no_instance(name, instances)
        return instances

    def vendor(
        self, method: str, path: str, instance: str, **request: Unpack[RequestOptions]
    ) -> httpx.Response:
        """Send a request to one of the vendor's own paths, as a client of the vendor would."""
        authorization = f"Element {instance}, User {self._token}"
        answer = self._send(method, f"/elements/api-v2{path}", authorization, **request)
        if answer.status_code in (401, 403):
            raise self._refusal(instance, answer)
        if not answer.is_success:
            raise _failure(answer)
        return answer

    def _refusal(self, instance: str, answer: httpx.Response) -> Failure:
        """Say whose credentials are at fault: the token's, or those the vendor is asked with."""
        code, text = _problem(answer)
        if "X-Receiver-Source" not in answer.headers:
            return Failure(UNREACHABLE, code, f"the vendor answered {answer.status_code}: {text}")
        found = self.require_instances([instance])[instance]
        if answer.status_code == 401 and not found["vendor_secrets"]:
            remedy = f"`receiver instances set {instance}` with --element-token-file and"
            text = f"{instance} has no vendor secrets: {remedy} --user-secret-file adds them"
            return Failure(USAGE, "no_vendor_secrets", text)
        return Failure(CREDENTIALS, code, text)

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
                    raise _failure(answer)
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
        path = f"{_API}{path}"
        answer = self._send(method, path, authorization, params=named, timeout=timeout)
        if not answer.is_success and answer.status_code != 404:
            raise _failure(answer)
        return answer

    def _send(
        self, method: str, path: str, authorization: str, **request: Unpack[RequestOptions]
    ) -> httpx.Response:
        headers = {"Authorization": authorization}
        try:
            return self._client.request(method, path, headers=headers, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(self._url, error) from None


def check_url(url: str) -> None:
    """Raise click.UsageError if that cannot be a receiver's base URL."""
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


def no_instance(name: str, instances: Iterable[str]) -> Failure:
    """Return the failure for an instance that does not exist; it names those that do."""
    there = ", ".join(sorted(instances)) or "none yet"
    text = f"there is no instance {plain(name)}; the instances are: {there}"
    return Failure(USAGE, "no_instance", text)


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


def _failure(answer: httpx.Response) -> Failure:
    if answer.status_code in (401, 403):
        return Failure(CREDENTIALS, *_problem(answer))
    return Failure(USAGE if answer.is_client_error else UNREACHABLE, *_problem(answer))


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
