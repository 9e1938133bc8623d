"""Distinct signed bodies of about 950 bytes, written to files beforehand.

A line is the signature, a blank and the body. Shapes alternate among those of the vendor's surfaces
(bulk v2, bulk v3, the job list). All of them say that a job has ended: each is another job's
(`new`; `uuid`, with ids that do not grow), four of five are about a job that is known (`later`), or
each fifth is about the job before it (`vendor`).
"""

import hashlib
import hmac
import json
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

KEY = b"a key for the bench, long enough"
FIRST_JOB = 42_000_000
LATER = 2_000  # jobs that are told of again together
_OBJECTS = ("contact", "account", "opportunity", "lead", "invoice")
_BEGAN = 1_760_000_000_000  # ms; any time will do


class Style(NamedTuple):
    """How a peer wants callbacks: header, the signature of a body, which body, and its identity."""

    header: str
    sign: Callable[[bytes], str]
    make: Callable[[int], bytes]
    identity: Callable[[bytes], bytes | str]


def vendor_body(number: int) -> bytes:
    """The `number`-th notification: equal numbers give equal bytes, others others."""
    return _body(number, number - 1 if number % 5 == 4 else number)


def new_body(number: int) -> bytes:
    """As `vendor_body`, each about another job."""
    return _body(number, number)


def later_body(number: int) -> bytes:
    """As `vendor_body`: LATER jobs are told of once, and then four times more."""
    return _body(number, number // (5 * LATER) * LATER + number % LATER)


def uuid_body(number: int) -> bytes:
    """As `new_body`, with ids in no order."""
    job = uuid.UUID(bytes=hashlib.sha256(b"%d" % number).digest()[:16], version=4)
    return _body(number, number, str(job))


def _body(number: int, place: int, id_: str | None = None) -> bytes:
    """The `number`-th notification, about the `place`-th job. id_ -- in its number's place."""
    job = FIRST_JOB + place
    status = "ERROR" if place % 13 == 0 else "COMPLETED"  # no two contradict each other
    loaded, failed = 1000 + number % 977, number % 7 if number % 10 == 0 else 0
    words = _filling(number)
    body = (_v2, _v3, _listed)[job % 3](job, status, loaded, failed, words)
    if id_ is not None:
        body["id"] = id_
    body["callback-payload"] = {"batch": f"nightly-{number}", "trace": words[200:620]}
    return json.dumps(body).encode()


def _v2(job: int, status: str, loaded: int, failed: int, words: str) -> dict[str, object]:
    return {
        "id": str(job),
        "status": status,
        "instanceId": 409_000 + job % 50,
        "recordsCount": loaded,
        "recordsFailedCount": failed,
        "error": f"{failed} records were not loaded: {words[:180]}",
        "message": f"The job has ended: {words[:100]}",
    }


def _v3(job: int, status: str, loaded: int, failed: int, words: str) -> dict[str, object]:
    return {
        "id": job,
        "jobStatus": status,
        "objectName": _OBJECTS[job % 5],
        "jobDirection": "UPLOAD",
        "recordCount": loaded,
        "errorCount": failed,
        "statusMessage": f"The job has ended: {words[:180]}",
        "createdDate": _BEGAN + job % 1_000_000,
        "completionTime": _BEGAN + 60_000 + job % 1_000_000,
        "fileFormat": "csv",
        "vendorJobId": f"{409_000 + job % 50}-{job}",
    }


def _listed(job: int, status: str, loaded: int, failed: int, words: str) -> dict[str, object]:
    return {
        "id": job,
        "status": status,
        "job_state": status,
        "object_name": _OBJECTS[job % 5],
        "job_direction": "DOWNLOAD",
        "record_count": loaded,
        "error_count": failed,
        "message": words[:180],
        "createdDate": _BEGAN + job % 1_000_000,
        "completion_time": _BEGAN + 60_000 + job % 1_000_000,
        "instanceId": 409_000 + job % 50,
        "fileFormat": "csv",
    }


def stripe_body(number: int) -> bytes:
    """A Stripe event of a type that dj-stripe stores and does nothing more about."""
    words = _filling(number)
    return json.dumps(
        {
            "id": f"evt_{number:024d}",
            "object": "event",
            "api_version": "2020-08-27",
            "created": 1_760_000_000 + number,
            "data": {
                "object": {"id": f"job_{number}", "object": "bench.job", "trace": words[:620]}
            },
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": f"req_{number}", "idempotency_key": words[:36]},
            "type": "bench.job.ended",
        }
    ).encode()


def _filling(number: int) -> str:
    """Text of 640 characters that no two numbers share."""
    return "".join(hashlib.sha256(b"%d/%d" % (number, part)).hexdigest() for part in range(10))


def _digest(body: bytes) -> bytes:
    return hmac.digest(KEY, body, "sha256")


def _stripe_signature(body: bytes) -> str:
    now = str(int(time.time()))
    return f"t={now},v1={hmac.digest(KEY, now.encode() + b'.' + body, 'sha256').hex()}"


def _sha256(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def _vendors(make: Callable[[int], bytes]) -> Style:
    return Style("Elements-Webhook-Signature", _signature, make, _sha256)


def _signature(body: bytes) -> str:
    return "sha256=" + b64encode(_digest(body)).decode()


STYLES = {
    "vendor": _vendors(vendor_body),
    "new": _vendors(new_body),
    "later": _vendors(later_body),
    "uuid": _vendors(uuid_body),
    "stripe": Style(
        "Stripe-Signature", _stripe_signature, stripe_body, lambda body: json.loads(body)["id"]
    ),
}


class Bodies:
    """Files of bodies in `folder`, each written when it is first asked for.

    counts -- how many bodies of each style.
    """

    def __init__(self, folder: Path, counts: Mapping[str, int]) -> None:
        self._folder, self._counts = folder, counts

    def file(self, style: str) -> Path:
        """The file of a style's signed bodies."""
        path = self._folder / f"bodies-{style}"
        if not path.exists():
            sign, make = STYLES[style].sign, STYLES[style].make
            with path.open("wb") as file:
                for number in range(self._counts[style]):
                    body = make(number)
                    file.write(b"%s %s\n" % (sign(body).encode(), body))
        return path

    def identities(self, style: str, end: int) -> set[bytes | str]:
        """What tells the bodies apart that were sent before the byte `end` was reached."""
        identity = STYLES[style].identity
        return {identity(body) for body in self._until(style, end)}

    def _until(self, style: str, end: int) -> Iterator[bytes]:
        with self.file(style).open("rb") as file:
            while end > 0:
                line = file.readline()
                end -= len(line)
                yield line.rstrip(b"\n").partition(b" ")[2]
