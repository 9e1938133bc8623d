"""What is told of alarms, and how it is sent: a webhook as Standard Webhooks has it, and e-mail."""

import hmac
import json
import smtplib
import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import httpx

from receiver.alarms.store import Told
from receiver.database.alarm_models import Alarm
from receiver.errors import BadParameter
from receiver.lib.clock import iso
from receiver.outbound.forwarding import Forwarder
from receiver.settings import Settings, is_loopback

MOST_TOLD = 25  # alarms of each sort in one notice; how many more there are is told
LONGEST_EXAMPLE = 80  # characters
TIMEOUT_SECONDS = 15

# What is wrong, and what it means that it is over.
TITLES: Mapping[str, tuple[str, str]] = {
    "silent": ("no callbacks come", "a callback came, or no job is under way"),
    "overdue": ("jobs are overdue", "no job is overdue"),
    "refused": ("signatures are wrong", "no signature was wrong for an hour"),
    "unreadable": ("an event cannot be read", "no unreadable event came for an hour"),
    "failing": ("our own answers fail", "callbacks are taken again"),
    "expiring": ("files will expire unfetched", "what was left is fetched, or has expired"),
    "failed": ("jobs failed or lost records", "no job failed for an hour"),
}


@dataclass(frozen=True, slots=True)
class Message:
    """A notice as it is sent. id -- the same at each try. body -- JSON of `content`."""

    id: str
    body: str


class Target(Protocol):
    """Someone who is told of alarms."""

    name: str

    def send(self, message: Message, now: int) -> tuple[bool, str]:
        """Send; give whether it was taken, and what came of it in a few words."""


def content(told: Told, at: int, receiver: str | None) -> dict[str, Any]:
    """Write a notice. receiver -- our public URL, by which the reader knows who speaks."""
    left_out = sum(max(0, len(some) - MOST_TOLD) for some in (told.raised, told.cleared))
    return {
        "type": "alarms.changed",
        "timestamp": iso(at),
        "data": {
            "receiver": receiver,
            "raised": [_shown(alarm) for alarm in told.raised[:MOST_TOLD]],
            "cleared": [_shown(alarm) for alarm in told.cleared[:MOST_TOLD]],
            "left_out": left_out,
            "open": told.open,
        },
    }


def targets(settings: Settings, forwarder: Forwarder) -> list[Target]:
    """Give who is to be told, as the settings have it."""
    found: list[Target] = []
    if settings.alarm_url and settings.alarm_secret:
        found.append(Webhook(settings.alarm_url, settings.alarm_secret, forwarder))
    if settings.alarm_mail_to and settings.smtp_url:
        found.append(
            Mail(
                settings.smtp_url,
                settings.smtp_password,
                settings.alarm_mail_from or settings.alarm_mail_to[0],
                settings.alarm_mail_to,
            )
        )
    return found


class Webhook:
    """Posts, signed, to an https URL at a public address; what is private must be allowed."""

    name = "webhook"

    def __init__(self, url: str, secret: bytes, forwarder: Forwarder) -> None:
        self._url, self._secret, self._forwarder = url, secret, forwarder

    def send(self, message: Message, now: int) -> tuple[bool, str]:
        """Post; only a 2xx means that it was taken."""
        timestamp = str(now // 1000)
        signed = f"{message.id}.{timestamp}.{message.body}".encode()
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": timestamp,
            "webhook-signature": "v1," + _base64(hmac.digest(self._secret, signed, "sha256")),
        }
        try:
            status = self._forwarder.post(self._url, message.body.encode(), headers)
        except (BadParameter, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return False, type(error).__name__
        return 200 <= status < 300, str(status)  # noqa: PLR2004


class Mail:
    """Writes over SMTP. TLS wherever the server offers it, and before any password."""

    name = "mail"

    def __init__(self, url: str, password: str | None, sender: str, to: Sequence[str]) -> None:
        self._url, self._password = urlsplit(url), password
        self._sender, self._to = sender, to

    def send(self, message: Message, now: int) -> tuple[bool, str]:
        """Hand a message over to the server."""
        mail = EmailMessage()
        told = json.loads(message.body)
        mail["From"], mail["To"] = self._sender, ", ".join(self._to)
        mail["Subject"] = subject(told)
        mail["Date"] = formatdate(now / 1000)
        mail["Message-ID"] = f"<{message.id}@{self._sender.partition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text(told))
        try:
            with self._connected() as server:
                refused = server.send_message(mail)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            return False, type(error).__name__
        return True, f"{len(refused)} addresses refused" if refused else "sent"

    def _connected(self) -> smtplib.SMTP:
        host = self._url.hostname or ""
        context = ssl.create_default_context()
        if self._url.scheme == "smtps":
            port = self._url.port or smtplib.SMTP_SSL_PORT
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                host, port, timeout=TIMEOUT_SECONDS, context=context
            )
        else:
            server = smtplib.SMTP(host, self._url.port or 25, timeout=TIMEOUT_SECONDS)
        try:
            self._log_in(server, host, context)
        except BaseException:
            server.close()
            raise
        return server

    def _log_in(self, server: smtplib.SMTP, host: str, context: ssl.SSLContext) -> None:
        if self._url.scheme == "smtp":
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=context)
            elif self._password and not is_loopback(host):
                raise smtplib.SMTPNotSupportedError("no STARTTLS, so no password either")
        if self._password:
            server.login(unquote(self._url.username or ""), self._password)


def subject(told: Mapping[str, Any]) -> str:
    """Write a mail's subject."""
    raised, cleared = told["data"]["raised"], told["data"]["cleared"]
    parts = [f"{one['subject']}: {one['title']}" for one in raised[:2]]
    parts += [f"{one['subject']}: all clear" for one in cleared[: max(0, 2 - len(parts))]]
    left = len(raised) + len(cleared) + told["data"]["left_out"] - len(parts)
    return "[receiver] " + "; ".join(parts) + (f"; {left} more" if left else "")


def text(told: Mapping[str, Any]) -> str:
    """Write a mail's text."""
    content_ = told["data"]
    lines = [f"Told by the receiver {content_['receiver'] or ''}".rstrip(), ""]
    for alarm in content_["raised"]:
        lines.append(f"ALARM  {alarm['subject']}: {alarm['title']} ({alarm['count']})")
        lines.append(f"       {alarm['detail']}; since {alarm['raised_at']}")
        lines += [f"       - {example}" for example in alarm["examples"]]
    lines += [
        f"CLEAR  {alarm['subject']}: {alarm['title']};"
        f" from {alarm['raised_at']} to {alarm['cleared_at']}, {alarm['count']} at the most"
        for alarm in content_["cleared"]
    ]
    if content_["left_out"]:
        lines.append(f"       and {content_['left_out']} more")
    return "\n".join([*lines, "", f"{content_['open']} alarms are open: receiver alarms", ""])


def _shown(alarm: Alarm) -> dict[str, Any]:
    wrong, over = TITLES[alarm.kind]
    return {
        "kind": alarm.kind,
        "subject": _plain(alarm.subject),
        "title": wrong if alarm.cleared_at is None else over,
        "detail": _plain(alarm.detail),
        "count": alarm.count,
        "examples": [_plain(each)[:LONGEST_EXAMPLE] for each in json.loads(alarm.examples)],
        "raised_at": iso(alarm.raised_at),
        "last_seen_at": iso(alarm.last_seen_at),
        "cleared_at": iso(alarm.cleared_at),
    }


def _plain(words: str) -> str:
    """Write without what no header can hold, and what would steer a terminal."""
    return "".join(each if each.isprintable() else "\ufffd" for each in words)


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode("ascii")
