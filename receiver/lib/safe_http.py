"""POST to URLs that strangers chose, without being turned against our own network.

Only https, and only to a host all of whose addresses are public. The connection goes to an address
that was checked, so a name that resolves differently at a second look-up changes nothing. Redirects
are not followed, answers are capped, and one deadline bounds the whole attempt: time-outs of single
reads never end while a byte comes now and then.
"""

import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

import httpcore
import httpx

from receiver.errors import BadParameter
from receiver.lib.http_client import failure_reason

ATTEMPT_SECONDS = 15.0  # from the look-up of the name to the head of the answer
CONNECT_SECONDS = 5.0  # to one of a host's addresses
BODY_SECONDS = 2.0  # for the start of the answer's body
MAX_ANSWER_BYTES = 1024
MAX_RECEIVED_BYTES = 2**18  # interim answers cost work, and none of them has to be the last

# Public by Python's tables, or by those of some of its releases, but no stranger's to name.
_REFUSED = tuple(
    map(
        ip_network,
        (
            "168.63.129.16/32",  # Azure's metadata and DNS
            "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata at .192
            "192.88.99.0/24",  # relays from 6to4, withdrawn
            "100.64.0.0/10",  # carriers' NAT; Alibaba's metadata
            "2001::/23",  # IETF protocol assignments, Teredo among them
            "2002::/16",  # 6to4: an IPv4 address in disguise
            "3fff::/20",  # documentation
        ),
    )
)
_PUBLIC_IPV6 = ip_network("2000::/3")  # all that is assigned for global unicast


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered. body -- its first bytes. retry_after -- as the header has it."""

    status: int
    body: bytes = b""
    retry_after: str | None = None


class SafeClient:
    """Posts to strangers' URLs; threads share it.

    allowed -- hosts that may be private, and reached by plain http. network, tls -- other ways to
    connect, and other roots to trust.
    """

    def __init__(
        self,
        allowed: frozenset[str],
        network: httpcore.NetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed, self._tls = allowed, tls
        self._network = network or httpcore.SyncBackend()

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return self._tls or httpx.create_ssl_context()

    def check(self, url: str, noun: str = "callback URL") -> httpx.URL:
        """Parse a URL; resolve nothing. noun -- what errors call it.

        Raises BadParameter for one that is never posted to.
        """
        try:
            parts, parsed = urlsplit(url), httpx.URL(url)
            host, _ = parts.hostname or "", parts.port
            host.encode("idna")  # as resolving will; a label may be empty or too long
        except (ValueError, httpx.InvalidURL):
            raise BadParameter(f"the {noun} is not a URL") from None
        plain = url.isascii() and url.isprintable()
        # Two parsers that read different hosts are how such checks are got around.
        if not host or not plain or "@" in parts.netloc or parsed.host != host:
            raise BadParameter(f"the {noun} must be like https://HOST/PATH, and have no user name")
        if parts.scheme != "https" and not (parts.scheme == "http" and host in self._allowed):
            raise BadParameter(
                f"the {noun} must be https, or its host be named in RECEIVER_FORWARD_ALLOW"
            )
        if host not in self._allowed and _is_private(host):
            raise BadParameter(f"the {noun} has an address that is not public")
        return parsed

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post, within ATTEMPT_SECONDS.

        Raises BadParameter for a URL that is never posted to, and OSError, with a reason for
        people, if there was no answer.
        """
        parsed = self.check(url)
        network = _PinnedNetwork(self._network, private=parsed.host in self._allowed)
        target = httpcore.URL(
            scheme=parsed.raw_scheme,
            host=parsed.raw_host,
            port=parsed.port,
            target=parsed.raw_path,
        )
        sent = {
            **headers,
            "Host": parsed.netloc.decode("ascii"),
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        context = self._context if parsed.scheme == "https" else None
        with (
            _os_errors(),
            httpcore.HTTPConnection(target.origin, context, network_backend=network) as connection,
            connection.stream("POST", target, headers=[*sent.items()], content=body) as response,
        ):
            network.allow_at_most(BODY_SECONDS)
            retry_after = httpx.Headers(response.headers).get("Retry-After")
            return Answer(response.status, _start(response), retry_after)


def _start(response: httpcore.Response) -> bytes:
    """The first bytes of a body. The status is known: what happens from here on changes nothing."""
    start = b""
    try:
        for chunk in response.iter_stream():
            start += chunk[:MAX_ANSWER_BYTES]
            if len(start) >= MAX_ANSWER_BYTES:
                break
    except _ERRORS:
        pass
    return start[:MAX_ANSWER_BYTES]


_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException:
        raise TimeoutError(f"no answer within {ATTEMPT_SECONDS:.0f} s") from None
    except socket.gaierror as error:
        raise OSError("the host name cannot be resolved") from error
    except httpcore.NetworkError as error:
        raise ConnectionError(f"the connection failed: {failure_reason(error)}"[:200]) from error
    except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        raise ConnectionError("the answer is not HTTP/1.1") from error


class _PinnedNetwork(httpcore.NetworkBackend):
    """Connects to addresses that it checked itself; nothing it opened outlives the deadline."""

    def __init__(self, network: httpcore.NetworkBackend, *, private: bool) -> None:
        self._network, self._private = network, private
        self._deadline = time.monotonic() + ATTEMPT_SECONDS
        self.received = 0

    def allow_at_most(self, seconds: float) -> None:
        """Bring the deadline forward."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def count(self, received: int) -> None:
        """Count bytes. Raises httpcore.RemoteProtocolError above MAX_RECEIVED_BYTES."""
        self.received += received
        if self.received > MAX_RECEIVED_BYTES:
            raise httpcore.RemoteProtocolError

    def left(self) -> float:
        """Seconds until the deadline. Raises httpcore.TimeoutException once it is over."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - httpcore's; ours is for the whole attempt
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of a host's addresses that answers. Raises BadParameter."""
        for address in (addresses := self._resolve(host, port)):
            try:
                stream = self._network.connect_tcp(
                    address, port, min(self.left(), CONNECT_SECONDS), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if address == addresses[-1]:
                    raise
            else:
                return _Stream(stream, self)
        raise httpcore.ConnectError("the host name has no address")

    def _resolve(self, host: str, port: int) -> list[str]:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        if not self._private and not all(map(is_public, addresses)):
            raise BadParameter("the host has an address that is not public")
        return addresses


class _Stream(httpcore.NetworkStream):
    """A connection each of whose waits ends at the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, network: _PinnedNetwork) -> None:
        self._stream, self._network = stream, network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """See httpcore."""
        piece = self._stream.read(max_bytes, self._network.left())
        if not piece and not self._network.received:
            raise httpcore.ReadError("it was closed without an answer")
        self._network.count(len(piece))
        return piece

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """See httpcore, which would give each piece the whole time."""
        for place in range(0, len(buffer), 65_536):
            self._stream.write(buffer[place : place + 65_536], self._network.left())

    def close(self) -> None:
        """See httpcore."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """See httpcore."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._network.left())
        return _Stream(stream, self._network)

    def get_extra_info(self, info: str) -> object:
        """See httpcore."""
        return self._stream.get_extra_info(info)


def _is_private(host: str) -> bool:
    """Whether a host is an address that is not public; what a name stands for is not known yet."""
    try:
        return not is_public(host)
    except ValueError:
        return False


def is_public(text: str) -> bool:
    """Whether an address, as getaddrinfo writes it, is one of the public Internet."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address not in _PUBLIC_IPV6:
            return False
    refused = any(address in network for network in _REFUSED)
    return address.is_global and not (refused or address.is_multicast or address.is_reserved)
