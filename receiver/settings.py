"""Every setting, read once from the environment and never changed.

A name is also read as `NAME_FILE`, the path of a file with the value. A setting that is wrong or
half set raises a SettingsError of one line.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from receiver.errors import CredentialError, SettingsError
from receiver.lib.files import read_file
from receiver.openconnectors.shapes import is_loopback
from receiver.openconnectors.signatures import SignatureKey, without_line_end

T = TypeVar("T")
D = TypeVar("D")

DEFAULT_INSTANCE = "default"
INSTANCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
FOREVER = 2**62
MAX_SECRET_BYTES = 2**16  # of a file with keys, a token or another setting
DEFAULT_OPEN_CONNECTORS_URL = "https://api.openconnectors.us2.ext.hana.ondemand.com/elements/api-v2"

_KEY = "EVENT_NOTIFICATION_SIGNATURE_KEY"
_PREVIOUS_KEY = f"{_KEY}_PREVIOUS"
# Read by the command line, which asks a running receiver.
_COMMAND_LINE = {"RECEIVER_URL", "RECEIVER_TOKEN_FILE"}
_PREFIXES = ("RECEIVER_", "OPEN_CONNECTORS_", "EVENT_NOTIFICATION_")
_KUBERNETES = re.compile(r"RECEIVER_(SERVICE_(HOST|PORT)|PORT(\Z|_[0-9]))")
_PORT = re.compile(":([0-9]+)(/|$)")
_SQLITE_FILE = re.compile("sqlite:///(?!:memory:|file:).", re.DOTALL)
_FERNET_KEY = re.compile("[A-Za-z0-9_-]{43}=")
_HOST = re.compile(r"[a-z0-9._:-]{1,253}")
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


# --- reading a value: functions of its text that raise ValueError


def duration_ms(text: str) -> int:
    """Read `90s`, `15m`, `12h` or `90d` as ms. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError("must be a whole number and s, m, h or d, like 15m")
    return int(match[1]) * _UNIT_MS[match[2]]


def duration_text(ms: int) -> str:
    """Write whole seconds as `duration_ms` reads them, in the largest unit that fits."""
    unit = next(unit for unit, length in reversed(_UNIT_MS.items()) if ms % length == 0)
    return f"{ms // _UNIT_MS[unit]}{unit}"


def _retention(text: str) -> int:
    try:
        return FOREVER if text == "forever" else duration_ms(text)
    except ValueError as error:
        raise ValueError(f"{error}, or `forever`") from None


def _database_url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    plain, question, _ = rest.partition("?")
    if separator and scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        port = _PORT.search(plain.rpartition("@")[2])
        if port and not 0 < int(port[1][:6]) < 2**16:
            raise ValueError("must name a port from 1 to 65535")
        return f"postgresql+psycopg://{rest}"
    if _SQLITE_FILE.match(text):
        if question:  # they would be ignored: what the URL says is to hold
            raise ValueError("must be sqlite:///PATH without parameters")
        return text
    raise ValueError("must be sqlite:///PATH or postgresql://USER@HOST/NAME")


def _words(text: str, is_word: Callable[[str], object], what: str) -> tuple[str, ...]:
    words = tuple(text.split())
    if not words or not all(map(is_word, words)):
        raise ValueError(f"must be {what} separated by spaces")
    return words


def _fernet_keys(text: str) -> tuple[str, ...]:
    # Not left to Fernet: it decodes leniently, and would take `K1,K2` for K1 alone.
    made = "each as `head -c 32 /dev/urandom | base64 | tr +/ -_` prints it,"
    return _words(text, _FERNET_KEY.fullmatch, f"Fernet keys, newest first, {made}")


def _hosts(text: str) -> frozenset[str]:
    return frozenset(_words(text.lower(), _HOST.fullmatch, "host names or addresses"))


def _mail_addresses(text: str) -> tuple[str, ...]:
    return _words(text.replace(",", " "), _ADDRESS.fullmatch, "e-mail addresses")


def _mail_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("must be an e-mail address")
    return text


def _split_url(text: str, *schemes: str) -> SplitResult | None:
    """Split a URL of printable ASCII; None if it is none, or of another scheme."""
    try:
        parts = urlsplit(text)
        right = parts.scheme in schemes and parts.hostname and parts.port != 0
    except ValueError:
        return None
    plain = text.isascii() and text.isprintable() and " " not in text
    return parts if right and plain else None


def _web_url(text: str) -> str:
    parts = _split_url(text, "http", "https")
    if parts is None or set(text) & set('?#\\"<>') or parts.username is not None:
        raise ValueError("must be a URL like https://hooks.example.com, without user or query")
    return text.rstrip("/")


def vendor_url(text: str) -> str:
    """Read the vendor's base URL: https, or http on a loopback address. Raises ValueError."""
    url = _web_url(text)
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("must be https, unless the host is this machine")
    if not url.endswith("/elements/api-v2"):
        raise ValueError("must end in /elements/api-v2")
    return url


def _alarm_url(text: str) -> str:
    if _split_url(text, "http", "https") is None or "@" in text:
        raise ValueError("must be a URL like https://alarms.example.com/hook, without user")
    return text


def _smtp_url(text: str) -> str:
    parts = _split_url(text, "smtp", "smtps")
    if parts is None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must be like smtp://user@mail.example.com:587, or smtps://")
    if parts.password is not None:
        raise ValueError("must not hold the password: that is RECEIVER_SMTP_PASSWORD_FILE's")
    return text


def _alarm_secret(text: str) -> bytes:
    try:
        key = b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes")
    return key


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("must be yes or no")
    return text == "yes"


def _integer(least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return convert


def _retry_seconds(text: str) -> tuple[int, ...]:
    if not re.fullmatch("[1-9][0-9]{0,8}( +[1-9][0-9]{0,8}){0,31}", text):
        raise ValueError("must be numbers of seconds separated by spaces")
    return tuple(map(int, text.split()))


def _rate(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})?", text) or not float(text):
        raise ValueError("must be a number of requests a second, above 0")
    return float(text)


# --- the settings


def _env(name: str, convert: Callable[[str], T], default: D, *, secret: bool = False) -> T | D:
    """A field of Settings that is read from a variable."""
    metadata = {"name": name, "convert": convert}
    return cast("T | D", field(default=default, repr=not secret, metadata=metadata))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator decided. Durations are in ms, sizes in bytes, `vendor_rate` in 1/s.

    default_keys -- signature keys of the instance `default`, newest first.
    encryption_keys -- Fernet keys, newest first.
    forward_allow -- hosts that clients may name in callback URLs of their own, though private.
    api_rate -- requests a minute that one token may make of one worker process.
    answer_within -- how long a sender waits for a commit at most: two nodes that a load balancer
    tries in turn must have answered in 10 s.
    keep_bodies, keep_events -- how long; FOREVER is longer than any time since the epoch.
    alarm_url -- where alarms are POSTed, signed with `alarm_secret` as Standard Webhooks has it.
    alarm_mail_to -- addresses that get alarms through `smtp_url`: smtp://user@host:587 (STARTTLS
    where it is offered, and always before a password) or smtps://.
    alarm_failing_percent -- of the vendor's schedule: how long our answers may fail unnoticed.
    log_requests -- whether each request is a line in the log.
    """

    database_url: str = _env(
        "RECEIVER_DATABASE_URL", _database_url, "sqlite:///receiver.db", secret=True
    )
    default_keys: tuple[SignatureKey, ...] = ()
    encryption_keys: tuple[str, ...] = _env(
        "RECEIVER_ENCRYPTION_KEYS", _fernet_keys, (), secret=True
    )
    public_url: str | None = _env("RECEIVER_PUBLIC_URL", _web_url, None)
    max_body_bytes: int = _env("RECEIVER_MAX_BODY_BYTES", _integer(1, 2**30), 2**20)
    max_upload_bytes: int = _env("RECEIVER_MAX_UPLOAD_BYTES", _integer(1, 2**40), 2**30)
    trusted_proxies: int = _env("RECEIVER_TRUSTED_PROXIES", _integer(0, 16), 0)
    vendor_url: str = _env("OPEN_CONNECTORS_URL", vendor_url, DEFAULT_OPEN_CONNECTORS_URL)
    vendor_retry_seconds: tuple[int, ...] = _env(
        "OPEN_CONNECTORS_RETRY_SECONDS", _retry_seconds, (8, 64, 512, 4096, 32768)
    )
    vendor_rate: float = _env("OPEN_CONNECTORS_RATE", _rate, 1.0)
    overdue_after: int = _env("RECEIVER_OVERDUE_AFTER", duration_ms, duration_ms("15m"))
    keep_bodies: int = _env("RECEIVER_KEEP_BODIES", _retention, duration_ms("90d"))
    keep_events: int = _env("RECEIVER_KEEP_EVENTS", _retention, duration_ms("400d"))
    forward_allow: frozenset[str] = _env("RECEIVER_FORWARD_ALLOW", _hosts, frozenset[str]())
    answer_within: int = 4_000
    rejections_a_minute: int = 600
    api_rate: int = _env("RECEIVER_API_RATE", _integer(1, 10**9), 600_000)
    failed_tokens_a_minute: int = 120
    # Its path may be a secret.
    alarm_url: str | None = _env("RECEIVER_ALARM_URL", _alarm_url, None, secret=True)
    alarm_secret: bytes | None = _env("RECEIVER_ALARM_SECRET", _alarm_secret, None, secret=True)
    alarm_mail_to: tuple[str, ...] = _env("RECEIVER_ALARM_MAIL_TO", _mail_addresses, ())
    alarm_mail_from: str | None = _env("RECEIVER_ALARM_MAIL_FROM", _mail_address, None)
    smtp_url: str | None = _env("RECEIVER_SMTP_URL", _smtp_url, None)
    smtp_password: str | None = _env("RECEIVER_SMTP_PASSWORD", str, None, secret=True)
    alarm_failing_percent: int = _env("RECEIVER_ALARM_FAILING_PERCENT", _integer(1, 100), 5)
    log_requests: bool = _env("RECEIVER_LOG_REQUESTS", _yes_or_no, default=False)

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings from a mapping such as os.environ.

        Raises SettingsError, with one line that names the setting and never its value.
        """
        values = {}
        for name, field_ in _VARIABLES.items():
            value = _read(environment, name, field_.metadata["convert"])
            if value is not None:
                values[field_.name] = value
        settings = cls(default_keys=_default_keys(environment), **values)
        _check_alarms(settings)
        return settings

    @property
    def vendor_retries_ms(self) -> int:
        """For how long the vendor tries to deliver, ms."""
        return sum(self.vendor_retry_seconds) * 1000

    @property
    def failing_after(self) -> int:
        """For how long our answers may fail before it is an alarm, ms."""
        return self.vendor_retries_ms * self.alarm_failing_percent // 100

    def without_secrets(self) -> dict[str, object]:
        """Return the settings that may be logged."""
        plain = {field_.name: getattr(self, field_.name) for field_ in fields(self) if field_.repr}
        return {
            "database": database_name(self.database_url),
            **plain,
            "default_keys": [key.id for key in self.default_keys],
            "forward_allow": sorted(self.forward_allow),
            "alarm_url": self.alarm_url and urlsplit(self.alarm_url).hostname,
        }


_VARIABLES = {
    field_.metadata["name"]: field_ for field_ in fields(Settings) if "name" in field_.metadata
}


def misspelled(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables that look like settings and are none, with the name that was meant.

    Kubernetes sets RECEIVER_PORT, RECEIVER_SERVICE_HOST and their like for a service of that name.
    """
    names = _VARIABLES.keys() | {_KEY, _PREVIOUS_KEY}
    names |= {f"{name}_FILE" for name in names} | _COMMAND_LINE
    found = {
        name: next(iter(get_close_matches(name, names, 1, 0.8)), None)
        for name in sorted(environment.keys() - names)
        if not _KUBERNETES.match(name)
    }
    return {name: meant for name, meant in found.items() if meant or name.startswith(_PREFIXES)}


def _check_alarms(settings: Settings) -> None:
    """Raise SettingsError where only one is set of two that need each other."""
    user = settings.smtp_url and urlsplit(settings.smtp_url).username
    for one, other, names in (
        (settings.alarm_url, settings.alarm_secret, "RECEIVER_ALARM_URL and RECEIVER_ALARM_SECRET"),
        (settings.alarm_mail_to, settings.smtp_url, "RECEIVER_ALARM_MAIL_TO and RECEIVER_SMTP_URL"),
        (user, settings.smtp_password, "RECEIVER_SMTP_URL's user and RECEIVER_SMTP_PASSWORD"),
    ):
        if bool(one) != bool(other):
            raise SettingsError(f"{names} go together: set both or neither")
    url = urlsplit(settings.alarm_url or "https:")
    if url.scheme != "https" and url.hostname not in settings.forward_allow:
        raise SettingsError(
            "RECEIVER_ALARM_URL must be https, unless RECEIVER_FORWARD_ALLOW names its host"
        )


def _read(environment: Mapping[str, str], name: str, convert: Callable[[str], T]) -> T | None:
    value = _read_bytes(environment, name)
    if value is None:
        return None
    try:
        return convert(value.decode("utf-8"))
    except UnicodeDecodeError:
        raise SettingsError(f"{name} is not UTF-8 text") from None
    except ValueError as error:
        raise SettingsError(f"{name} {error}") from None


def _read_bytes(environment: Mapping[str, str], name: str) -> bytes | None:
    direct, path = environment.get(name), environment.get(f"{name}_FILE")
    if direct is not None and path is not None:
        raise SettingsError(f"{name} and {name}_FILE are both set: which one counts?")
    if direct == "" or path == "":
        raise SettingsError(f"{name} is set but empty: unset it or give it a value")
    if path is None:
        return None if direct is None else direct.encode("utf-8", "surrogateescape")
    try:
        content = secret_from_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SettingsError(f"{name}_FILE cannot be read: {reason}") from None
    if not content:
        raise SettingsError(f"the file that {name}_FILE names is empty")
    return content


def _default_keys(environment: Mapping[str, str]) -> tuple[SignatureKey, ...]:
    keys = []
    for key_id, name in (("environment", _KEY), ("environment-previous", _PREVIOUS_KEY)):
        secret = _read_bytes(environment, name)
        if secret is not None:
            try:
                keys.append(SignatureKey(key_id, secret))
            except CredentialError:
                raise SettingsError(f"{name} cannot be used: it ends in a NUL byte") from None
    if keys and keys[0].id != "environment":
        raise SettingsError(f"{_PREVIOUS_KEY} is set, but {_KEY} is not")
    return tuple(keys)


def secret_from_file(path: str | Path) -> bytes:
    """Return a file's bytes less one final line end, which editors add. Raises OSError."""
    return without_line_end(read_file(path, MAX_SECRET_BYTES))


def database_name(url: str) -> str:
    """Name a database in messages: SQLite's file, or HOST:PORT/NAME as ROLE; never the password."""
    scheme, _, rest = url.partition("://")
    plain, _, query = rest.partition("?")
    if scheme == "sqlite":
        return str(Path(unquote(plain.removeprefix("/"))).absolute())
    user, _, place = plain.rpartition("@")  # a password may hold any other character
    hosts, _, name = place.partition("/")
    hosts = hosts or ",".join(parse_qs(query).get("host", ["localhost"]))
    hosts += "" if "/" in hosts or ":" in hosts else ":5432"
    role = unquote(user.partition(":")[0])
    return f"{hosts}/{unquote(name)}{' as ' if role else ''}{role}"
