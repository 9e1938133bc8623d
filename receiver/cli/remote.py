"""Asking a running receiver."""

from collections.abc import Callable
from typing import IO, Any, TypeVar

import click
import httpx

from receiver.cli.exits import CREDENTIALS, UNREACHABLE, USAGE, Failure
from receiver.cli.secret_files import secret, secret_file
from receiver.lib.http_client import new_client

T = TypeVar("T")

_REFUSED = {401: CREDENTIALS, 403: CREDENTIALS, 404: USAGE, 400: USAGE, 406: USAGE, 409: USAGE}

TIMEOUT_SECONDS = 10


class Remote:
    """A receiver's API. url -- its base. token -- None for what needs none."""

    def __init__(self, url: str, token: str | None) -> None:
        self._token = token
        if not url.startswith(("http://", "https://")):
            raise click.UsageError("--url must be http or https")
        try:
            httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise click.UsageError("--url is not a URL") from None
        self._client = new_client(base_url=url, timeout=TIMEOUT_SECONDS)

    def get(self, path: str, *, patience: float = 0, **parameters: Any) -> httpx.Response:  # noqa: ANN401
        """Ask the API; raise a Failure for an answer other than 2xx and 404.

        patience -- seconds the receiver may hold its answer back.
        """
        given = {name: value for name, value in parameters.items() if value not in (None, ())}
        authorization = {"Authorization": f"Bearer {self._token}"}
        timeout = TIMEOUT_SECONDS + patience
        return self._send(
            "GET", f"/api/v1{path}", headers=authorization, params=given, timeout=timeout
        )

    def post(self, path: str, **parameters: Any) -> httpx.Response:  # noqa: ANN401
        """Have the API do something; as `get`."""
        given = {name: value for name, value in parameters.items() if value not in (None, ())}
        authorization = {"Authorization": f"Bearer {self._token}"}
        # As long as it takes: to ask again while it goes on would only do it twice.
        return self._send(
            "POST", f"/api/v1{path}", headers=authorization, params=given, timeout=None
        )

    def page(self, path: str, name: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        """Ask for a list called `name`."""
        return checked(self.get(path, **parameters), name)

    def vendor(self, method: str, path: str, instance: str, **request: Any) -> httpx.Response:  # noqa: ANN401
        """Send a request to one of the vendor's own paths, as a client of the vendor would."""
        headers = {"Authorization": f"Element {instance}, User {self._token}"}
        answer = self._send(method, f"/elements/api-v2{path}", headers=headers, **request)
        if answer.status_code == 404:  # noqa: PLR2004
            raise Failure(USAGE, *_problem(answer))
        return answer

    def save(
        self, path: str, file: IO[bytes], tell_of: Callable[[int], None], **parameters: str
    ) -> None:
        """Write what the API answers to a file, piece by piece; raise a Failure if it does not."""
        try:
            with self._client.stream(
                "GET",
                f"/api/v1{path}",
                params=parameters,
                headers={"Authorization": f"Bearer {self._token}"},
                timeout=60,
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise Failure(_REFUSED.get(answer.status_code, UNREACHABLE), *_problem(answer))
                for piece in answer.iter_bytes():
                    file.write(piece)
                    tell_of(len(piece))
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            message = f"no answer, or half of one: {reason}"
            raise Failure(UNREACHABLE, "unreachable", message) from None

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401
        try:
            answer = self._client.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise Failure(UNREACHABLE, "unreachable", f"no answer: {reason}") from None
        if answer.status_code in (401, 403):
            raise Failure(CREDENTIALS, *_problem(answer))
        if answer.status_code >= 500:  # noqa: PLR2004
            raise Failure(UNREACHABLE, *_problem(answer))
        if not answer.is_success and answer.status_code != 404:  # noqa: PLR2004
            raise Failure(USAGE, *_problem(answer))
        return answer


def checked(answer: httpx.Response, *names: str) -> dict[str, Any]:
    """Give a JSON object that has those names; raise a Failure for what no receiver answers."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not answer.is_success or not isinstance(content, dict) or set(names) - set(content):
        raise Failure(UNREACHABLE, *_problem(answer))
    return content


def _problem(answer: httpx.Response) -> tuple[str, str]:
    try:
        problem = answer.json()
        if "message" in problem:  # the vendor's shape
            return f"http_{answer.status_code}", str(problem["message"])
        return str(problem["code"]), f"{problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return (
            "not_a_receiver",
            f"{answer.url.host} answered {answer.status_code}, not as a receiver",
        )


def asks_a_receiver(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command `--url` and `--token-file`, and a Remote as its argument `remote`."""

    def invoke(url: str, token_file: str | None, **arguments: Any) -> T:  # noqa: ANN401
        if token_file is None:
            raise click.UsageError("--token-file is needed (or RECEIVER_TOKEN_FILE)")
        token = (secret(token_file) or b"").decode("ascii", "replace").strip()
        if not token.isascii() or not token.isprintable():
            raise click.UsageError("--token-file does not hold a token")
        return command(remote=Remote(url, token), **arguments)

    invoke.__doc__, invoke.__name__ = command.__doc__, command.__name__
    invoke.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    with_token = click.option(
        "--token-file", type=secret_file, envvar="RECEIVER_TOKEN_FILE", help="`-`: standard input."
    )(invoke)
    return click.option(
        "--url", envvar="RECEIVER_URL", default="http://127.0.0.1:8000", show_default=True
    )(with_token)
