"""The vendor's own paths, answered by us: a relay, not a rewriter.

A request goes on as it came, so a client of the vendor's API need only change hosts and secrets.
What is read of it, and of its answer, is read from a copy. `interface.md` says what is added.
The file of a finished download, which the API has a path for, comes the same way.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.routing import Rule

from receiver.errors import (
    NotFound,
    Overloaded,
    StoreError,
    Unauthenticated,
    VendorNonsense,
    VendorRefused,
    VendorUnreachable,
)
from receiver.instances import registry
from receiver.jobs.failed_records import list_failed_records
from receiver.jobs.job import is_news
from receiver.jobs.projection import NewObservation, facts_of
from receiver.jobs.queries import Filters, JobRecord, find_jobs, list_jobs, open_jobs
from receiver.openconnectors import client, shapes
from receiver.openconnectors.notifications import Notification, json_text, parse_json
from receiver.openconnectors.shapes import Route
from receiver.reconcile import claims
from receiver.web import Services, services
from receiver.web.api import RESULT
from receiver.web.api.jobs import the_job
from receiver.web.api.routes import add_view, check, current_request
from receiver.web.auth import authenticate, record_alone, require_scope
from receiver.web.bodies import spooled, upload_slot
from receiver.web.relay import exchange
from receiver.web.relay.exchange import Question, Reply, json_page, json_response, respond
from receiver.web.relay.submissions import note_fetched, observe, read_status, submit

STATUS_SECONDS = 5  # for the vendor to tell a status
LOOK_SECONDS = 0.1  # between two looks for what others learn
RETRY_AFTER = 2  # seconds, where all places are taken

PASSED_ON = ("GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE")
_FOR_READERS = frozenset({"objects", "status", "errors", "jobs"})
_CREATING = frozenset({"upload", "query", "download"})
H2C = "h2c"  # HTTP/2 in the clear, which Java's client asks for each time
_WHERE = {"job_status": "statuses", "object_name": "objects", "job_direction": "directions"}


def register(app: Flask) -> None:
    """Have an application answer every method below the vendor's base path, and RESULT."""
    add_view(app, RESULT, show_result)
    for path in (shapes.BASE, f"{shapes.BASE}/<anything:_path>"):
        app.url_map.add(Rule(path, endpoint="relay", methods=None))
    app.view_functions["relay"] = lambda _path="": _answer(services())


def _answer(services: Services) -> Response:
    # A wish for HTTP/2 may be ignored (RFC 9110, 7.8); who wants another protocol needs it.
    if request.method == "CONNECT" or request.headers.get("Upgrade", H2C).lower() != H2C:
        raise MethodNotAllowed(PASSED_ON, "CONNECT and upgrades are not passed on")
    question = _question(services)
    kind = question.route.kind
    require_scope(question.bearer, "read" if kind in _FOR_READERS else "operate")
    with ExitStack() as stack:
        if kind in _CREATING:
            stack.enter_context(upload_slot())
        if exchange.has_body():
            limit = services.settings.max_upload_bytes
            question = replace(question, body=stack.enter_context(spooled(limit)))
        answer = _pass_on if request.method == "HEAD" else _ANSWERS.get(kind, _pass_on)
        return answer(services, question)


def _question(services: Services) -> Question:
    """Read this request, but for its body. Raises NotFound, Unauthenticated."""
    target = exchange.target()
    named = shapes.read_authorization(request.headers.get("Authorization", ""))
    if missing := [name for name in ("Element", "User") if name.lower() not in named]:
        raise Unauthenticated(
            f"Authorization names no {' and no '.join(missing)}:"
            " send Element <instance>, User <token>"
        )
    instance = named["element"]
    bearer = authenticate(services, request.remote_addr or "", named["user"])
    secrets = None
    if bearer and bearer.may_see(instance):
        with services.database.read() as session:
            secrets = registry.vendor_secrets(session, services.secret_box, instance)
    if bearer is None or secrets is None:
        raise Unauthenticated("no such instance with vendor secrets, or no such token")
    try:
        method = "GET" if request.method == "HEAD" else request.method
        route = shapes.read_route(method, target.partition("?")[0])
    except ValueError:
        raise NotFound("there is no such path") from None
    return Question(instance, bearer, secrets, route, request.method, target, exchange.headers())


def _pass_on(services: Services, question: Question) -> Response:
    return respond(exchange.send(services.vendor, question))


def _result(services: Services, question: Question) -> Response:
    """Pass on a job's file, and note that it was fetched."""
    reply = exchange.send(services.vendor, question)
    note = partial(note_fetched, services, question.instance, question.job)
    return respond(reply, note if reply.is_file else None)


def _status(services: Services, question: Question) -> Response:
    """Answer where a job stands: from the store if ended, else as the vendor says now."""
    record = _stored(services, question)
    try:
        if record is None or not record.job.ended or record.job.conflict:
            if response := _ask(services, question):
                return response
            record = _stored(services, question) or _wait_until_stored(services, question)
    except VendorUnreachable:
        if record is None:
            raise
    if record is not None:
        facts = facts_of(record.id, record.job)
        return json_response(shapes.write(facts, "v3") | shapes.write(facts, "v2"))
    if response := _ask(services, question):  # whoever asked before learnt nothing
        return response
    raise Overloaded("the vendor is asked for this job already", RETRY_AFTER)


def _wait_until_stored(services: Services, question: Question) -> JobRecord | None:
    """Wait for a job that others ask the vendor for; None if they learn nothing of it."""
    record, deadline = None, time.monotonic() + STATUS_SECONDS
    while record is None and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        record = _stored(services, question)
    return record


def _ask(services: Services, question: Question) -> Response | None:
    """Ask the vendor for a status; None if it was asked for this job a moment ago.

    Raises VendorError, or VendorUnreachable where it is not this instance's turn soon.
    """
    pacer, instance = services.reconciler.pacer, question.instance
    claim = partial(claims.claim_question, key={"instance": instance, "id": question.job})
    if pacer.wait_turn(instance, claim, 1000 * STATUS_SECONDS) is None:
        return None
    reply, status = _learn(services, question, "asked for by a client", STATUS_SECONDS)
    if status is not None:
        both = shapes.both_vocabularies(parse_json(reply.plain or b""))
        reply.replace_body(json_text(both).encode())
    elif reply.status in (429, 503):
        left = shapes.read_retry_after(reply.headers.get("retry-after", ""), time.time())
        with suppress(StoreError):
            pacer.open_circuit(instance, f"the vendor answered {reply.status}", left)
    return respond(reply)


def _learn(
    services: Services, question: Question, note: str, seconds: float | None = None
) -> tuple[Reply, Notification | None]:
    """Pass a request on and store what its answer says of its job; None if it says nothing."""
    asked_at = services.clock()
    reply = exchange.send(services.vendor, question, seconds)
    body = exchange.read(reply, seconds) if reply.ok else None
    status = read_status(body, question.job)
    if status is not None:
        _observe_news(services, question, status, note, asked_at)
    return reply, status


def _errors(services: Services, question: Question) -> Response:
    """Return a page of failed records, from the store where it has them."""
    database, job = services.database, (question.job, question.instance)
    try:
        start, size = shapes.read_page(request.args, exchange.OUR_PAGES)
    except ValueError:
        return _pass_on(services, question)  # only the vendor can tell
    if "fields" in request.args or not list_failed_records(database, *job, 1):
        return _pass_on(services, question)
    records = list_failed_records(database, *job, size + 1, start)
    return json_page([msgspec.Raw(row.entry.encode()) for row in records], start, size)


def _jobs(services: Services, question: Question) -> Response:
    """Return the vendor's job list, and learn from it; ours if the vendor cannot be reached."""
    asked_at = services.clock()
    try:
        reply = exchange.send(services.vendor, question)
        body = exchange.read(reply) if reply.ok else None
    except VendorUnreachable:
        with suppress(ValueError):
            return _stored_jobs(services, question)
        raise
    with suppress(VendorNonsense):
        for job in client.read_jobs(body or b""):
            _observe_news(services, question, job, "found in the vendor's job list", asked_at)
    return respond(reply)


def _stored_jobs(services: Services, question: Question) -> Response:
    """Return a page of the stored jobs. Raises ValueError where only the vendor can."""
    named = shapes.read_where(request.args.get("where"), _WHERE)
    start, size = shapes.read_page(request.args, exchange.OUR_PAGES)
    fields: dict[str, Any] = {_WHERE[name]: [value] for name, value in named.items()}
    filters = Filters(instances=[question.instance], **fields)
    # The vendor's pages may be asked for by number, so those before are read too.
    jobs = list_jobs(services.database, filters, start + size + 1)[start:]
    response = json_page(
        [shapes.write(facts_of(job.id, job.job), "list") for job in jobs], start, size
    )
    response.headers["X-Receiver-Source"] = "store"
    return response


def _cancel(services: Services, question: Question) -> Response:
    """Ask the vendor to end a job."""
    subject, bearer = f"{question.instance}/{question.job}", question.bearer
    record_alone(services, bearer, "cancel", subject)
    reply, _ = _learn(services, question, "answer to a cancel")
    return respond(reply)


def _stored(services: Services, question: Question) -> JobRecord | None:
    records = find_jobs(services.database, question.job, question.instance)
    return next(iter(records), None)


def _observe_news(
    services: Services, question: Question, status: Notification, note: str, asked_at: int
) -> None:
    """Store what the vendor said of a job, unless the store says the same."""
    instance, poll = question.instance, status.replace(source="poll", asked_at=asked_at)
    with services.database.read() as session:
        stored = open_jobs(session, instance, [str(status.job)]).get(str(status.job))
    if (stored and stored.conflict) or is_news(poll, stored, services.clock()):
        observe(services, NewObservation(instance, poll, note))


_ANSWERS: Mapping[str, Callable[[Services, Question], Response]] = {
    **dict.fromkeys(_CREATING, submit),
    "status": _status,
    "errors": _errors,
    "jobs": _jobs,
    "cancel": _cancel,
    "result": _result,
}


def show_result(id_: str) -> Response:
    """Give a job's file in its own format, or in the one that `Accept` names.

    Not with the API's other routes: the answer has any length.
    """
    checked = check(services(), current_request(id_), RESULT.query)
    record = the_job(services(), checked)
    object_name, ended = record.job.text("object"), record.job.ended
    if not ended or not object_name:
        missing = "does not tell its object" if ended else "has not ended"
        raise NotFound(f"job {id_} {missing}, so there is no file to fetch")
    with services().database.read() as session:
        secrets = registry.vendor_secrets(session, services().secret_box, record.instance)
    if secrets is None:
        raise NotFound(f"{record.instance} has no vendor secrets to fetch a file with")
    accept = request.headers.get("Accept", "*/*")
    for accepted in client.ACCEPTED if accept == "*/*" else (accept,):
        question = Question(
            record.instance,
            checked.bearer,
            secrets,
            Route("result", id_, object_name),
            "GET",
            client.result_call(id_, object_name, accepted, secrets.hub).path,
            [(b"Accept", accepted.encode("latin-1", "replace"))],
        )
        reply = exchange.send(services().vendor, question)
        if reply.status not in client.WRONG_FORMAT:
            break
    if reply.status < 400 and not reply.is_file:
        reply.answer.close()
        kind = reply.headers.get("content-type", "no type")
        raise VendorNonsense(f"the vendor answered {reply.status} and {kind}, which is no file")
    if not reply.ok:
        message = client.error_message(reply.body) or f"the vendor answered {reply.status}"
        raise VendorRefused(message, reply.status)
    note = partial(note_fetched, services(), record.instance, id_)
    return respond(reply, note)
