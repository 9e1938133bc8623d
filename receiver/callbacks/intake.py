"""A callback from request to receipt: verify it, parse it, store it once and durably.

raw HTTP request → Delivery (untrusted) → judge → write, the verdict confirmed → Receipt
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias, TypeVar

import msgspec
import structlog

from receiver import metrics
from receiver.callbacks.deliveries import (
    AddressCount,
    Delivery,
    Failed,
    Item,
    Judged,
    NewRejection,
    Receipt,
    Rejected,
    Result,
    judge,
)
from receiver.callbacks.store import Store
from receiver.callbacks.writer import Writer
from receiver.callbacks.writer_process import RemoteWriter
from receiver.database.engine import Database
from receiver.errors import (
    ReceiverError,
    SignatureError,
    StoreUnavailable,
    TooManyRejections,
    UnknownInstance,
)
from receiver.instances.keys import Keys
from receiver.jobs.job import is_ending
from receiver.jobs.projection import NewAbsence, NewObservation
from receiver.lib import logs
from receiver.lib.clock import MINUTE_MS
from receiver.lib.ratelimit import network_of
from receiver.openconnectors.notifications import Notification, parse
from receiver.settings import Settings

MAX_ADDRESSES = 10_000  # whose rejections are counted in one process

T = TypeVar("T")
Done: TypeAlias = Callable[[Receipt | ReceiverError], None]

log = structlog.get_logger()

_REJECTIONS = {error.reason: error for error in SignatureError.__subclasses__()}


class Intake:
    """Takes deliveries: one for a process, used by all its threads.

    clock -- ms since the epoch; PostgreSQL's own is used where there is one. writer_path -- the
    socket of the process that writes for all workers of a server; None: a thread of this process
    writes.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        keys: Keys,
        clock: Callable[[], int],
        writer_path: str | None = None,
    ) -> None:
        self._settings, self._keys, self._clock = settings, keys, clock
        self._addresses = _AddressCounts(settings.rejections_a_minute, clock)
        self.reason = ""  # why a delivery could not be stored, the last time
        self.writer: Writer | RemoteWriter = (
            RemoteWriter(writer_path, database, keys, self._addresses.update)
            if writer_path
            else Writer(Store(database, keys, clock), self._addresses.update)
        )

    def submit(self, delivery: Delivery, done: Done) -> None:
        """Judge a delivery and have it stored; never blocks.

        done -- is called once, in the writer's thread unless that takes no more: with a Receipt,
        which is committed then, or with an error: a SignatureError if the delivery is not proven to
        be the vendor's, TooManyRejections if its address failed at that too often, or
        StoreUnavailable.
        """
        judged = judge(self._keys.current, delivery)
        if judged.reason and self._addresses.seconds_left(network_of(delivery.peer)) is not None:
            judged = msgspec.structs.replace(judged, unrecorded=True)

        def finish(result: Result) -> None:
            done(self._answer(judged, result))

        try:
            self.writer.submit(judged, finish, self._settings.answer_within / 1000)
        except StoreUnavailable as error:
            finish(Failed(str(error)))

    def receive(self, delivery: Delivery) -> Receipt:
        """Do as `submit`, and wait. Raises its errors."""
        answer: Receipt | ReceiverError = self._wait(partial(self.submit, delivery))
        if isinstance(answer, ReceiverError):
            raise answer
        return answer

    def receive_again(self, delivery: Delivery) -> Receipt | None:
        """Take a delivery that was rejected if its signature is right by now; else return None.

        Nothing is counted: it was, when it came. Raises StoreUnavailable.
        """
        result = self._write(judge(self._keys.current, delivery, unrecorded=True))
        return result if isinstance(result, Receipt) else None

    def observe(self, observation: NewObservation) -> None:
        """Store what a poll or a submission says; when this returns, it is committed.

        Raises StoreUnavailable.
        """
        self._write(observation)
        _observe_delay(observation.notification, self._clock())

    def record_absence(self, absence: NewAbsence) -> None:
        """Store that the vendor does not know a job, or that it is given up. As `observe`."""
        self._write(absence)

    def count_rejection(self, peer: str, reason: str) -> None:
        """Count a delivery that could not be read as it was sent; who sent it does not wait."""
        network = network_of(peer)
        metrics.REJECTIONS.labels(reason).inc()
        metrics.callbacks("", "", "broken").inc()
        logs.warn_summed(log, "rejected", reason, network, reason=reason, peer=network)
        if self._addresses.seconds_left(network) is None:
            with suppress(StoreUnavailable):  # the counter above has it
                self.writer.submit(NewRejection("", reason, network), _ignore, MINUTE_MS / 1000)

    def _write(self, item: Item) -> Result:
        def submit(done: Callable[[Result], None]) -> None:
            self.writer.submit(item, done, self._settings.answer_within / 1000)

        result = self._wait(submit)
        if isinstance(result, Failed):
            raise StoreUnavailable(result.text)
        return result

    def _wait(self, submit: Callable[[Callable[[T], None]], None]) -> T:
        """Submit, and return the result. Raises StoreUnavailable when time is over."""
        finished = threading.Event()
        results: list[T] = []

        def done(result: T) -> None:
            results.append(result)
            finished.set()

        submit(done)
        if not finished.wait(self._settings.answer_within / 1000):
            raise StoreUnavailable("not committed in time")
        return results[0]

    def _answer(self, judged: Judged, result: Result) -> Receipt | ReceiverError:
        """Count a delivery's result, and say what to answer."""
        delivery = judged.delivery
        if isinstance(result, Receipt):
            self._count_receipt(judged, result)
            return result
        if isinstance(result, Rejected):
            return self._reject(delivery, result.reason)
        is_known = delivery.instance in self._keys.current.instances
        metrics.callbacks(delivery.instance if is_known else "", "", "unavailable").inc()
        self.reason = result.text if result else "nothing was stored"
        return StoreUnavailable(self.reason)

    def _count_receipt(self, judged: Judged, receipt: Receipt) -> None:
        instance = judged.delivery.instance
        # None if this process's keys were not those of the verdict.
        notification = judged.notification or parse(judged.delivery.body)
        answer = "duplicate" if receipt.duplicate else "new"
        metrics.count(metrics.callbacks(instance, notification.kind, answer))
        if not receipt.duplicate:
            _observe_delay(notification, self._clock())
        elif receipt.forgotten:
            metrics.STALE_REPLAYS.labels(instance).inc()
            log.warning("stale replay", instance=instance, kept_as=receipt.event)

    def _reject(self, delivery: Delivery, reason: str) -> ReceiverError:
        peer = network_of(delivery.peer)
        if (seconds := self._addresses.count(peer)) is not None:
            metrics.REJECTIONS.labels(TooManyRejections.reason).inc()
            metrics.callbacks("", "", "ignored").inc()
            message = f"too many rejected deliveries; try again in {seconds} s"
            return TooManyRejections(message, seconds)
        instance = "" if reason == UnknownInstance.reason else delivery.instance
        metrics.REJECTIONS.labels(reason).inc()
        metrics.callbacks(instance, "", "rejected").inc()
        facts = {"reason": reason, "peer": peer, "instance": instance}
        id_ = {"request_id": delivery.request} if delivery.request else {}
        logs.warn_summed(log, "rejected", *facts.values(), **facts, **id_)
        return _REJECTIONS[reason]("the delivery is not proven to be the vendor's")


class _AddressCounts:
    """How often addresses were rejected in their minute: here, and by all nodes as last heard."""

    def __init__(self, limit: int, clock: Callable[[], int]) -> None:
        self._limit, self._clock = limit, clock
        self._counts: dict[str, tuple[int, int]] = {}  # and when the minute is over, ms

    def count(self, peer: str) -> int | None:
        """Count one more; return in how many seconds it is accepted again, or None for now."""
        now = self._clock()
        count, until = self._counts.get(peer, (0, 0))
        if until <= now:
            count, until = 0, now + MINUTE_MS
        self._set(peer, count + 1, until)
        return self.seconds_left(peer)

    def update(self, address: AddressCount) -> None:
        """Take over what all nodes together have counted."""
        if address.count > self._counts.get(address.peer, (0, 0))[0]:
            self._set(address.peer, address.count, self._clock() + address.ends_in)

    def seconds_left(self, peer: str) -> int | None:
        """Return in how many seconds an address is accepted again, or None for now."""
        count, until = self._counts.get(peer, (0, 0))
        left = until - self._clock()
        return max(1, -(-left // 1000)) if count > self._limit and left > 0 else None

    def _set(self, peer: str, count: int, until: int) -> None:
        if len(self._counts) >= MAX_ADDRESSES and peer not in self._counts:
            now = self._clock()
            live = {key: entry for key, entry in self._counts.items() if entry[1] > now}
            self._counts = live if len(live) < MAX_ADDRESSES else {}
        self._counts[peer] = count, until


def _ignore(_result: Result) -> None:
    """Nobody waits for it."""


def _observe_delay(notification: Notification, now: int) -> None:
    """Measure how long after a job's end we knew of it, where the vendor says when that was."""
    if notification.completed_at and is_ending(notification.status):
        by = "callback" if notification.source == "callback" else "poll"
        metrics.learnt_by(by).observe(max(0, now - notification.completed_at) / 1000)
