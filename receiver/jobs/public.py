"""What people and programs are shown: of a job, and how it is made of what is stored."""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import fields

from receiver.jobs.job import Outcome
from receiver.jobs.queries import JobRecord
from receiver.lib.clock import iso

# A time of the API: ISO 8601, UTC.
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
_TIMES = (Time, Time | None)

M = TypeVar("M", bound=Struct)


def from_record(record: object, model: type[M], **others: object) -> M:
    """Make a model of a record with the same names, its times (ms) as they are shown.

    others -- the fields that differ, or that the record does not have.
    """
    for field in fields(model):
        if field.name not in others:
            value = getattr(record, field.name)
            others[field.name] = iso(value) if field.type in _TIMES else value
    return model(**others)


class Records(Struct):
    """Numbers of records; null is unknown."""

    submitted: int | None
    loaded: int | None
    failed: int | None
    reported: Annotated[
        int | None, Meta(description="The vendor's own count, as it came: of all or of the loaded")
    ]


class Job(Struct):
    """A bulk job as it is known now. `status` is the vendor's word, `outcome` is ours."""

    id: str
    instance: str
    status: str | None
    outcome: Outcome
    object: str | None
    direction: str | None
    file: str | None
    records: Records
    message: str | None
    learnt_by: Literal["callback", "poll"] | None
    submitted_at: Time | None
    created_at: Time | None
    ended_at: Time | None
    updated_at: Time
    files_expire_at: Time | None
    conflict: bool
    overdue: bool
    callback_payload: Any
    events: int


def public_job(record: JobRecord, now: int, overdue_after: int) -> Job:
    """Return a job as it is now, ms. overdue_after -- ms, where its usual time is not known."""
    job = record.job
    payload = job.text("callback_payload")
    return Job(
        record.id,
        record.instance,
        job.status,
        record.outcome,
        job.text("object"),
        job.text("direction"),
        job.text("file"),
        Records(job.submitted, job.loaded, job.failed, job.reported),
        job.text("message"),
        record.learnt_by,
        iso(job.submitted_at),
        iso(job.created_at),
        iso(job.ended_at),
        str(iso(record.updated_at)),
        iso(record.files_expire_at),
        job.conflict,
        record.overdue_by(now, overdue_after) is not None,
        payload and msgspec.Raw(payload.encode()),
        record.events,
    )
