"""Errors of the client.

ClientError                     `code` for programs; the text says what to do
├── Unreachable                 no answer, or none of a receiver that works: it may be asked again
├── CredentialsRejected         the token is unknown, expired or may not do this
├── RequestRejected             to send the same again would change nothing
│   └── NotFound
│       ├── NoSuchJob
│       └── NoSuchInstance      the text names those that exist
├── VendorRejected              the vendor rejects the credentials it is asked with, or has us wait
├── UnclearSubmission           the job may have been created: look before you send again
└── NotSucceeded                `job` ended otherwise, or has not ended (Job.raise_for_outcome)
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from receiver.client.answers import Job


class ClientError(Exception):
    """Base of all. code -- as in the API's problem documents, or the client's own."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(ClientError):
    """The receiver does not answer, or not as one that works; wait() goes on after it."""


class CredentialsRejected(ClientError):
    """The token is unknown, expired, or limited to other instances or a lesser scope."""


class RequestRejected(ClientError):
    """The request cannot be answered as it is: correct it first."""


class NotFound(RequestRejected):
    """There is no such thing, or the token does not see it."""


class NoSuchJob(NotFound):
    """There is no job of that id, or not yet."""

    def __init__(self, job_id: str, instance: str | None) -> None:
        place = f" of {instance}" if instance is not None else ""
        super().__init__(
            f"there is no job {job_id}{place}: `receiver jobs` lists them", "not_found"
        )


class NoSuchInstance(NotFound):
    """There is no instance of that name."""

    def __init__(self, name: str, instances: Iterable[str]) -> None:
        there = ", ".join(sorted(instances)) or "none yet"
        text = f"there is no instance {name}; the instances are: {there}"
        super().__init__(text, "no_instance")


class VendorRejected(ClientError):
    """The vendor rejects the receiver's credentials for the instance, or takes no request now."""


class UnclearSubmission(ClientError):
    """The vendor's answer names no job, though it may have created one."""


class NotSucceeded(ClientError):
    """A job's outcome is another than `succeeded`; it is at hand as `job`."""

    def __init__(self, job: "Job") -> None:
        counts = f"{job.records.failed} of {job.records.submitted} records failed"
        why = job.message or (counts if job.outcome == "partial" else job.status)
        text = f"job {job.id} of {job.instance} is {job.outcome}: {why}"
        super().__init__(text, f"job_{job.outcome}")
        self.job = job
