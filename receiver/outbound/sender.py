"""Sending what is due, several at once, so that one recipient that hangs holds up no other."""

import hmac
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import structlog
from sqlalchemy.orm import Session

from receiver import metrics
from receiver.database.engine import Database, database_time
from receiver.errors import BadParameter, Overloaded, StoreError
from receiver.lib.safe_http import SafeClient
from receiver.openconnectors.shapes import read_retry_after
from receiver.outbound import queue
from receiver.outbound.mail import Mailer
from receiver.outbound.queue import MAX_PER_HOST, PAUSES_SECONDS, Attempt, Claimed, Ended, Message

MAX_ATTEMPTS = 16  # under way at once in a process
# Between two looks, each of which begins MAX_PER_HOST for a host. Shorter, what many jobs queue at
# once would take a processor from callbacks: an attempt costs about 2 ms of it.
SEND_PAUSE_SECONDS = 0.25
MAX_TESTS = 4  # at once; each holds a thread that answers people for as long as its target hangs
TEST_RETRY_AFTER = 15  # seconds

_GONE = 410

log = structlog.get_logger()


class Outgoing(NamedTuple):
    """A message as it goes out. headers -- beside those of any JSON."""

    body: bytes
    headers: Mapping[str, str] = {}


# Returns a message as it goes out, with the headers that prove to a recipient who sends, made anew
# for each attempt (ms since the epoch). Raises BadParameter if the recipient is one no longer.
Signer = Callable[[Message, int], Outgoing]
# Takes note of an attempt (ms since the epoch), in the transaction that records it.
Observer = Callable[[Session, Claimed, Attempt, int], None]


class Sender:
    """Sends messages of those kinds that it has a signer for. clock -- ms since the epoch.

    observers -- by kind, who takes note of attempts.
    """

    def __init__(
        self,
        database: Database,
        http: SafeClient,
        mailer: Mailer,
        signers: Mapping[str, Signer],
        clock: Callable[[], int],
        *,
        observers: Mapping[str, Observer] | None = None,
    ) -> None:
        self._observers = observers or {}
        self._database, self._http, self._mailer = database, http, mailer
        self._signers, self._clock = signers, clock
        self._busy: Counter[str] = Counter()  # attempts by host that are under way, or in `_ended`
        self._ended: list[Ended] = []  # since the last step
        self._failures = 0
        self._changed = threading.Condition()
        self._tests = threading.BoundedSemaphore(MAX_TESTS)

    def step(self, *, begin: bool = True) -> None:
        """Record what has ended since the last step, and begin what is due. Raises StoreError.

        What is not recorded is sent again after its lease. begin -- False as the process ends.
        """
        with self._changed:
            ended, self._ended = self._ended, []
            self._busy -= Counter(one.claimed.message.host for one in ended)
        try:
            # Each by itself, since it may disable its subscription, which locks much.
            for one in ended:
                if not one.attempt.delivered:
                    with self._database.write() as session:
                        self._record(session, [one])
            delivered = [one for one in ended if one.attempt.delivered]
            self._go_on(delivered, self._due() if begin else ())
        except StoreError:
            if ended:
                log.warning("attempts are not recorded, and made again", count=len(ended))
            raise

    def _go_on(self, delivered: Sequence[Ended], ids: Sequence[int]) -> None:
        """Record what was delivered and claim what is due, in one transaction, and begin it."""
        if not ids and not delivered:
            return
        with self._database.write() as session:
            now = self._record(session, delivered)
            claimed = queue.claim_due(session, ids, now) if ids else []
        for each in claimed:
            with self._changed:
                self._busy[each.message.host] += 1
            # Not of a pool: its threads would be waited for when the process ends. What a process
            # that ends leaves unrecorded is sent again.
            threading.Thread(target=self._run, args=(each,), name="outbound", daemon=True).start()

    def _record(self, session: Session, ended: Sequence[Ended]) -> int:
        """Record attempts; return the time, ms."""
        now = database_time(session, self._clock)
        # Before the deliveries are: whoever disables a subscription locks in this order.
        for one in sorted(ended, key=lambda one: one.claimed.message.subscription or ""):
            if observe := self._observers.get(one.claimed.message.kind):
                observe(session, one.claimed, one.attempt, now)
        if ended:
            queue.record(session, ended, now)
        return now

    def _due(self) -> Sequence[int]:
        """Look without the lock that callbacks are written under: mostly, nothing is due."""
        with self._changed:
            free = MAX_ATTEMPTS - self._busy.total()
            busy = {host: MAX_PER_HOST - count for host, count in self._busy.items()}
        if free <= 0:
            return ()
        with self._database.read() as session:
            now = database_time(session, self._clock)
            return queue.due(session, tuple(self._signers), now, busy, free)

    def drain(self) -> bool:
        """Send all that is due, wait for it, and return whether all was accepted."""
        before = self._failures
        while True:
            was_busy = bool(self._busy)  # what is recorded now lets another have its turn
            self.step()
            if not was_busy and not self._busy:
                return self._failures == before
            with self._changed:
                self._changed.wait_for(lambda: self._ended or not self._busy, 1)

    def test(self, message: Message) -> Attempt:
        """Do as `send` for whoever waits for it. Raises Overloaded if too many do."""
        if not self._tests.acquire(blocking=False):
            raise Overloaded("as many tests are sent as may be at once", TEST_RETRY_AFTER)
        try:
            return self.send(message)
        finally:
            self._tests.release()

    def send(self, message: Message, now: int | None = None) -> Attempt:
        """Send a message once, whether or not it is in the queue.

        now -- ms; None is this machine's time, which may be wrong: recipients reject what was
        signed minutes ago.
        """
        now = self._clock() if now is None else now
        try:
            body, headers = self._signers[message.kind](message, now)
            if message.target.startswith("mailto:"):
                return self._mailer.send(message.target.removeprefix("mailto:"), body)
            headers = {"Content-Type": "application/json", **headers}
            answer = self._http.post(message.target, body, headers)
        except BadParameter as error:
            return Attempt(delivered=False, error=str(error), final=True)
        except OSError as error:
            return Attempt(delivered=False, error=str(error))
        pause = read_retry_after(answer.retry_after or "", now / 1000, PAUSES_SECONDS[-1])
        return Attempt(
            delivered=200 <= answer.status < 300,
            status=answer.status,
            answer=answer.body,
            final=answer.status == _GONE,
            retry_after=pause or 0,
        )

    def _run(self, claimed: Claimed) -> None:
        message, began = claimed.message, time.monotonic()
        try:
            attempt = self.send(message, claimed.at)
        except Exception as error:  # noqa: BLE001 - one odd row must not be tried for ever
            attempt = Attempt(delivered=False, error=f"a fault of ours: {type(error).__name__}")
        duration = round(1000 * (time.monotonic() - began))
        with self._changed:
            self._failures += not attempt.delivered
            self._ended.append(Ended(claimed, attempt, duration))
            self._changed.notify_all()
        if message.subscription:
            result = queue.result_of(claimed, attempt)
            metrics.DELIVERIES.labels(message.subscription, result).inc()
        if not attempt.delivered:
            reason = attempt.error or str(attempt.status)
            log.warning("delivery failed", kind=message.kind, host=message.host, reason=reason)


def standard_webhook(id_: str, sent: Outgoing, now: int, *secrets: bytes) -> Outgoing:
    """Sign a message as Standard Webhooks 1.0 has it, with each secret. id_ -- its webhook_id."""
    timestamp = str(now // 1000)
    signed = f"{id_}.{timestamp}.".encode() + sent.body
    digests = [b64encode(hmac.digest(secret, signed, "sha256")).decode() for secret in secrets]
    headers = {
        "webhook-id": id_,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{digest}" for digest in digests),
    }
    return Outgoing(sent.body, {**sent.headers, **headers})
