"""Callbacks: signed, sent, retried, and queued once their subscription is given up."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Literal
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from receiver.openconnectors.sandbox.faults import Options
from receiver.openconnectors.sandbox.jobs import Later, now_ms
from receiver.openconnectors.shapes import WEBHOOK_ID_HEADER, is_loopback
from receiver.openconnectors.signatures import HEADER, sign

State = Literal["pending", "delivered", "failed", "queued", "dropped", "refused"]

_REORDER_MS = 500
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
    headers: dict[str, str]
    id: str = field(default_factory=lambda: uuid4().hex)
    state: State = "pending"
    created: int = field(default_factory=now_ms)
    tries: int = 0
    answers: list[int | str] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Write what there is to say about it, for JSON."""
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

    def __init__(self, options: Options, later: Later, lock: RLock) -> None:
        self._options, self._later, self._lock = options, later, lock
        self._all: list[Delivery] = []
        self._inactive: set[str] = set()
        # Proxies of the environment would take callbacks away from this host.
        self._client = httpx.Client(
            trust_env=False, follow_redirects=False, timeout=_TIMEOUT_SECONDS
        )

    def post(self, job: str, url: str, body: bytes) -> None:
        """Send `body` about `job` to `url`: soon, or under the fault `overtake` in this thread."""
        headers = {"Content-Type": "application/json", WEBHOOK_ID_HEADER: uuid4().hex}
        if key := self._options.signature_key:
            headers[HEADER] = sign(body, key)
        faults = self._options.faults
        copies = [Delivery(job, url, body, headers) for _ in range(faults.duplicate_callbacks + 1)]
        with self._lock:
            self._all += copies
        for delivery in copies:
            if not (self._options.allow_remote or is_loopback(urlsplit(url).hostname or "")):
                delivery.state = "refused"
            elif faults.drop_callbacks:
                delivery.state = "dropped"
            elif faults.overtake:
                self._attempt(delivery)
            else:
                shuffled = secrets.randbelow(_REORDER_MS) / 1000 if faults.reorder_callbacks else 0
                self._schedule(faults.delay_callbacks + shuffled, delivery)

    def listing(self, where: Mapping[str, str]) -> list[dict[str, object]]:
        """List the deliveries whose summary has the values of `where`, oldest first."""
        with self._lock:
            summaries = [delivery.summary() for delivery in self._all]
        return [summary for summary in summaries if where.items() <= summary.items()]

    def resend(self) -> list[dict[str, object]]:
        """Make all subscriptions active again and send what is queued; return what that is."""
        with self._lock:
            self._inactive.clear()
            queued = [delivery for delivery in self._all if delivery.state == "queued"]
            for delivery in queued:
                delivery.state, delivery.tries = "pending", 0
                self._schedule(0, delivery)
            return [delivery.summary() for delivery in queued]

    def close(self) -> None:
        """Close the connections; nothing is sent any more."""
        self._client.close()

    def _schedule(self, seconds: float, delivery: Delivery) -> None:
        self._later.run(seconds, "sending", partial(self._attempt, delivery))

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
                self._schedule(pause, delivery)

    def _send(self, delivery: Delivery) -> int | str:
        try:
            return self._client.post(
                delivery.url, content=delivery.body, headers=delivery.headers
            ).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__


def read_callback_url(text: str | None) -> str | None:
    """Return a URL that callbacks can be sent to, if there is one. Raises ValueError."""
    url = urlsplit(text or "")
    is_right = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    if text is not None and not is_right:
        raise ValueError("the callback URL must be an http or https URL")
    return text
