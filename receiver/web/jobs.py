"""/api/v1/jobs: what became of jobs."""

from collections.abc import Sequence

import msgspec
from flask import Response, request
from msgspec import UNSET, UnsetType

from receiver.errors import Ambiguous, NotFound
from receiver.jobs import is_ending
from receiver.storage import failures, queries
from receiver.storage.models import JobRow
from receiver.web import services, shapes
from receiver.web.api import answers, blueprint, json_response, moment, paged, position_of, spec
from receiver.web.auth import check_instances, who


@blueprint.get("/jobs")
@spec.validate(resp=answers(shapes.JobPage, 403))
def list_jobs(query: shapes.JobsQuery) -> Response:
    """List jobs, newest change first."""
    check_instances(query.instance)
    wanted = queries.JobFilter(
        instances=query.instance,
        statuses=query.status,
        outcomes=query.outcome,
        objects=query.object,
        directions=query.direction,
        updated_after=moment(query.updated_after),
        updated_before=moment(query.updated_before),
        expires_before=moment(query.expires_before),
        text=query.q or None,
    )
    after = position_of(query.cursor, (int, str, str))
    with services().database.read() as session:
        rows = queries.jobs(session, wanted, who().instances, query.limit + 1, after)
    return paged(
        rows, query.limit, "jobs", shapes.job, lambda row: (row.updated_at, row.id, row.instance)
    )


@blueprint.get("/jobs/<string:id>")
@spec.validate(resp=answers(shapes.Job, 403, 404, 409))
def show_job(id: str, query: shapes.JobQuery) -> Response:  # noqa: A002
    """Show a job; `wait` holds the answer until it has ended or the seconds are over."""
    # A worker that serves one request at a time could not even take the callback waited for.
    seconds = query.wait if request.environ.get("wsgi.multithread") else 0
    found = services().waiters.until(
        lambda: _called(id, query.instance),
        lambda rows: len(rows) > 1 or any(map(_ended, rows)),
        seconds,
    )
    row = _the_one(found, id)
    response = json_response(shapes.job(row))
    response.set_etag(f"{row.updated_at:x}-{row.revision:x}")
    response.headers["Cache-Control"] = "private, no-cache"
    response.make_conditional(request)
    return response


@blueprint.get("/jobs/<string:id>/events")
@spec.validate(resp=answers(shapes.Timeline, 403, 404, 409))
def show_timeline(id: str, query: shapes.InstanceQuery) -> Response:  # noqa: A002
    """Tell what happened to a job: what each callback, poll and submission changed, or why not."""
    row = _the_one(_called(id, query.instance), id)
    with services().database.read() as session:
        entries = queries.timeline(session, row.id, row.instance)
    return json_response(shapes.Timeline([shapes.timeline_entry(entry) for entry in entries]))


@blueprint.get("/jobs/<string:id>/errors")
@spec.validate(resp=answers(shapes.ErrorPage, 403, 404, 409))
def show_errors(id: str, query: shapes.ErrorsQuery) -> Response:  # noqa: A002
    """Give the failed records of a job as the vendor gave them, and all of them by message."""
    row = _the_one(_called(id, query.instance), id)
    after = position_of(query.cursor, (int,)) or (-1,)
    with services().database.read() as session:
        found = failures.errors(session, row.id, row.instance, query.limit + 1, after[0] + 1)
        groups = failures.error_groups(session, row.id, row.instance)
    shown = [{**group, "examples": list(map(_raw, group["examples"]))} for group in groups]
    return paged(
        found,
        query.limit,
        "errors",
        lambda error: _raw(error.entry),
        lambda error: (error.position,),
        groups=shown,
    )


def _raw(entry: str) -> msgspec.Raw:
    return msgspec.Raw(entry.encode())


def _called(job_id: str, given: str | UnsetType) -> Sequence[JobRow]:
    instance = None if given is UNSET else str(given)
    if instance is not None:
        check_instances([instance])
    if "\0" in job_id:
        return ()
    with services().database.read() as session:
        return queries.jobs_called(session, job_id, instance, who().instances)


def _the_one(rows: Sequence[JobRow], job_id: str) -> JobRow:
    if not rows:
        raise NotFound(f"no job {job_id} is known")
    if len(rows) > 1:
        names = ", ".join(sorted(row.instance for row in rows))
        raise Ambiguous(f"job {job_id} is known to {names}: name one with ?instance=")
    return rows[0]


def _ended(row: JobRow) -> bool:
    return is_ending(row.status)
