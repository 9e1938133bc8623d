"""Telling a client's own callback URL, after us, without being turned against our own network.

A URL is a stranger's word: https only, and every address its host resolves to must be public. The
connection goes to an address that was looked at, so that a name cannot change its mind in between.
"""

import socket
from collections.abc import Callable
from functools import cached_property
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

import httpx

from receiver.database.engine import Database
from receiver.database.models import Forward
from receiver.errors import BadParameter
from receiver.instances.keys import Keys
from receiver.openconnectors.signatures import HEADER, sign
from receiver.reconcile import followups
from receiver.settings import Settings

TIMEOUT_SECONDS = 15


class Forwarder:
    """Posts notifications to clients. allowed -- hosts that may be private, and plain http."""

    def __init__(
        self, allowed: frozenset[str], transport: httpx.BaseTransport | None = None
    ) -> None:
        self._allowed, self._transport = allowed, transport

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(
            transport=self._transport,
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
            trust_env=False,
            # Kept connections are found by address: one could have been opened for another host.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def check(self, url: str) -> None:
        """Raise BadParameter for a URL that is never told anything; nothing is resolved yet."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
            (host or "").encode("idna")  # as resolving will; a label may be empty or too long
            httpx.URL(url)
        except (ValueError, httpx.InvalidURL):
            host = None
        if not host or not url.isascii() or not url.isprintable() or parts.username is not None:
            raise BadParameter("the callback URL is no URL without user name")
        if host not in self._allowed and parts.scheme != "https":
            raise BadParameter("the callback URL must be https")
        if parts.scheme not in ("http", "https"):
            raise BadParameter("the callback URL must be https")

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Post to a checked URL and give the status. Raises BadParameter, OSError, HTTPError."""
        self.check(url)
        parts = urlsplit(url)
        host = parts.hostname or ""
        if host in self._allowed:
            request = self._client.build_request("POST", url, content=body, headers=headers)
            return self._status(request)
        address = _public_address(host, parts.port or 443)
        pinned = httpx.URL(url).copy_with(host=address)
        request = self._client.build_request(
            "POST",
            pinned,
            content=body,
            headers={**headers, "Host": parts.netloc},
            extensions={"sni_hostname": host},
        )
        return self._status(request)

    def _status(self, request: httpx.Request) -> int:
        # Only the head is read: what a stranger answers may have no end.
        answer = self._client.send(request, stream=True)
        answer.close()
        return answer.status_code

    def close(self) -> None:
        """Close all connections."""
        if "_client" in self.__dict__:
            self._client.close()


class Teller:
    """Tells clients what the vendor told us, signed with the instance's newest key."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        keys: Keys,
        forwarder: Forwarder,
        clock: Callable[[], int],
    ) -> None:
        self._settings, self._database, self._keys = settings, database, keys
        self._forwarder, self._clock = forwarder, clock

    def tell_one(self) -> bool:
        """Tell one client what it is due to be told; False if there is none."""
        now = self._clock()
        with self._database.write() as session:
            forward = followups.next_forward(session, now)
        if forward is None:
            return False
        result, again = self._told(forward)
        schedule = self._settings.vendor_retry_seconds
        retry = again and forward.tries <= len(schedule)
        next_at = self._clock() + 1000 * schedule[forward.tries - 1] if retry else None
        with self._database.write() as session:
            followups.end_forward(session, forward.id, result, next_at)
        return True

    def _told(self, forward: Forward) -> tuple[str, bool]:
        """Post; give what came of it, and whether trying again may help."""
        keys = self._keys.fresh(self._database).instances.get(forward.instance)
        headers = {"Content-Type": "application/json"}
        if keys is not None and keys.keys:
            headers[HEADER] = sign(forward.body, keys.keys[0])
        try:
            status = self._forwarder.post(forward.url, forward.body, headers)
        except BadParameter as error:
            return str(error), False
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__, True
        return str(status), not 200 <= status < 300  # noqa: PLR2004


def _public_address(host: str, port: int) -> str:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        if not _is_public(address.partition("%")[0]):
            raise BadParameter("the callback URL's host has an address that is not public")
    return addresses[0]


def _is_public(text: str) -> bool:
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        inner = address.sixtofour  # an address of the old Internet inside a new one
        if address.is_site_local or (inner is not None and not inner.is_global):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)
