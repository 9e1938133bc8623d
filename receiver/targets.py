"""How the settings name those who are told of alarms."""

import re
from base64 import b64decode
from urllib.parse import urlsplit

_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")


def url(text: str) -> str:
    """Read where alarms are posted to. Raises ValueError."""
    try:
        parts = urlsplit(text)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right or not text.isascii() or not text.isprintable() or " " in text or "@" in text:
        raise ValueError("must be a URL like https://alarms.example.com/hook, without user")
    return text


def secret(text: str) -> bytes:
    """Read a secret of Standard Webhooks as the key that it is. Raises ValueError."""
    try:
        key = b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:  # noqa: PLR2004
        raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes")
    return key


def addresses(text: str) -> tuple[str, ...]:
    """Read whom to write to. Raises ValueError."""
    found = tuple(text.replace(",", " ").split())
    if not found or not all(map(_ADDRESS.fullmatch, found)):
        raise ValueError("must be e-mail addresses separated by spaces")
    return found


def address(text: str) -> str:
    """Read who writes. Raises ValueError."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError("must be an e-mail address")
    return text


def smtp_url(text: str) -> str:
    """Read through which server to write. Raises ValueError."""
    try:
        parts = urlsplit(text)
        right = parts.scheme in ("smtp", "smtps") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    plain = text.isascii() and text.isprintable() and " " not in text
    if not right or not plain or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must be like smtp://user@mail.example.com:587, or smtps://")
    if parts.password is not None:
        raise ValueError("must not hold the password: that is RECEIVER_SMTP_PASSWORD_FILE's")
    return text
