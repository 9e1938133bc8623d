"""The rows that the hot path reads and writes, in the order of their statements' parameters."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, TypeAlias

Place: TypeAlias = tuple[str, str]  # of a job: (id, instance)
Entry: TypeAlias = tuple[str, str, int, str, str | None, str, str | None, str | None]
Count: TypeAlias = tuple[str, int, str, int]  # (measure, bucket, instance, n)


class EventRow(NamedTuple):
    """Equal deliveries of a batch: one event, unless it is there already."""

    id: str
    instance: str
    sha256: bytes
    kind: str
    job: str | None
    deliveries: int
    key: str
    size: int
    webhook_id: str | None
    key_version: int


class KeptEvents(NamedTuple):
    """now, version -- the database's time, ms, and of its keys. ids -- what rows are kept as.

    Rows of other versions are not kept. keys -- those whose use was not noted lately. forgotten --
    which of `ids` met an event of which little but the hash was left.
    """

    now: int
    version: int
    ids: Mapping[tuple[str, bytes], str]
    keys: Sequence[str]
    forgotten: AbstractSet[tuple[str, bytes]]


class JobValues(NamedTuple):
    """A job's columns as they are written."""

    registers: str
    revision: int
    events: int
    updated_at: int
    status: str | None
    outcome: str
    object: str | None
    direction: str | None
    learnt_by: str | None
    files_expire_at: int | None
    callback_due: bool
    callback_lost: bool
    client_url: str | None
    errors_at: int | None
    errors_tries: int
    id: str
    instance: str


class StoredJob(NamedTuple):
    """A job's columns as they are read, its row locked."""

    id: str
    instance: str
    registers: str
    revision: int
    events: int
    updated_at: int
    outcome: str
    files_expire_at: int | None
    callback_due: bool
    callback_lost: bool
    client_url: str | None
    errors_at: int | None
    errors_tries: int


class Changes(NamedTuple):
    """All that a batch writes once it is merged. bodies -- (event, bytes)."""

    bodies: Sequence[tuple[str, bytes]]
    jobs: Sequence[JobValues]
    entries: Sequence[Entry]
    counts: Sequence[Count]
