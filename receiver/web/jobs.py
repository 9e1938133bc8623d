"""/api/v1/jobs: what became of jobs."""

import msgspec
from flask import Response, request
from msgspec import UNSET, UnsetType

from receiver.jobs import failed_records as failures
from receiver.jobs import lists, queries
from receiver.jobs.lists import JobLine
from receiver.web import job_answers, services
from receiver.web import schemas as shapes
from receiver.web.answers import answer_json, paged, position_of
from receiver.web.api import asked, blueprint, documented, open_blueprint, response
from receiver.web.auth import check_instances, question, who
from receiver.web.job_answers import the_one


@open_blueprint.get("/jobs", provide_automatic_options=False)
@documented(shapes.JobsQuery, shapes.JobPage, 403)
def list_jobs() -> Response:
    """List jobs, newest change first."""
    return response(job_answers.jobs_answer(services(), question()))


@open_blueprint.get("/jobs/<string:id>", provide_automatic_options=False)
@documented(shapes.JobQuery, shapes.Job, 403, 404, 409)
def show_job(id: str) -> Response:  # noqa: A002
    """Show a job; `wait` holds the answer until it has ended or the seconds are over."""
    # A worker that serves one request at a time could not even take the callback waited for.
    may_wait = bool(request.environ.get("wsgi.multithread"))
    return response(job_answers.job_answer(services(), question(), id, may_wait=may_wait))


@blueprint.get("/jobs/<string:id>/events")
@documented(shapes.InstanceQuery, shapes.Timeline, 403, 404, 409)
def show_timeline(id: str) -> Response:  # noqa: A002
    """Tell what happened to a job: what each callback, poll and submission changed, or why not."""
    query = asked(shapes.InstanceQuery)
    row = _called(id, query.instance)
    with services().database.read() as session:
        entries = queries.timeline(session, row.id, row.instance)
    timeline = shapes.Timeline([shapes.timeline_entry(entry) for entry in entries])
    return response(answer_json(timeline))


@blueprint.get("/jobs/<string:id>/errors")
@documented(shapes.ErrorsQuery, shapes.ErrorPage, 403, 404, 409)
def show_errors(id: str) -> Response:  # noqa: A002
    """Give the failed records of a job as the vendor gave them, and all of them by message."""
    query = asked(shapes.ErrorsQuery)
    row = _called(id, query.instance)
    after = position_of(query.cursor, (int,)) or (-1,)
    with services().database.read() as session:
        found = failures.errors(session, row.id, row.instance, query.limit + 1, after[0] + 1)
        groups = failures.error_groups(session, row.id, row.instance)
    shown = [{**group, "examples": list(map(_raw, group["examples"]))} for group in groups]
    return response(
        paged(
            found,
            query.limit,
            "errors",
            lambda error: _raw(error.entry),
            lambda error: (error.position,),
            question(),
            groups=shown,
        )
    )


def _raw(entry: str) -> msgspec.Raw:
    return msgspec.Raw(entry.encode())


def _called(job_id: str, given: str | UnsetType) -> JobLine:
    instance = None if given is UNSET else str(given)
    if instance is not None:
        check_instances([instance])
    read = services().database.rows
    return the_one(lists.jobs_called(read, job_id, instance, who().instances), job_id)
