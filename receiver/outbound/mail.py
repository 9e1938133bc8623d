"""Mails over SMTP: TLS wherever the server offers it, and always before a password."""

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from urllib.parse import SplitResult, unquote, urlsplit

from receiver.lib.safe_http import MAX_ANSWER_BYTES
from receiver.openconnectors.shapes import is_loopback
from receiver.outbound.queue import Attempt
from receiver.settings import Settings

TIMEOUT_SECONDS = 10
_PERMANENT = 500  # SMTP codes from here on: the server will not take it later either


class Mailer:
    """Hands mails over to the server that the settings name, one recipient each."""

    def __init__(self, settings: Settings) -> None:
        self._url = urlsplit(settings.smtp_url or "")
        self._password = settings.smtp_password
        self._sender = settings.alarm_mail_from or next(iter(settings.alarm_mail_to), "")

    def send(self, recipient: str, mail: bytes) -> Attempt:
        """Send a mail, headers and all."""
        if not self._url.hostname:
            return Attempt(delivered=False, error="RECEIVER_SMTP_URL is not set", final=True)
        try:
            with _connected(self._url, self._password) as server:
                server.sendmail(self._sender, [recipient], mail)
        except smtplib.SMTPRecipientsRefused as error:
            ((code, said),) = error.recipients.values()
            return _refused(code, said, final=code >= _PERMANENT)
        except smtplib.SMTPResponseException as error:
            return _refused(error.smtp_code, error.smtp_error)
        except (OSError, ValueError) as error:
            return Attempt(delivered=False, error=f"the mail server failed: {error}"[:200])
        return Attempt(delivered=True, status=250)


def _refused(code: int, said: bytes | str, *, final: bool = False) -> Attempt:
    answer = said if isinstance(said, bytes) else said.encode()
    return Attempt(delivered=False, status=code, answer=answer[:MAX_ANSWER_BYTES], final=final)


@contextmanager
def _connected(url: SplitResult, password: str | None) -> Iterator[smtplib.SMTP]:
    host, context = url.hostname or "", ssl.create_default_context()
    tls = partial(smtplib.SMTP_SSL, context=context)
    connect = tls if url.scheme == "smtps" else smtplib.SMTP
    with connect(host, url.port or 0, timeout=TIMEOUT_SECONDS) as server:  # 0: its usual port
        if url.scheme == "smtp":
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=context)
            elif password and not is_loopback(host):
                raise smtplib.SMTPNotSupportedError("it has no STARTTLS, so it gets no password")
        if password:
            server.login(unquote(url.username or ""), password)
        yield server
