"""HTTP clients made of the environment's settings, which are checked before anything is sent."""

import os
import ssl
from collections.abc import Callable, Mapping
from typing import TypeVar

import httpx

from receiver.errors import SettingsError

C = TypeVar("C", httpx.Client, httpx.AsyncClient)

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_UNUSABLE = (ValueError, ImportError, OSError, httpx.InvalidURL)


def make_client(make: Callable[[], C]) -> C:
    """Return the client that `make` makes.

    Raises SettingsError, which names the variable that cannot be used.
    """
    try:
        return make()
    except _UNUSABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, ImportError):
            reason = "SOCKS is not supported; use a proxy of http"
        raise SettingsError(f"{_culprit(os.environ)} cannot be used: {reason}") from None


def check_environment() -> None:
    """Raise SettingsError for proxies or certificates that no client could be made of.

    Without loading the machine's certificates: a worker that only receives needs none.
    """
    verify = any(os.environ.get(name) for name in _CERTIFICATES)
    make_client(lambda: httpx.Client(verify=verify)).close()


def failure_reason(error: BaseException) -> str:
    """Return why a request failed: neither a class name, nor an error number, nor a line of C."""
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


def _culprit(environment: Mapping[str, str]) -> str:
    """Name the variable that no client can be made of."""
    for name, value in environment.items():
        try:
            if name.upper() in _PROXIES:
                proxy = value if "://" in value else f"http://{value}"
                httpx.Client(proxy=proxy, trust_env=False).close()
            elif name == "SSL_CERT_FILE":
                ssl.create_default_context(cafile=value)
            elif name == "SSL_CERT_DIR":
                ssl.create_default_context(capath=value)
        except _UNUSABLE:
            return name
    return next((name for name in environment if name.upper() == "NO_PROXY"), "a setting of HTTP")
