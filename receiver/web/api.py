"""/api/v1: one table of routes, from which Flask, the ASGI application and the document are made.

A view takes the services and a request whose token and parameters are right, and returns a
response. It knows no web framework.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from zlib import crc32

import msgspec
from werkzeug.http import parse_etags

from receiver.callbacks import events
from receiver.callbacks.events import EventRecord
from receiver.errors import Ambiguous, BodyGone, EventGone, JobEnded, NotFound
from receiver.instances import registry
from receiver.instances.tokens import Bearer
from receiver.jobs import failed_records, queries
from receiver.jobs.job import UNDER_WAY
from receiver.jobs.projection import NewAbsence
from receiver.jobs.queries import JobRecord
from receiver.jobs.shown import Job, as_shown
from receiver.jobs.summary import summary
from receiver.jobs.timeline import timeline
from receiver.lib.clock import iso
from receiver.reconcile import submissions
from receiver.settings import DEFAULT_INSTANCE
from receiver.web import Services, schemas
from receiver.web.auth import record_action, require_instance, require_scope
from receiver.web.http import (
    JSON,
    Hold,
    Request,
    Response,
    json_response,
    optional,
    page_response,
    parameters,
    read_cursor,
    read_time,
)
from receiver.web.openapi import Document, describe
from receiver.web.problems import response_to
from receiver.web.rejections import list_rejections, verify_again
from receiver.web.routes import ApiRequest, Operation, Route, route
from receiver.web.schemas import shown
from receiver.web.subscriptions import SUBSCRIPTION_ROUTES

SEARCHED_MS = 7 * 86_400_000  # in which events are searched where neither time nor job is named

# --- jobs


def list_jobs(services: Services, request: ApiRequest[schemas.JobsQuery]) -> Response:
    """List jobs, newest change first."""
    query, bearer = request.query, request.bearer
    require_instance(bearer, query.instance)
    after = read_cursor(query.cursor, tuple[int, str, str])
    filters = job_filters(query, bearer)
    found = queries.list_jobs(services.database, filters, query.limit + 1, after)
    return page_response(
        request.http,
        "jobs",
        found,
        query.limit,
        show=_shown_now(services),
        position=queries.place_of,
    )


def _shown_now(services: Services) -> Callable[[JobRecord], Job]:
    now, overdue_after = services.clock(), services.settings.overdue_after
    return lambda record: as_shown(record, now, overdue_after)


def job_filters(query: schemas.JobsQuery, bearer: Bearer) -> queries.Filters:
    """Return the filters for these parameters. Raises BadParameter."""
    return queries.Filters(
        instances=query.instance,
        statuses=query.status,
        outcomes=query.outcome,
        objects=query.object,
        directions=query.direction,
        updated_after=read_time(query.updated_after),
        updated_before=read_time(query.updated_before),
        expires_before=read_time(query.expires_before),
        text=optional(query.q) or None,
        file=optional(query.file),
        visible=bearer.instances,
    )


def show_job(services: Services, request: ApiRequest[schemas.JobQuery]) -> Response:
    """Show a job; `wait` holds the answer until it has ended or the seconds are over."""
    instance, wait = optional(request.query.instance), request.query.wait

    def look() -> Response:
        found = jobs_called(services, request, instance)
        hold = None if not wait or _is_settled(found) else Hold(look, wait)
        try:
            record = the_one(found, request.http.id)
            return _job_response(record, request.http, hold, _shown_now(services))
        except NotFound as error:
            return response_to(error, request.http.path, hold)

    return look()


def jobs_called(
    services: Services, request: ApiRequest[Any], instance: str | None
) -> list[JobRecord]:
    """Return the jobs of the path's id that the token reaches. Raises Forbidden."""
    bearer = request.bearer
    require_instance(bearer, [] if instance is None else [instance])
    return queries.find_jobs(services.database, request.http.id, instance, bearer.instances)


def _is_settled(found: Sequence[JobRecord]) -> bool:
    return len(found) > 1 or any(record.outcome not in UNDER_WAY for record in found)


def _job_response(
    record: JobRecord, request: Request, hold: Hold | None, show: Callable[[JobRecord], Job]
) -> Response:
    job = show(record)
    place = crc32(record.instance.encode())
    tag = f"{record.updated_at:x}-{record.revision:x}-{place:x}{'-overdue' * job.overdue}"
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
    if request.if_none_match and parse_etags(request.if_none_match).contains_weak(tag):
        return Response(304, headers, b"", hold)
    body = msgspec.json.encode(job)
    return Response(200, {**JSON, **headers}, body, hold)


def the_one(found: Sequence[JobRecord], job_id: str) -> JobRecord:
    """Return the only job of that id. Raises NotFound or Ambiguous."""
    if not found:
        raise NotFound(f"no job {job_id} is known")
    if len(found) > 1:
        names = ", ".join(sorted(record.instance for record in found))
        raise Ambiguous(f"job {job_id} is known to {names}: name one with ?instance=")
    return found[0]


def show_timeline(services: Services, request: ApiRequest[schemas.InstanceQuery]) -> Response:
    """Tell what happened to a job: what each callback, poll and submission changed, or why not."""
    job = the_one(jobs_called(services, request, optional(request.query.instance)), request.http.id)
    entries = timeline(services.database, job.id, job.instance)
    return json_response({"timeline": [shown(row, schemas.TimelineEntry) for row in entries]})


def close_one(services: Services, request: ApiRequest[schemas.InstanceQuery]) -> Response:
    """Give a job up: it is `lost` until the vendor says another word of it."""
    require_scope(request.bearer, "operate")
    instance = optional(request.query.instance)
    job = the_one(jobs_called(services, request, instance), request.http.id)
    close_job(services, request.bearer, job)
    closed = the_one(jobs_called(services, request, job.instance), request.http.id)
    return json_response(_shown_now(services)(closed))


def close_job(services: Services, bearer: Bearer, job: JobRecord) -> None:
    """Close a job for an operator. Raises JobEnded if there is nothing to close, StoreError."""
    if job.outcome not in (*UNDER_WAY, "lost") and not job.job.conflict:
        raise JobEnded(f"job {job.id} has ended: {job.outcome}")
    with services.database.write() as session:
        record_action(services, bearer, session, "job.close", f"{job.instance}/{job.id}")
    services.intake.record_absence(NewAbsence(job.instance, job.id, closed_by=bearer.name))


def list_errors(services: Services, request: ApiRequest[schemas.ErrorsQuery]) -> Response:
    """Give the failed records of a job as the vendor gave them, and all of them by message."""
    query = request.query
    job = the_one(jobs_called(services, request, optional(query.instance)), request.http.id)
    (after,) = read_cursor(query.cursor, tuple[int]) or (-1,)
    of_job = services.database, job.id, job.instance
    found = failed_records.list_failed_records(*of_job, query.limit + 1, after + 1)
    groups = failed_records.group_failed_records(*of_job)
    return page_response(
        request.http,
        "errors",
        found,
        query.limit,
        show=lambda error: msgspec.Raw(error.entry.encode()),
        position=lambda error: (error.position,),
        groups=[
            schemas.ErrorGroup(
                group.message,
                group.count,
                [msgspec.Raw(entry.encode()) for entry in group.examples],
            )
            for group in groups
        ],
    )


# --- events, the summary


def event_filters(
    services: Services, query: schemas.EventsQuery, bearer: Bearer
) -> events.EventFilters:
    """Read which events are asked for. Raises BadParameter, and Forbidden for an instance."""
    require_instance(bearer, query.instance)
    body, header, file = optional(query.body), optional(query.header), optional(query.file)
    after, before = read_time(query.received_after), read_time(query.received_before)
    if (body or header or file) and after is None and not query.job:
        after = (services.clock() if before is None else before) - SEARCHED_MS
    return events.EventFilters(
        instances=query.instance,
        kinds=query.kind,
        jobs=query.job,
        received_after=after,
        received_before=before,
        body=body,
        header=header,
        file=file,
        visible=bearer.instances,
    )


def list_events(services: Services, request: ApiRequest[schemas.EventsQuery]) -> Response:
    """List verified callbacks, newest first."""
    query = request.query
    filters = event_filters(services, query, request.bearer)
    (after,) = read_cursor(query.cursor, tuple[str]) or (None,)
    found = events.list_events(services.database, filters, query.limit + 1, after)
    return page_response(
        request.http,
        "events",
        found,
        query.limit,
        show=lambda record: shown(record, schemas.Event),
        position=lambda record: (record.id,),
    )


def show_event(services: Services, request: ApiRequest[schemas.NoQuery]) -> Response:
    """Show a verified callback."""
    return json_response(schemas.stored_event(_event(services, request)))


def show_body(services: Services, request: ApiRequest[schemas.NoQuery]) -> Response:
    """Give the exact bytes of a callback."""
    event = _event(services, request)
    body = events.get_body(services.database, event.id)
    if body is None:
        raise BodyGone(f"the body of {event.id} is kept no longer")
    headers = {
        "Content-Type": schemas.BYTES,
        "Content-Disposition": f'attachment; filename="{event.id}.bin"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(200, headers, body)


def _event(services: Services, request: ApiRequest[schemas.NoQuery]) -> EventRecord:
    event = events.get_event(services.database, request.http.id, request.bearer.instances)
    if event is None:
        raise NotFound(f"no event {request.http.id} is known")
    if not event.key:
        last, times = iso(event.last_received_at), event.deliveries
        raise EventGone(f"of {event.id} only the hash is kept; {times} deliveries, {last}")
    return event


def list_instances(services: Services, request: ApiRequest[schemas.NoQuery]) -> Response:
    """List the instances that the token reaches."""
    with services.database.read() as session:
        rows = {str(row["name"]): row for row in registry.list_instances(session)}
    if services.settings.default_keys:
        rows.setdefault(DEFAULT_INSTANCE, {"name": DEFAULT_INSTANCE})
    reached = [rows[name] for name in sorted(rows) if request.bearer.may_see(name)]
    return json_response({"instances": [schemas.instance(row) for row in reached]})


def list_submissions(services: Services, request: ApiRequest[schemas.InstancesQuery]) -> Response:
    """List uploads and downloads with unknown result: they were cut off while they were sent."""
    require_instance(request.bearer, request.query.instance)
    reached = queries.reachable(request.query.instance, request.bearer.instances)
    rows = submissions.list_unclear(services.database, services.settings, services.clock, reached)
    return json_response({"submissions": [shown(row, schemas.Submission) for row in rows]})


def dismiss(services: Services, request: ApiRequest[schemas.NoQuery]) -> Response:
    """Look no longer for the job of a submission with unknown result."""
    bearer, id_ = request.bearer, request.http.id
    require_scope(bearer, "operate")
    with services.database.write() as session:
        row = submissions.dismiss_submission(session, id_, bearer.instances)
        if row is None:
            raise NotFound(f"no open submission {id_}")
        subject = f"{row.instance}/{id_}"
        record_action(services, bearer, session, "submission.dismiss", subject)
    return json_response(shown(row, schemas.Submission))


def show_summary(services: Services, request: ApiRequest[schemas.NoQuery]) -> Response:
    """Count what an operator looks at first."""
    now, overdue_after = services.clock(), services.settings.overdue_after
    counts = summary(services.database, request.bearer.instances, now, overdue_after)
    return json_response(shown(counts, schemas.Summary))


# --- the document


def show_document(_services: Services, request: Request) -> Response:
    """Describe this API (OpenAPI 3.1)."""
    parameters(request.query, schemas.NoQuery)
    return json_response(_document())


@cache
def _document() -> Document:
    return describe((*_DOCUMENTED, RESULT))


# --- the table


_OF_A_JOB = (403, 404, 409)
_DOCUMENTED = (
    route("/jobs", list_jobs, schemas.JobsQuery, schemas.JobPage, 403),
    route("/jobs/{id}", show_job, schemas.JobQuery, Job, *_OF_A_JOB),
    route("/jobs/{id}/events", show_timeline, schemas.InstanceQuery, schemas.Timeline, *_OF_A_JOB),
    route("/jobs/{id}/errors", list_errors, schemas.ErrorsQuery, schemas.ErrorPage, *_OF_A_JOB),
    route(
        "/jobs/{id}/close",
        close_one,
        schemas.InstanceQuery,
        Job,
        *_OF_A_JOB,
        method="POST",
    ),
    route("/submissions", list_submissions, schemas.InstancesQuery, schemas.Submissions, 403),
    route(
        "/submissions/{id}/dismiss",
        dismiss,
        schemas.NoQuery,
        schemas.Submission,
        *(403, 404),
        method="POST",
    ),
    route("/instances", list_instances, schemas.NoQuery, schemas.Instances),
    route("/events", list_events, schemas.EventsQuery, schemas.EventPage, 403),
    route("/events/{id}", show_event, schemas.NoQuery, schemas.StoredEvent, 404, 410),
    route("/events/{id}/body", show_body, schemas.NoQuery, None, 404, 410),
    route("/rejections", list_rejections, schemas.RejectionsQuery, schemas.RejectionPage, 403),
    route(
        "/rejections/verify-again",
        verify_again,
        schemas.InstancesQuery,
        schemas.VerifiedAgain,
        403,
        method="POST",
    ),
    *SUBSCRIPTION_ROUTES,
    route("/summary", show_summary, schemas.NoQuery, schemas.Summary),
)
RESULT = Operation(  # which web/results.py answers, piece by piece
    *("GET", "/jobs/{id}/result", "show_result"),
    "Give the file of a finished download in its own format, or in the one `Accept` names.",
    *(schemas.InstanceQuery, None, (*_OF_A_JOB, 502)),
)
_OPEN = Route("GET", "/openapi.json", "show_document", "", schemas.NoQuery, None, (), show_document)
ROUTES = (*_DOCUMENTED, _OPEN)
