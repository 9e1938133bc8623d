"""Instances in the API, how they stand, and uploads with unknown result."""

from receiver.errors import NotFound
from receiver.instances import registry
from receiver.jobs import queries
from receiver.jobs.public import from_record
from receiver.jobs.summary import Summary, summary
from receiver.reconcile import submissions
from receiver.settings import DEFAULT_INSTANCE
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.routes import ApiRequest
from receiver.web.auth import record_action, require_instance


def list_instances(services: Services, request: ApiRequest[schemas.NoQuery]) -> schemas.Instances:
    """List the instances that the token reaches."""
    with services.database.read() as session:
        rows = {str(row["name"]): row for row in registry.list_instances(session)}
    if services.settings.default_keys:
        rows.setdefault(DEFAULT_INSTANCE, {"name": DEFAULT_INSTANCE})
    reached = [rows[name] for name in sorted(rows) if request.bearer.may_see(name)]
    return schemas.Instances([schemas.instance(row) for row in reached])


def list_submissions(
    services: Services, request: ApiRequest[schemas.InstancesQuery]
) -> schemas.Submissions:
    """List uploads and downloads with unknown result: they were cut off while they were sent."""
    require_instance(request.bearer, request.query.instance)
    reached = queries.reachable(request.query.instance, request.bearer.instances)
    rows = submissions.list_unclear(services.database, services.settings, services.clock, reached)
    return schemas.Submissions([from_record(row, schemas.Submission) for row in rows])


def dismiss(services: Services, request: ApiRequest[schemas.NoQuery]) -> schemas.Submission:
    """Look no longer for the job of a submission with unknown result."""
    bearer, id_ = request.bearer, request.http.id
    with services.database.write() as session:
        row = submissions.dismiss_submission(session, id_, bearer.instances)
        if row is None:
            raise NotFound(f"no open submission {id_}")
        subject = f"{row.instance}/{id_}"
        record_action(services, bearer, session, "submission.dismiss", subject)
    return from_record(row, schemas.Submission)


def show_summary(services: Services, request: ApiRequest[schemas.NoQuery]) -> Summary:
    """Count what an operator looks at first."""
    now, overdue_after = services.clock(), services.settings.overdue_after
    return summary(services.database, request.bearer.instances, now, overdue_after)
