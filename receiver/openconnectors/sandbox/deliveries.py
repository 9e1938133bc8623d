"""Callbacks: signed, sent, retried, and queued once their subscription is given up."""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from threading import RLock
from typing import Literal
from uuid import uuid4

import httpx

from receiver.openconnectors.sandbox.faults import LiveFaults, Options
from receiver.openconnectors.sandbox.jobs import Later, now_ms
from receiver.openconnectors.shapes import WEBHOOK_ID_HEADER
from receiver.openconnectors.signatures import HEADER, sign

State = Literal["pending", "delivered", "failed", "queued", "dropped", "refused"]

_HIGHEST_PORT = 65535
_REORDER_SECONDS = 0.5
_RETRY_FACTOR = 8
_TIMEOUT_SECONDS = 10.0


@dataclass(slots=True)
class Delivery:
    """One callback; its bytes and headers stay the same however often it is sent.

    answers -- for each attempt, the HTTP status or the name of what went wrong.
    tries -- the attempts since it was last taken up.
    """

    job: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    id: str = field(default_factory=lambda: uuid4().hex)
    state: State = "pending"
    created: int = field(default_factory=now_ms)
    tries: int = 0
    answers: list[int | str] = field(default_factory=list)

    def matches(self, where: Mapping[str, str]) -> bool:
        """Whether each field named in `where` has the value given there."""
        fields = {"channel": "webhook", "status": self.state}
        return all(fields[name] == value for name, value in where.items())

    def summary(self) -> dict[str, object]:
        """What there is to tell about it, as JSON."""
        return {
            "id": self.id,
            "channel": "webhook",
            "status": self.state,
            "jobId": self.job,
            "url": self.url,
            "createdDate": self.created,
            "attempts": len(self.answers),
            "lastAnswer": self.answers[-1] if self.answers else None,
            "webhookId": self.headers[WEBHOOK_ID_HEADER],
            "body": self.body.decode(),
        }


class Deliveries:
    """All callbacks of one sandbox, and the URLs whose subscription is no longer active."""

    def __init__(self, options: Options, faults: LiveFaults, later: Later, lock: RLock) -> None:
        self.signature_key = options.signature_key
        self._options = options
        self._faults = faults
        self._timer = later
        self._lock = lock
        self._all: list[Delivery] = []
        self._inactive: set[str] = set()
        self._held: list[Delivery] = []
        # A shuffle that tests can repeat, and no secret.
        self._random = Random(options.seed)  # noqa: S311  # nosec B311
        # Proxies of the environment would take callbacks away from this host.
        self._client = httpx.Client(
            trust_env=False, follow_redirects=False, timeout=_TIMEOUT_SECONDS
        )

    def post(self, job: str, url: str, body: bytes, at_once: bool) -> None:
        """Send `body` about `job` to `url`, now in this thread if `at_once`, else soon."""
        headers = self._headers(body)
        faults = self._faults.current
        copies = [Delivery(job, url, body, headers) for _ in range(faults.duplicate_callbacks + 1)]
        with self._lock:
            self._all += copies
        for delivery in copies:
            if not (self._options.allow_remote or is_loopback(url)):
                delivery.state = "refused"
            elif faults.drop_callbacks:
                delivery.state = "dropped"
            elif at_once:
                self._attempt(delivery)
            elif faults.reorder_callbacks:
                self._hold(delivery)
            else:
                self._later(faults.delay_callbacks, partial(self._attempt, delivery))

    def listing(self, where: Mapping[str, str]) -> list[dict[str, object]]:
        """The deliveries that match `where`, oldest first."""
        with self._lock:
            return [each.summary() for each in self._all if each.matches(where)]

    def resend(self) -> list[dict[str, object]]:
        """Make all subscriptions active again and send what is queued; tell what that is."""
        with self._lock:
            self._inactive.clear()
            queued = [each for each in self._all if each.state == "queued"]
            for delivery in queued:
                delivery.state = "pending"
                delivery.tries = 0
            summaries = [each.summary() for each in queued]
        self._later(0, partial(self._each, queued))
        return summaries

    def close(self) -> None:
        """Close the connections; nothing is sent any more."""
        self._client.close()

    def _headers(self, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", WEBHOOK_ID_HEADER: uuid4().hex}
        if key := self.signature_key:
            headers[HEADER] = sign(body, key)
        return headers

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        self._timer.run(seconds, "sending", step)

    def _hold(self, delivery: Delivery) -> None:
        with self._lock:
            if not self._held:
                self._later(_REORDER_SECONDS, self._release)
            self._held.append(delivery)

    def _release(self) -> None:
        with self._lock:
            held, self._held = self._held, []
            self._random.shuffle(held)
        self._each(held)

    def _each(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._attempt(delivery)

    def _attempt(self, delivery: Delivery) -> None:
        with self._lock:
            if delivery.url in self._inactive:
                delivery.state = "queued"
                return
        answer = self._send(delivery)
        with self._lock:
            delivery.answers.append(answer)
            delivery.tries += 1
            if isinstance(answer, int) and httpx.codes.is_success(answer):
                delivery.state = "delivered"
            elif delivery.tries > self._options.retries:
                delivery.state = "failed"
                self._inactive.add(delivery.url)
            else:
                pause = self._options.retry_seconds * _RETRY_FACTOR ** (delivery.tries - 1)
                self._later(pause, partial(self._attempt, delivery))

    def _send(self, delivery: Delivery) -> int | str:
        try:
            answer = self._client.post(
                delivery.url, content=delivery.body, headers=dict(delivery.headers)
            )
        except httpx.HTTPError as error:
            return type(error).__name__
        return answer.status_code


def is_callback_url(text: str) -> bool:
    """Whether callbacks can be sent to `text` at all: an HTTP URL with a host."""
    try:
        url = httpx.URL(text)
        host, port = url.host, url.port or 1
    except (httpx.InvalidURL, ValueError):  # ValueError: no such internationalised host name
        return False
    return url.scheme in {"http", "https"} and bool(host) and port <= _HIGHEST_PORT


def is_loopback(url: str) -> bool:
    """Whether `url` names this host."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
