"""The vendor's own paths, answered by us: a relay, not a rewriter.

A request goes on as it came, so a client of the vendor's API need only change hosts and secrets.
What is read of it, and of its answer, is read from a copy. `interface.md` says what is added.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog
from flask import Flask, Response, request
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.routing import Rule

from receiver.database import audit
from receiver.database.engine import database_time
from receiver.errors import (
    NotFound,
    Overloaded,
    StoreError,
    Unauthenticated,
    UpstreamNonsense,
    UpstreamUnreachable,
)
from receiver.instances import registry
from receiver.jobs.failed_records import list_failed_records
from receiver.jobs.job import Job
from receiver.jobs.projection import NewObservation
from receiver.jobs.queries import Filters, JobRecord, find_jobs, list_jobs
from receiver.openconnectors import client, shapes
from receiver.openconnectors.client import Answer
from receiver.openconnectors.notifications import Notification, document, json_text
from receiver.openconnectors.shapes import JobFacts
from receiver.reconcile import claims
from receiver.web import Services, exchange
from receiver.web.auth import authenticate, require_scope
from receiver.web.exchange import Caller, Question, Reply, json_page, json_response, respond
from receiver.web.submissions import Submitter, note_fetched, observe, read_status

log = structlog.get_logger()

STATUS_SECONDS = 5  # for the vendor to tell a status, and between two questions for one job
RETRY_AFTER = 2  # seconds, where all places are taken

PASSED_ON = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
_FOR_READERS = frozenset({"objects", "status", "errors", "jobs"})
_CREATING = frozenset({"upload", "query", "download"})
_WHERE = {"job_status": "statuses", "object_name": "objects", "job_direction": "directions"}


class Relay:
    """Answers requests below the vendor's base path."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._unknown = _OneAtATime()
        self._answers: dict[str, Callable[[Question], Response]] = {
            **dict.fromkeys(_CREATING, Submitter(services).submit),
            "status": self._status,
            "errors": self._errors,
            "jobs": self._jobs,
            "cancel": self._cancel,
            "result": self._result,
        }

    def register(self, app: Flask) -> None:
        """Have an application answer every method below the base path."""
        for path in (shapes.BASE, f"{shapes.BASE}/<anything:_path>"):
            app.url_map.add(Rule(path, endpoint="relay", methods=None))
        app.view_functions["relay"] = self.respond

    def respond(self, _path: str = "") -> Response:
        """Answer this request."""
        if request.method in ("CONNECT", "TRACE") or "Upgrade" in request.headers:
            message = "CONNECT, TRACE and upgrades are not passed on"
            raise MethodNotAllowed(PASSED_ON, message)
        target, caller = exchange.target(), self._caller()
        try:
            method = "GET" if request.method == "HEAD" else request.method
            route = shapes.read_route(method, target.partition("?")[0])
        except ValueError:
            raise NotFound("there is no such path") from None
        require_scope(caller.bearer, "read" if route.kind in _FOR_READERS else "operate")
        with ExitStack() as stack:
            if route.kind in _CREATING:
                stack.enter_context(exchange.upload_place())
            question = Question(caller, route, request.method, target, exchange.headers())
            if exchange.has_body():
                limit = self._services.settings.max_upload_bytes
                question = replace(question, body=stack.enter_context(exchange.spooled(limit)))
            answer = self._answers.get(route.kind, self._pass_on)
            return (self._pass_on if request.method == "HEAD" else answer)(question)

    def _caller(self) -> Caller:
        try:
            named = shapes.read_authorization(request.headers.get("Authorization", ""))
        except ValueError:
            named = {}
        if missing := [name for name in ("Element", "User") if name.lower() not in named]:
            raise Unauthenticated(
                f"Authorization names no {' and no '.join(missing)}:"
                " send Element <instance>, User <token>"
            )
        instance = named["element"]
        bearer = authenticate(self._services, request.remote_addr or "", named["user"])
        secrets = None
        if bearer and bearer.may_see(instance):
            with self._services.database.read() as session:
                secrets = registry.vendor_secrets(session, self._services.secret_box, instance)
        if bearer is None or secrets is None:
            raise Unauthenticated("no such instance with vendor secrets, or no such token")
        return Caller(instance, bearer, secrets)

    def _send(self, question: Question, seconds: float | None = None) -> Reply:
        return exchange.send(self._services.vendor, question, seconds)

    def _pass_on(self, question: Question) -> Response:
        return respond(self._send(question), question)

    def _result(self, question: Question) -> Response:
        """Pass on a job's file, and note that it was fetched."""
        reply = self._send(question)
        note = partial(note_fetched, self._services, question.instance, question.job)
        return respond(reply, question, note if reply.ok else None)

    def _status(self, question: Question) -> Response:
        """Tell where a job stands: an ended one from the store, another as the vendor says now."""
        key = question.instance, question.job
        # A job that was unknown is stored a moment before it is claimed: until then others wait.
        if (record := self._stored(question)) and not self._unknown.is_held(key):
            return self._known_status(question, record)
        # Of those who ask for an unknown job at a time, one asks the vendor.
        with self._unknown.hold(key, STATUS_SECONDS):
            if record := self._stored(question):
                return self._known_status(question, record)
            response = self._ask(question, None)
            record = self._stored(question)
        if response is not None:
            return response
        if record is None:
            raise Overloaded("the vendor is asked for this job already", RETRY_AFTER)
        return self._known_status(question, record)

    def _known_status(self, question: Question, record: JobRecord) -> Response:
        response = None
        if not record.job.ended or record.job.conflict:
            with suppress(UpstreamUnreachable):
                response = self._ask(question, record)
        if response is None:
            facts = _facts(self._stored(question) or record)
            response = json_response(shapes.write(facts, "v3") | shapes.write(facts, "v2"))
        return response

    def _ask(self, question: Question, record: JobRecord | None) -> Response | None:
        """Ask the vendor for a status; None if it was asked for this job a moment ago.

        Raises UpstreamError, or UpstreamUnreachable where it is not this instance's turn soon.
        """
        services, instance = self._services, question.instance

        pacer, wait = services.reconciler.pacer, 1000 * STATUS_SECONDS
        claim = partial(
            claims.claim_status,
            key={"instance": instance, "id": question.job},
            overdue_after=services.settings.overdue_after,
            interval=wait,
        )
        if pacer.wait_turn(instance, claim if record else None, wait) is None:
            return None
        if record is None and self._stored(question):
            return None  # another node has asked while this one waited for its turn
        reply, status = self._learn(question, "asked for by a client", STATUS_SECONDS)
        if status is not None:
            if record is None:
                with suppress(StoreError), services.database.write() as session:
                    claim(session, database_time(session, services.clock))
            both = shapes.both_vocabularies(document(reply.body))
            reply.replace_body(json_text(both).encode())
        elif reply.status in (429, 503):
            left = shapes.read_retry_after(reply.headers.get("retry-after", ""), time.time())
            with suppress(StoreError):
                pacer.open_circuit(instance, f"the vendor answered {reply.status}", left)
        return respond(reply, question)

    def _learn(
        self, question: Question, note: str, seconds: float | None = None
    ) -> tuple[Reply, Notification | None]:
        """Pass a request on and store what its answer says of its job; None if it says nothing."""
        asked_at = self._services.clock()
        reply = self._send(question, seconds)
        body = exchange.read(reply, question, seconds) if reply.ok else None
        status = read_status(body, question.job)
        if status is not None:
            if body is not None and reply.body != body:
                reply.replace_body(body)
            self._observe_news(question, status, note, asked_at)
        return reply, status

    def _errors(self, question: Question) -> Response:
        """Give a page of failed records, from the store where it has them."""
        if (page := _page_of_ours()) is None or "fields" in request.args:
            return self._pass_on(question)
        start, size = page
        job, instance = question.job, question.instance
        database = self._services.database
        records = list_failed_records(database, job, instance, size + 1, start)
        if not records and not list_failed_records(database, job, instance, 1):
            return self._pass_on(question)
        entries = [msgspec.Raw(row.entry.encode()) for row in records[:size]]
        return json_page(entries, start + size if len(records) > size else None)

    def _jobs(self, question: Question) -> Response:
        """Give the vendor's job list, and learn from it; ours if the vendor cannot be reached."""
        asked_at = self._services.clock()
        try:
            reply = self._send(question)
            body = exchange.read(reply, question) if reply.ok else None
        except UpstreamUnreachable:
            response = self._stored_jobs(question)
            if response is None:
                raise
            return response
        with suppress(UpstreamNonsense):
            for job in client.read_jobs(Answer(body or b"", None, "")):
                self._observe_news(question, job, "found in the vendor's job list", asked_at)
        return respond(reply, question)

    def _stored_jobs(self, question: Question) -> Response | None:
        where, page = request.args.get("where"), _page_of_ours()
        try:
            named = {} if where is None else shapes.read_where(where, _WHERE)
        except ValueError:
            return None
        if page is None:
            return None
        start, size = page
        fields: dict[str, Any] = {_WHERE[name]: [value] for name, value in named.items()}
        filters = Filters(instances=[question.instance], **fields)
        # The vendor's pages may be asked for by number, so those before are read too.
        jobs = list_jobs(self._services.database, filters, start + size + 1)[start:]
        entries = [shapes.write(_facts(job), "list") for job in jobs[:size]]
        response = json_page(entries, start + size if len(jobs) > size else None)
        response.headers["X-Receiver-Source"] = "store"
        return response

    def _cancel(self, question: Question) -> Response:
        """Ask the vendor to end a job."""
        subject, now = f"{question.instance}/{question.job}", self._services.clock()
        actor = question.caller.bearer.name
        with self._services.database.write() as session:
            audit.record(session, at=now, actor=actor, action="cancel", subject=subject)
        reply, _ = self._learn(question, "answer to a cancel")
        return respond(reply, question)

    def _stored(self, question: Question) -> JobRecord | None:
        records = find_jobs(self._services.database, question.job, question.instance)
        return next(iter(records), None)

    def _observe_news(
        self, question: Question, status: Notification, note: str, asked_at: int
    ) -> None:
        """Store what the vendor said of a job, unless the store says the same."""
        records = find_jobs(self._services.database, str(status.job), question.instance)
        job = records[0].job if records else Job()
        news = status.status, status.failed or job.failed
        if job.conflict or (job.status, job.failed) != news:
            poll = status.replace(source="poll", asked_at=asked_at)
            observe(self._services, NewObservation(question.instance, poll, note))


class _OneAtATime:
    """A lock for each key that somebody holds or waits for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()

    def is_held(self, key: Hashable) -> bool:
        """Whether somebody holds a key or waits for it."""
        return key in self._locks

    @contextmanager
    def hold(self, key: Hashable, seconds: float) -> Iterator[None]:
        """Hold a key alone. Raises Overloaded if others do for longer."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        if not lock.acquire(timeout=seconds):
            raise Overloaded("the vendor is asked for this job already", RETRY_AFTER)
        try:
            yield
        finally:
            lock.release()


def _page_of_ours() -> tuple[int, int] | None:
    """Where the page of this request starts and its size; None if only the vendor can tell."""
    args = request.args
    try:
        size = shapes.read_page_size(args.get("pageSize"))
        token = args.get("nextPage", "r0")
        start = int(token[1:]) if token[:1] == "r" and len(token) < 12 else None
        if start == 0 and "page" in args:
            start = size * shapes.read_page(args["page"])
    except ValueError:
        return None
    return None if start is None else (start, size)


def _facts(record: JobRecord) -> JobFacts:
    job = record.job
    none_yet = None if job.ended else 0
    return JobFacts(
        id=record.id,
        status=job.status,
        reported=none_yet if job.reported is None else job.reported,
        failed=none_yet if job.failed is None else job.failed,
        message=job.text("message"),
        object=job.text("object"),
        direction=job.text("direction"),
        created_at=job.created_at,
        completed_at=job.ended_at,
    )
