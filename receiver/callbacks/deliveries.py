"""What arrives, the verdict on it, and what became of it: plain values, which cross processes."""

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import TypeAlias

import msgspec

from receiver.errors import KeyUnusable, SignatureError, UnknownInstance
from receiver.instances.keys import KeySnapshot
from receiver.jobs.projection import NewAbsence, NewObservation
from receiver.lib.ratelimit import network_of
from receiver.openconnectors.notifications import Notification, parse

MAX_HEADERS = 64
MAX_HEADER_BYTES = 8192  # of all that are stored of a delivery
MASKED = "[masked]"

_SECRET = re.compile(r"auth|cookie|credential|key|passw|secret|session|token")
_encode = msgspec.json.Encoder().encode


class Delivery(msgspec.Struct, frozen=True, array_like=True):
    """An HTTP request that arrived, still untrusted. body -- the raw bytes, whole.

    request -- its id, where a proxy that is trusted gave it one. headers -- see `write_headers`.
    """

    instance: str
    body: bytes
    signature: str | None
    webhook_id: str | None
    peer: str
    request: str | None = None
    headers: str | None = None


class Judged(msgspec.Struct, frozen=True, array_like=True, tag="delivery"):
    """A delivery and the verdict on it: which key signed it, or the reason to reject it.

    version -- of the keys it was judged by. sha256, notification -- of its body, if it is right.
    unrecorded -- whether nothing is to be recorded of it if it is rejected.
    """

    delivery: Delivery
    version: int
    key: str = ""
    reason: str = ""
    sha256: bytes = b""
    notification: Notification | None = None
    unrecorded: bool = False


class NewRejection(msgspec.Struct, frozen=True, array_like=True, tag="rejection"):
    """A delivery that was rejected. instance -- '' where it is unknown: then it is only counted.

    size -- of the body in bytes. signature -- the header as it came. body -- kept for another look.
    """

    instance: str
    reason: str
    peer: str
    size: int = 0
    signature: bytes | None = None
    body: bytes | None = None


class Receipt(msgspec.Struct, frozen=True, array_like=True, tag="receipt"):
    """A delivery that is committed. n -- its event's number.

    duplicate -- the body was there before. forgotten -- of its event little but the hash is left.
    """

    n: int
    duplicate: bool = False
    forgotten: bool = False

    @property
    def event(self) -> str:
        """The event's id."""
        return f"{self.n:016x}"

    def json(self) -> bytes:
        """Write the answer to the sender."""
        return b'{"event":"%016x","duplicate":%s}' % (
            self.n,
            b"true" if self.duplicate else b"false",
        )


class Rejected(msgspec.Struct, frozen=True, array_like=True, tag="rejected"):
    """A delivery whose verdict is confirmed: `reason` is the SignatureError's."""

    reason: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """Nothing was stored; the same again later may work."""

    text: str


class AddressCount(msgspec.Struct, frozen=True, array_like=True, tag="address"):
    """How often an address was rejected, over all nodes, in its window. ends_in -- ms."""

    peer: str
    count: int
    ends_in: int


Item: TypeAlias = Judged | NewObservation | NewAbsence | NewRejection
Result: TypeAlias = Receipt | Rejected | Failed | None
JobKey: TypeAlias = tuple[str, str]  # (instance, id)
Identity: TypeAlias = tuple[str, str, bytes]  # of an event: (instance, job or '', sha256)


def judge(keys: KeySnapshot, delivery: Delivery, *, unrecorded: bool = False) -> Judged:
    """Return the delivery with the verdict on it. Costs the same for every instance."""
    try:
        key = keys.verify(delivery.instance, delivery.body, delivery.signature)
    except (SignatureError, KeyUnusable) as error:
        return Judged(delivery, keys.version, reason=error.reason, unrecorded=unrecorded)
    body = delivery.body
    return Judged(
        delivery, keys.version, key, "", hashlib.sha256(body).digest(), parse(body), unrecorded
    )


def job_key_of(item: Item) -> JobKey | None:
    """Return the job that an item is about."""
    if isinstance(item, Judged):
        job = item.notification and item.notification.job
        return (item.delivery.instance, job) if job else None
    if isinstance(item, NewObservation):
        return item.instance, str(item.notification.job)
    if isinstance(item, NewAbsence):
        return item.instance, item.job
    return None


def identity_of(item: Judged) -> Identity:
    """Return what tells the event of a delivery from all others."""
    job = (item.notification and item.notification.job) or ""
    return item.delivery.instance, job, item.sha256


def rejection_of(judged: Judged) -> NewRejection:
    """Return what is recorded of a delivery that is rejected."""
    delivery, signature = judged.delivery, judged.delivery.signature
    facts = judged.reason, network_of(delivery.peer), len(delivery.body)
    if judged.reason == UnknownInstance.reason:
        return NewRejection("", *facts)
    if not signature:
        return NewRejection(delivery.instance, *facts)
    encoded = signature.encode("latin-1", "replace")
    return NewRejection(delivery.instance, *facts, encoded, delivery.body)


def write_headers(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Write a delivery's headers as a JSON object, as they are stored with its event.

    Names are in lower case, several values of one name are joined by commas (RFC 9110, 5.3), and
    what may be a secret is masked. What is beyond MAX_HEADERS or MAX_HEADER_BYTES is left out.
    """
    remaining = MAX_HEADER_BYTES
    values: dict[str, str] = {}
    for name, value in islice(headers, MAX_HEADERS):
        remaining -= len(name) + len(value)
        if remaining < 0:
            break
        key, is_secret = _read_name(name)
        text = MASKED if is_secret else value.decode("latin-1")
        values[key] = f"{values[key]}, {text}" if key in values else text
    return _encode(values).decode()


@lru_cache(1024)
def _read_name(name: bytes) -> tuple[str, bool]:
    key = name.decode("latin-1").lower()
    return key, _SECRET.search(key) is not None
