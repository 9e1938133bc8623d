"""Sending what creates a job: recorded before it is sent, and after it what it became."""

import codecs
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from flask import Response, request

from receiver.errors import (
    BadParameter,
    BodyTooLarge,
    CredentialError,
    StoreError,
    VendorError,
    VendorNonsense,
    VendorUnclear,
)
from receiver.jobs.projection import NewObservation
from receiver.openconnectors import client, shapes
from receiver.openconnectors.client import UPLOAD_SECONDS
from receiver.openconnectors.notifications import UNSTORABLE, Notification, Number, parse_json
from receiver.openconnectors.shapes import CALLBACK_URL_HEADER
from receiver.reconcile import claims
from receiver.reconcile.submissions import begin_submission, end_submission
from receiver.web import Services
from receiver.web.auth import record_action
from receiver.web.bodies import count_upload, form_field
from receiver.web.relay import exchange
from receiver.web.relay.exchange import Question, respond

log = structlog.get_logger()

MAX_JSON = 2**20  # bytes of a download's order, in which our callback URL is written


def submit(services: Services, question: Question) -> Response:
    """Send what creates a job: recorded before it is sent, and after it what it became."""
    question, facts, url = _order(services, question)
    id_ = _begin(services, question, facts)
    state = "unclear"
    try:
        reply = exchange.send(services.vendor, question, UPLOAD_SECONDS)
        body = exchange.read(reply)
        if reply.ok and (created := read_status(body)):
            created = created.replace(
                source="submission",
                submitted=facts.submitted,
                submitted_at=facts.submitted_at,
                file=facts.file,
                object=created.object or facts.object,
                direction=created.direction or facts.direction,
            )
            observation = NewObservation(
                question.instance, created, callback_due=True, client_url=url, submission=id_
            )
            observe(services, observation)
            state = "taken"
        elif reply.status >= 400 and reply.status != 504:
            state = "refused"
        return respond(reply)
    except VendorUnclear as error:
        advice = "look at GET /bulk/jobs before you send again"
        message = f"{error}; the job may have been created: {advice}"
        raise VendorUnclear(message, error.status) from None
    except VendorError:
        state = "refused"
        raise
    finally:
        if state != "taken":
            _end(services, id_, state)


def _order(services: Services, question: Question) -> tuple[Question, Notification, str | None]:
    """Return what is sent, with our callback URL; what it says of the job; the client's URL.

    Raises BadParameter for a callback URL of the client's that can never be called.
    """
    ours = _callback_url(services, question.instance)
    client_url: object = request.headers.get(CALLBACK_URL_HEADER)
    question = question.with_header(CALLBACK_URL_HEADER, ours)
    facts = Notification("bulk_job", direction="DOWNLOAD", source="submission")
    facts = facts.replace(submitted_at=services.clock())
    if question.route.kind == "upload":
        count = count_upload(question.body, request.headers) if question.body else None
        file = _storable(request.args.get("path"))
        object_ = question.route.object
        facts = facts.replace(direction="UPLOAD", file=file, submitted=count)
    elif question.route.kind == "query":
        query = request.args.get("q") or form_field(question.body, request.headers, "q")
        object_ = shapes.queried_object(query or "")
    else:
        question, order = _with_notification_url(question, ours)
        client_url = order.get("notificationUrl", client_url)
        name = order.get("objectName")
        object_ = name if isinstance(name, str) else None
    facts = facts.replace(object=_storable(object_))
    if client_url in (None, ours):
        return question, facts, None
    if not isinstance(client_url, str) or isinstance(client_url, Number):
        raise BadParameter("notificationUrl must be a URL")
    if "://" not in client_url:  # the vendor's own clients send what it resolves within
        log.info("a callback URL without a scheme is not called", instance=question.instance)
        return question, facts, None
    services.safe_http.check(client_url)
    return question, facts, client_url


def _callback_url(services: Services, instance: str) -> str:
    base = services.settings.public_url
    if base is None:
        raise CredentialError(
            "RECEIVER_PUBLIC_URL is not set, so the vendor cannot call back: set it to the URL"
            " under which the vendor reaches this receiver, and restart it"
        )
    return f"{base}/callbacks/{instance}"


def _begin(services: Services, question: Question, facts: Notification) -> str:
    """Record what is about to be sent. Raises StoreError; then nothing is sent."""
    submission = {
        "instance": question.instance,
        "at": facts.submitted_at,
        "object": facts.object,
        "file": facts.file,
        "submitted": facts.submitted,
        "submitted_by": question.bearer.name,
    }
    with services.database.write() as session:
        id_ = begin_submission(session, submission)
        # Not the file's name, which may be about people: nothing erases the audit.
        action = "upload" if facts.direction == "UPLOAD" else "download"
        subject, detail = f"{question.instance}/{facts.object or ''}", f"submission {id_}"
        record_action(services, question.bearer, session, action, subject, detail=detail)
        return id_


def _end(services: Services, submission: str, state: str) -> None:
    try:
        with services.database.write() as session:
            end_submission(session, submission, state)
    except StoreError as error:
        log.warning("what became of a submission could not be recorded", error=str(error))


def observe(services: Services, observation: NewObservation) -> None:
    """Keep what the vendor said, if the database can; it has been done in any case."""
    try:
        services.intake.observe(observation)
    except StoreError as error:
        # The vendor has done it: an error now would have the client do it twice.
        log.error(  # noqa: TRY400
            "what the vendor answered could not be stored",
            instance=observation.instance,
            job=observation.notification.job,
            error=str(error),
        )


def note_fetched(services: Services, instance: str, job: str) -> None:
    """Note that a job's file was passed on whole, if the database can."""
    with suppress(StoreError), services.database.write() as session:
        claims.note_fetched(session, job, instance, services.clock())


def read_status(body: bytes | None, job: str | None = None) -> Notification | None:
    """Read a job's status; None if the answer has none."""
    try:
        return client.read_status(body or b"", job)
    except VendorNonsense:
        return None


def _with_notification_url(question: Question, url: str) -> tuple[Question, dict[str, Any]]:
    """Write our callback URL into a download's order, and return that as it came.

    What is no JSON object is passed on as it is: the vendor says what is wrong with it.
    Raises BodyTooLarge.
    """
    if question.body is None:
        return question, {}
    content = question.body.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise BodyTooLarge(f"a download's order has more than {MAX_JSON} bytes")
    text = content.removeprefix(codecs.BOM_UTF8)  # Windows' editors and PowerShell write it
    try:
        order = parse_json(text)
        members = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return question, {}
    members["notificationUrl"] = msgspec.Raw(msgspec.json.encode(url))
    question.body.seek(0)
    question.body.truncate()
    question.body.write(content.removesuffix(text) + msgspec.json.encode(members))
    return question, order


def _storable(text: str | None) -> str | None:
    return text and UNSTORABLE.sub("\ufffd", text)
