"""Jobs in the API: lists, one job and what happened to it, its failed records, giving it up."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import msgspec
from werkzeug.http import parse_etags

from receiver.errors import Ambiguous, JobEnded, NotFound
from receiver.instances.tokens import Bearer
from receiver.jobs import failed_records, queries
from receiver.jobs.job import UNDER_WAY
from receiver.jobs.projection import NewAbsence
from receiver.jobs.public import Job, from_record, public_job
from receiver.jobs.queries import JobRecord
from receiver.jobs.timeline import timeline
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.routes import ApiRequest
from receiver.web.auth import record_alone, require_instance
from receiver.web.http import (
    JSON,
    Hold,
    Request,
    Response,
    cut,
    optional,
    read_cursor,
)
from receiver.web.problems import response_to


def list_jobs(services: Services, request: ApiRequest[schemas.JobsQuery]) -> schemas.JobPage:
    """List jobs, newest change first."""
    query, bearer = request.query, request.bearer
    require_instance(bearer, query.instance)
    after = read_cursor(query.cursor, tuple[int, str, str])
    filters = job_filters(query, bearer)
    found = queries.list_jobs(services.database, filters, query.limit + 1, after)
    records, following = cut(found, query.limit, queries.position_of)
    return schemas.JobPage(list(map(_shown_now(services), records)), following)


def _shown_now(services: Services) -> Callable[[JobRecord], Job]:
    now, overdue_after = services.clock(), services.settings.overdue_after
    return lambda record: public_job(record, now, overdue_after)


def job_filters(query: schemas.JobsQuery, bearer: Bearer) -> queries.Filters:
    """Return the filters for these parameters. Raises BadParameter."""
    return queries.Filters(
        instances=query.instance,
        statuses=query.status,
        outcomes=query.outcome,
        objects=query.object,
        directions=query.direction,
        updated_after=optional(query.updated_after),
        updated_before=optional(query.updated_before),
        expires_before=optional(query.expires_before),
        text=optional(query.q) or None,
        file=optional(query.file),
        visible=bearer.instances,
    )


def show_job(services: Services, request: ApiRequest[schemas.JobQuery]) -> Response:
    """Show a job; `wait` holds the answer until it has ended or the seconds are over."""
    wait = request.query.wait

    def answer() -> Response:
        records = _jobs_called(services, request)
        hold = None if not wait or _is_settled(records) else Hold(answer, wait)
        try:
            record = the_one(records, request.http.id)
            return _job_response(record, request.http, hold, _shown_now(services))
        except NotFound as error:
            return replace(response_to(error, request.http.path), hold=hold)

    return answer()


def the_job(services: Services, request: ApiRequest[Any]) -> JobRecord:
    """Return the job that is asked for. Raises NotFound, Ambiguous, Forbidden."""
    return the_one(_jobs_called(services, request), request.http.id)


def _jobs_called(services: Services, request: ApiRequest[Any]) -> list[JobRecord]:
    instance = optional(request.query.instance)
    return jobs_called(services, request.bearer, request.http.id, instance)


def jobs_called(
    services: Services, bearer: Bearer, id_: str, instance: str | None
) -> list[JobRecord]:
    """Return the jobs of an id, of all instances that the token reaches or of one.

    Raises Forbidden if it does not reach that.
    """
    require_instance(bearer, [] if instance is None else [instance])
    return queries.find_jobs(services.database, id_, instance, bearer.instances)


def _is_settled(records: Sequence[JobRecord]) -> bool:
    return len(records) > 1 or any(record.outcome not in UNDER_WAY for record in records)


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


def the_one(records: Sequence[JobRecord], job_id: str) -> JobRecord:
    """Return the only job of an id. Raises NotFound, Ambiguous."""
    if not records:
        raise NotFound(f"there is no job {job_id}, or the token does not reach its instance")
    if len(records) > 1:
        names = ", ".join(sorted(record.instance for record in records))
        raise Ambiguous(f"job {job_id} is known to {names}: name the instance")
    return records[0]


def show_timeline(
    services: Services, request: ApiRequest[schemas.InstanceQuery]
) -> schemas.Timeline:
    """Tell what happened to a job: what each callback, poll and submission changed, or why not."""
    job = the_job(services, request)
    entries = timeline(services.database, job.id, job.instance)
    return schemas.Timeline([from_record(row, schemas.TimelineEntry) for row in entries])


def close_one(services: Services, request: ApiRequest[schemas.InstanceQuery]) -> Job:
    """Give a job up: it is `lost` until the vendor says another word of it."""
    close_job(services, request.bearer, the_job(services, request))
    return _shown_now(services)(the_job(services, request))


def close_job(services: Services, bearer: Bearer, job: JobRecord) -> None:
    """Close a job for an operator. Raises JobEnded if there is nothing to close, StoreError."""
    if job.outcome not in (*UNDER_WAY, "lost") and not job.job.conflict:
        raise JobEnded(f"job {job.id} has ended: {job.outcome}")
    record_alone(services, bearer, "job.close", f"{job.instance}/{job.id}")
    services.intake.record_absence(NewAbsence(job.instance, job.id, closed_by=bearer.name))


def list_errors(services: Services, request: ApiRequest[schemas.ErrorsQuery]) -> schemas.ErrorPage:
    """Give the failed records of a job as the vendor gave them, and all of them by message."""
    query = request.query
    job = the_job(services, request)
    (after,) = read_cursor(query.cursor, tuple[int]) or (-1,)
    of_job = services.database, job.id, job.instance
    found = failed_records.list_failed_records(*of_job, query.limit + 1, after + 1)
    records, following = cut(found, query.limit, lambda error: (error.position,))
    errors = [msgspec.Raw(error.entry.encode()) for error in records]
    groups = [
        schemas.ErrorGroup(
            group.message, group.count, [msgspec.Raw(entry.encode()) for entry in group.examples]
        )
        for group in failed_records.group_failed_records(*of_job)
    ]
    return schemas.ErrorPage(errors, groups, following)
