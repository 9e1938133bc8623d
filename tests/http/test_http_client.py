"""A variable that no HTTP client can be made of is named before anything is sent."""

import httpx
import pytest

from receiver.errors import SettingsError
from receiver.lib.http_client import check_environment, make_client


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NO_PROXY", "fe80::/10"),
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("HTTPS_PROXY", "ftp://127.0.0.1"),
        ("https_proxy", ":::"),
        ("SSL_CERT_FILE", "/nonexistent/certificates"),
    ],
)
def test_a_variable_that_no_client_can_be_made_of_is_named(monkeypatch, name, value):
    for each in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(each, raising=False)
        monkeypatch.delenv(each.lower(), raising=False)
    check_environment()
    monkeypatch.setenv(name, value)
    httpx._transports.default.create_ssl_context.cache_clear()  # of tests/conftest.py
    for make in (check_environment, lambda: make_client(httpx.Client)):
        with pytest.raises(SettingsError, match=f"{name} cannot be used: "):
            make()
