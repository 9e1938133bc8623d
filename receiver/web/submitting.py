"""Sending what creates a job: written down before it is sent, and after it what it became."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from flask import Response, g

from receiver.errors import StoreError, UpstreamError, UpstreamNonsense, UpstreamUnclear
from receiver.instances import audit
from receiver.instances.tokens import Bearer
from receiver.jobs.projection import NewObservation
from receiver.openconnectors import client as upstream
from receiver.openconnectors.client import Answer, Call
from receiver.openconnectors.notifications import Notification
from receiver.reconcile import followups
from receiver.web import services
from receiver.web.vendor_shapes import passed_on

log = structlog.get_logger()


def send(call: Call) -> Answer:
    """Send a call with the vendor secrets of the instance that this request names."""
    return services().vendor.send(g.vendor.authorization, call)


def submit(call: Call, facts: Notification, client_url: str | None) -> Response:
    """Send a call that creates a job, and answer as the vendor does.

    facts -- what the request tells of the job. client_url -- where its client wants to be told.
    Raises UpstreamError.
    """
    now = services().clock()
    who: Bearer = g.bearer
    with services().database.write() as session:
        submission = followups.begin_submission(
            session,
            {
                "instance": g.instance,
                "at": now,
                "object": facts.object,
                "file": facts.file,
                "submitted": facts.submitted,
                "submitted_by": who.name,
            },
        )
        audit.note(
            session,
            at=now,
            actor=who.name,
            action="upload" if facts.direction == "UPLOAD" else "download",
            subject=f"{g.instance}/{facts.object or ''}",
            detail=facts.file or "",
        )
    with _fate_noted(submission):
        answer = send(call)
        told = upstream.read_status(answer)
    told = told.replace(
        source="submission",
        object=told.object or facts.object,
        direction=told.direction or facts.direction,
        file=facts.file,
        submitted=facts.submitted,
        submitted_at=now,
    )
    observe(
        NewObservation(
            g.instance, told, callback_due=True, client_url=client_url, submission=submission
        )
    )
    return passed_on(answer)


@contextmanager
def _fate_noted(submission: str) -> Iterator[None]:
    try:
        yield
    except (UpstreamUnclear, UpstreamNonsense) as error:
        _end_submission(submission, "unclear")
        raise UpstreamUnclear(
            f"{error}; the job may have been created: look at GET /bulk/jobs before you send again",
            error.status,
        ) from None
    except UpstreamError:
        _end_submission(submission, "refused")
        raise


def _end_submission(submission: str, state: str) -> None:
    try:
        with services().database.write() as session:
            followups.end_submission(session, submission, state)
    except StoreError as error:
        log.warning("a submission's fate could not be written down", error=str(error))


def observe(observation: NewObservation) -> None:
    """Keep what the vendor just answered, if the database can; it has been done in any case."""
    try:
        services().intake.observe(observation)
    except StoreError as error:
        # The vendor has done it: an error now would have the client do it twice.
        log.error(  # noqa: TRY400
            "what the vendor answered could not be stored",
            instance=observation.instance,
            job=observation.notification.job,
            error=str(error),
        )
