"""The way of a callback: is it really the vendor's, what does it say, keep it once and durably.

raw HTTP request → Delivery (untrusted) → verify → parse → write → Receipt
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import structlog

from receiver import metrics
from receiver.callbacks.rejections import AddressCount, NewRefusal
from receiver.callbacks.store import (
    Item,
    NewEvent,
    Receipt,
    Result,
    StaleReplay,
    keep_unmerged,
    record,
)
from receiver.callbacks.writer import Writer
from receiver.database.engine import Database
from receiver.errors import (
    KeysChanged,
    NoSignatureKey,
    ReceiverError,
    SignatureError,
    SignatureMismatch,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    TooManyRefusals,
    UnknownInstance,
)
from receiver.instances.credentials import InstanceKeys, KeyRing
from receiver.jobs.job import is_ending
from receiver.jobs.projection import NewObservation
from receiver.lib import logs
from receiver.lib.ratelimit import network_of
from receiver.openconnectors.notifications import Notification, parse
from receiver.openconnectors.signatures import verify
from receiver.settings import INSTANCE_NAME, Settings

log = structlog.get_logger()

_MOST_ADDRESSES = 10_000  # remembered as refused too often, in one process

T = TypeVar("T")

# What taking a delivery waits for: an item to be committed, or a call that may block.
Step: TypeAlias = Item | Callable[[], object]
# Sent back is the step's result, thrown in its error.
Steps: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Delivery:
    """An HTTP request that arrived, still untrusted. body -- the raw bytes, whole.

    request -- its id, where a proxy that is trusted gave it one.
    """

    instance: str
    body: bytes
    signature: str | None
    webhook_id: str | None
    peer: str
    request: str | None = None


class Intake:
    """Takes deliveries: one for a process, used by all its threads.

    clock -- ms since the epoch; PostgreSQL's own is used where there is one.
    """

    def __init__(
        self, settings: Settings, database: Database, ring: KeyRing, clock: Callable[[], int]
    ) -> None:
        self._settings, self._database, self._ring, self._clock = settings, database, ring, clock
        self.writer: Writer[Item, Result] = Writer(self._commit, self._rescue)
        self._refused_until: dict[str, int] = {}

    def receive(self, delivery: Delivery) -> Receipt:
        """Verify and keep a delivery; when this returns, it is committed.

        Raises SignatureError if it is not proven to be the vendor's, TooManyRefusals if its address
        failed at that too often, StoreUnavailable if it could not be committed in time.
        """
        return self._walk(self.steps(delivery))

    def steps(self, delivery: Delivery) -> Steps[Receipt]:
        """Do as `receive`, but leave the waiting to who takes the steps: thread or event loop."""
        while True:
            try:
                event = yield from self._verified(delivery)
                receipt = yield event
            except KeysChanged:
                yield self._ring.refresh
            except SignatureError as refusal:
                raise (yield from self._refused(delivery, refusal)) from None
            except StoreError:
                self._count(delivery.instance, "unavailable")
                raise
            else:
                return self._taken(event, cast("Receipt", receipt))

    def receive_again(self, delivery: Delivery) -> Receipt | None:
        """Take a delivery that was refused if its signature is right by now; else give None.

        Nothing is counted: it was, when it came. Raises StoreUnavailable.
        """
        return self._walk(self._steps_again(delivery))

    def count_refusal(self, peer: str, reason: str) -> None:
        """Count a delivery that could not be read as it was sent; who sent it does not wait."""
        metrics.REFUSALS.labels(reason).inc()
        metrics.callbacks("", "", "broken").inc()
        logs.summed(log, "refused", reason, network_of(peer), reason=reason, peer=network_of(peer))
        try:
            if not self._is_ignored(network_of(peer)):
                self.writer.submit(NewRefusal("", reason, network_of(peer), 0, None, None))
        except StoreUnavailable:
            pass  # the counter above has it

    def observe(self, observation: NewObservation) -> None:
        """Keep what a poll or a submission told; when this returns, it is committed.

        Raises StoreUnavailable.
        """
        self._committed(observation)
        _note_learnt(observation.notification, self._clock())

    def _taken(self, event: NewEvent, receipt: Receipt) -> Receipt:
        answer = "duplicate" if receipt.duplicate else "new"
        metrics.callbacks(event.instance, event.notification.kind, answer).inc()
        if not receipt.duplicate:
            _note_learnt(event.notification, self._clock())
        elif isinstance(receipt, StaleReplay):
            metrics.STALE_REPLAYS.labels(event.instance).inc()
            log.warning("stale replay", instance=event.instance, kept_as=receipt.event)
        return receipt

    def _count(self, instance: str, answer: str) -> None:
        """Count a callback that was not taken; of instances, only those that exist have a name."""
        known = self._ring.known and self._ring.of(instance) is not None
        metrics.callbacks(instance if known else "", "", answer).inc()

    def _walk(self, steps: Steps[T]) -> T:
        """Take steps in this thread, and wait for each."""
        try:
            step = next(steps)
            while True:
                try:
                    result = step() if callable(step) else self._committed(step)
                except ReceiverError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return cast("T", end.value)

    def _steps_again(self, delivery: Delivery) -> Steps[Receipt | None]:
        while True:
            try:
                event = yield from self._verified(delivery)
                return cast("Receipt", (yield event))
            except KeysChanged:
                yield self._ring.refresh
            except SignatureError:
                return None

    def _verified(self, delivery: Delivery) -> Steps[NewEvent]:
        if not self._ring.known:
            yield self._ring.refresh
        seen = self._ring.version
        try:
            ring, key = self._check(delivery)
        except SignatureError:
            # Before anything is refused: another process may have changed the keys just now, and
            # another delivery may have had them read since.
            yield self._ring.refresh
            if self._ring.version == seen:
                raise
            ring, key = self._check(delivery)
        return NewEvent(
            id=f"{self._clock():012x}{secrets.token_hex(10)}",
            instance=delivery.instance,
            body=delivery.body,
            sha256=hashlib.sha256(delivery.body).digest(),
            notification=parse(delivery.body),
            key=key,
            key_version=ring.version,
            webhook_id=delivery.webhook_id,
        )

    def _check(self, delivery: Delivery) -> tuple[InstanceKeys, str]:
        named = INSTANCE_NAME.fullmatch(delivery.instance)
        ring = self._ring.of(delivery.instance) if named else None
        try:
            # An unknown instance has no keys, which takes as long as one.
            key = verify(delivery.body, delivery.signature, ring.keys if ring else ())
        except SignatureError as refusal:
            if ring and ring.broken and isinstance(refusal, (SignatureMismatch, NoSignatureKey)):
                raise StoreUnavailable("a key of this instance cannot be opened") from None
            if ring:
                raise
        if ring is None:
            raise UnknownInstance("no such instance")
        return ring, key

    def _committed(self, item: Item) -> Result:
        pending = self.writer.submit(item)
        try:
            return pending.result(self._settings.answer_within / 1000)
        except TimeoutError:
            pending.cancel()
            raise StoreUnavailable("not committed in time") from None

    def _refused(self, delivery: Delivery, refusal: SignatureError) -> Steps[ReceiverError]:
        """Count and perhaps quarantine a refused delivery; give what to answer."""
        metrics.REFUSALS.labels(refusal.reason).inc()
        peer = network_of(delivery.peer)
        if self._is_ignored(peer):
            return self._too_many(peer)
        known = not isinstance(refusal, UnknownInstance)
        instance = delivery.instance if known else ""
        metrics.callbacks(instance, "", "refused").inc()
        named = {"reason": refusal.reason, "peer": peer, "instance": instance}
        id_ = {"request_id": delivery.request} if delivery.request else {}
        logs.summed(log, "refused", *named.values(), **named, **id_)
        signature = delivery.signature.encode("latin-1", "replace") if delivery.signature else None
        item = NewRefusal(
            instance=instance,
            reason=refusal.reason,
            peer=peer,
            size=len(delivery.body),
            signature=signature if known else None,
            body=delivery.body if known and signature else None,
        )
        try:
            count = yield item
        except StoreUnavailable:
            return refusal  # not counted, but refused it is
        if isinstance(count, AddressCount) and count.count > self._settings.refusals_a_minute:
            self._ignore(peer, self._clock() + count.left)
            return self._too_many(peer)
        return refusal

    def _is_ignored(self, peer: str) -> bool:
        return self._refused_until.get(peer, 0) > self._clock()

    def _ignore(self, peer: str, until: int) -> None:
        if len(self._refused_until) >= _MOST_ADDRESSES:
            now = self._clock()
            live = {key: end for key, end in self._refused_until.items() if end > now}
            self._refused_until = live if len(live) < _MOST_ADDRESSES else {}
        self._refused_until[peer] = until

    def _too_many(self, peer: str) -> TooManyRefusals:
        metrics.REFUSALS.labels(TooManyRefusals.reason).inc()
        metrics.callbacks("", "", "ignored").inc()
        left = self._refused_until.get(peer, 0) - self._clock()
        return TooManyRefusals(max(1, -(-left // 1000)))

    def _commit(self, batch: Sequence[Item]) -> Sequence[Result]:
        began = time.perf_counter()
        metrics.QUEUE_LENGTH.set(self.writer.waiting)
        # For ever: those who wait have deadlines of their own.
        with self._database.transaction(patience=None) as connection:
            results = record(connection, batch, self._clock)
        metrics.BATCH_SIZE.observe(len(batch))
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - began)
        return results

    def _rescue(self, item: Item, refused: StoreRefused) -> Result:
        if not isinstance(item, NewEvent):
            raise refused
        with self._database.write() as session:
            return keep_unmerged(session, item, self._clock)


def _note_learnt(told: Notification, now: int) -> None:
    """Measure how long after a job's end we knew of it, where the vendor tells when that was."""
    if told.completed_at and is_ending(told.status):
        by = "callback" if told.source == "callback" else "poll"
        metrics.LEARNT_SECONDS.labels(by).observe(max(0, now - told.completed_at) / 1000)
