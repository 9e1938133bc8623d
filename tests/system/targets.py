"""Those who are told of alarms: an HTTP receiver and an SMTP server, both real, on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from answering import answering, lower_headers, read_body, reply


@dataclass
class Hook:
    """What was posted, and with which statuses to answer (the last goes on)."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [204])
    posted: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@contextmanager
def hook(port: int = 0) -> Iterator[Hook]:
    """An HTTP server that takes webhooks. port -- 0 is any."""
    kept = Hook()

    def take(request: BaseHTTPRequestHandler) -> None:
        kept.posted.append((lower_headers(request), read_body(request)))
        reply(request, kept.statuses[0] if len(kept.statuses) == 1 else kept.statuses.pop(0))

    with answering(take, port) as url:
        kept.url = f"{url}/hook"
        yield kept


class _Controller(Controller):
    """One on any free port."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@dataclass
class Post:
    """What was mailed, and as whom the sender had logged in."""

    url: str = ""
    mails: list[Any] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    answer: str = "250 taken"
    answers: dict[str, str] = field(default_factory=dict)  # to some recipients


@contextmanager
def post_office(user: str | None = None) -> Iterator[Post]:
    """An SMTP server; user -- may log in, without TLS."""
    kept = Post()

    class Taker:
        async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
            self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
        ) -> str:
            envelope.rcpt_tos.append(address)
            return kept.answers.get(address, "250 OK")

        async def handle_DATA(  # noqa: N802 - aiosmtpd's name
            self, _server: Any, _session: Any, envelope: Any
        ) -> str:
            if kept.answer.startswith("250"):
                kept.mails.append(message_from_bytes(envelope.content, policy=policy.default))
            return kept.answer

    def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, login: Any) -> Any:
        assert isinstance(login, LoginPassword)
        kept.logins.append((login.login, login.password))
        return AuthResult(success=True)

    options = {"auth_require_tls": False, "authenticator": check}
    controller = _Controller(Taker(), hostname="127.0.0.1", port=0, **(options if user else {}))
    controller.start()
    port = controller.port
    kept.url = f"smtp://{f'{user}@' if user else ''}127.0.0.1:{port}"
    yield kept
    controller.stop()
