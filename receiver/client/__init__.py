"""A client of the receiver: jobs submitted, waited for and read, typed, sync and async.

    with Client("https://hooks.example.com", token) as client:
        job = client.wait(client.submit("contacts.csv", object="contact", instance="gooddata"))
        job.raise_for_outcome()

A job is named by its id, or by what `submit` or `job` returned. Methods raise ClientError.
"""

from receiver.client.answers import (
    Callback,
    ErrorGroup,
    ErrorPage,
    Job,
    JobPage,
    Missed,
    Records,
    Submission,
)
from receiver.client.clients import AsyncClient, Client
from receiver.client.errors import (
    ClientError,
    CredentialsRejected,
    NoSuchInstance,
    NoSuchJob,
    NotFound,
    NotSucceeded,
    RequestRejected,
    UnclearSubmission,
    Unreachable,
    VendorRejected,
)

__all__ = [
    "AsyncClient",
    "Callback",
    "Client",
    "ClientError",
    "CredentialsRejected",
    "ErrorGroup",
    "ErrorPage",
    "Job",
    "JobPage",
    "Missed",
    "NoSuchInstance",
    "NoSuchJob",
    "NotFound",
    "NotSucceeded",
    "Records",
    "RequestRejected",
    "Submission",
    "UnclearSubmission",
    "Unreachable",
    "VendorRejected",
]
