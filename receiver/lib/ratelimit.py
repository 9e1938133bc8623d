"""Limits on requests of one token and on wrong tokens of one address; which address a client has.

Counted in this process alone: a read must not cost a write. Under N workers, a client that reaches
all of them may do up to N times as much. Who is over a limit is refused, whatever the token.
"""

import re
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from receiver import metrics
from receiver.errors import TooManyRequests

WINDOW_SECONDS = 60.0
_ROUNDING = 1e-6
MAX_NAMES = 10_000  # counted at once; a stranger can have many addresses

# What may stand around an address in X-Forwarded-For: a port, and brackets for that of IPv6.
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")


@lru_cache(maxsize=1024)
def client_address(socket: str, forwarded_for: str | None, hops: int) -> str:
    """Return the client's address: as the last trusted proxy has it, else the socket's.

    forwarded_for -- X-Forwarded-For. hops -- how many proxies are trusted to add to it; of what
    was there before they did, nothing is believed.
    """
    named = (forwarded_for or "").split(",")
    address = _address(named[-hops]) if 0 < hops <= len(named) else None
    return str(address or _address(socket) or socket)


@lru_cache(maxsize=1024)
def network_of(peer: str) -> str:
    """Return the network an address is rate-limited under (IPv6: its /64); `unknown` if none."""
    address = _address(peer)
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(IPv6Network((int(address), 64), strict=False))
    return str(address or "unknown")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address; one of IPv4 that is written as IPv6 is one of IPv4."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


class Limiter:
    """At most `limit` in a burst, and as many a minute in the long run, for each name.

    clock -- gives seconds that never go back.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause, self._clock = WINDOW_SECONDS / limit, clock
        self._lock = threading.Lock()
        # For each name the time up to which its requests use up the limit, at an even pace (GCRA).
        self._paid: dict[str, float] = {}

    def wait(self, name: str) -> float:
        """Return for how many seconds a name has to wait; 0 is not at all."""
        ahead = self._paid.get(name, 0.0) - self._clock() if self._paid else 0.0
        wait = ahead + self._pause - WINDOW_SECONDS
        return wait if wait > _ROUNDING else 0.0

    def take(self, name: str) -> float:
        """Count one for a name unless it has to wait; return for how long, as `wait` does."""
        with self._lock:
            wait = self.wait(name)
            if not wait:
                self._evict()
                self._paid[name] = max(self._paid.get(name, 0.0), self._clock()) + self._pause
        return wait

    def _evict(self) -> None:
        if len(self._paid) >= MAX_NAMES:
            now = self._clock()
            live = {name: paid for name, paid in self._paid.items() if paid > now}
            self._paid = live if len(live) < MAX_NAMES else {}


class Limits:
    """The limits of the API and of signing in.

    requests, failures -- a minute, for a token's name and for an address.
    """

    def __init__(self, requests: int, failures: int) -> None:
        self._requests, self._failures = Limiter(requests), Limiter(failures)

    def check_address(self, peer: str) -> None:
        """Refuse an address that came with too many wrong tokens. Raises TooManyRequests."""
        _refuse("address", self._failures.wait(network_of(peer)))

    def note_failure(self, peer: str) -> None:
        """Count a wrong token."""
        self._failures.take(network_of(peer))

    def check_token(self, name: str) -> None:
        """Count a request of a valid token. Raises TooManyRequests."""
        _refuse("token", self._requests.take(name))


def _refuse(what: str, wait: float) -> None:
    if wait:
        metrics.THROTTLED.labels(what).inc()
        seconds = int(wait) + 1
        message = f"too many requests of this {what}; try again in {seconds} s"
        raise TooManyRequests(message, seconds)
