"""What a receiver answers. Facts that this release does not know are passed over."""

import json
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from receiver.client.errors import NotSucceeded

T = TypeVar("T")

_IN_PROGRESS = ("pending", "unknown")


class Records(Struct, frozen=True):
    """Numbers of records; None is unknown. reported -- the vendor's own count, as it came."""

    submitted: int | None = None
    loaded: int | None = None
    failed: int | None = None
    reported: int | None = None


class Job(Struct, frozen=True):
    """A bulk job as it is known now; times are ISO 8601, UTC.

    outcome -- pending, succeeded, partial, failed, cancelled, lost or unknown. status -- the
    vendor's word.
    """

    id: str
    instance: str
    status: str | None
    outcome: str
    object: str | None
    direction: str | None
    file: str | None
    records: Records
    message: str | None
    learnt_by: str | None
    submitted_at: str | None
    created_at: str | None
    ended_at: str | None
    updated_at: str
    files_expire_at: str | None
    conflict: bool
    overdue: bool
    callback_payload: Any
    events: int

    @property
    def ended(self) -> bool:
        """Whether it has an outcome that stays unless the vendor reports another."""
        return self.outcome not in _IN_PROGRESS

    def raise_for_outcome(self) -> None:
        """Raise NotSucceeded unless all records were loaded."""
        if self.outcome != "succeeded":
            raise NotSucceeded(self)


class JobPage(Struct, frozen=True):
    """Jobs, newest change first. next -- the `cursor` of the page after; None at the end."""

    jobs: list[Job]
    next: str | None


class ErrorGroup(Struct, frozen=True):
    """Failed records of one cause: how many, and the first few."""

    message: str
    count: int
    examples: list[Any]


class ErrorPage(Struct, frozen=True):
    """Failed records as the vendor gave them, and all of the job's by cause."""

    errors: list[Any]
    groups: list[ErrorGroup]
    next: str | None = None


class Submission(Struct, frozen=True):
    """A job that the vendor has just created. answer -- the vendor's, as it came."""

    id: str
    instance: str
    status: str | None
    answer: Any


class Callback(Struct, frozen=True):
    """A verified callback as it came. headers -- secrets are masked; None if none were stored."""

    id: str
    instance: str
    kind: str
    job: str | None
    received_at: str
    webhook_id: str | None
    headers: dict[str, str] | None
    body: bytes


class Missed(Struct, frozen=True):
    """Callbacks that a stream should have had: why it has not, and which it is if it is one."""

    reason: str
    detail: str
    event: str | None = None
    instance: str | None = None
    job: str | None = None


def decode(content: bytes, shape: type[T]) -> T:
    """Read JSON. Raises MsgspecError, ValueError or RecursionError."""
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.MsgspecError:
        # What the vendor sent may hold any number, such as 1e400, and comes back as it was.
        return msgspec.convert(json.loads(content, parse_int=_number, parse_float=_number), shape)


def _number(text: str) -> float | str:
    """Read a number; one that Python does not hold stays text."""
    try:
        return msgspec.json.decode(text, type=int | float)
    except msgspec.MsgspecError:
        return text
