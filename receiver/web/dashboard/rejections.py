"""/rejections: deliveries that were rejected for their signature, and why."""

from urllib.parse import urlencode

from flask import Response
from msgspec import UNSET, Struct, UnsetType

from receiver.callbacks.diagnosis import reason_words
from receiver.callbacks.rejections import (
    REASONS,
    RejectionFilters,
    find_rejection,
    list_rejections,
)
from receiver.database.models import Rejection
from receiver.errors import BodyGone, NotFound
from receiver.jobs.summary import rejections_by_reason
from receiver.web import Services
from receiver.web.api import schemas
from receiver.web.api.rejections import read_keys
from receiver.web.auth import require_instance
from receiver.web.dashboard.formatting import readable
from receiver.web.dashboard.pages import Caller, blueprint, download, filled_parameters, link, page
from receiver.web.dashboard.sign_in import require_session
from receiver.web.http import optional, parameters, read_cursor, write_cursor

A_PAGE = 50

blueprint.add_app_template_filter(reason_words)


class RejectionsQuery(Struct, forbid_unknown_fields=True):
    """Which rejected deliveries are listed."""

    instance: schemas.Word | UnsetType = UNSET
    reason: schemas.Word | UnsetType = UNSET
    cursor: schemas.Cursor | UnsetType = UNSET


@blueprint.get("/rejections")
@require_session
def rejections(services: Services, caller: Caller) -> Response:
    """List rejected deliveries, newest first."""
    query = parameters(urlencode(filled_parameters()), RejectionsQuery)
    instance, reason = optional(query.instance), optional(query.reason)
    require_instance(caller.bearer, [instance] if instance else [])
    wanted = RejectionFilters(
        instances=[instance] if instance else [],
        reasons=[reason] if reason else [],
        visible=caller.bearer.instances,
    )
    after = read_cursor(query.cursor, tuple[int, int])
    keys = read_keys(services)
    rows = list_rejections(services.database, wanted, A_PAGE + 1, after)
    with services.database.read() as session:
        causes = keys.describe(session, rows[:A_PAGE], caller.bearer.instances)
        lately = rejections_by_reason(session, caller.bearer.instances, services.clock())
    more = write_cursor((rows[A_PAGE - 1].at, rows[A_PAGE - 1].id)) if len(rows) > A_PAGE else None
    return page(
        "rejections.html",
        rows=list(zip(rows, causes, strict=False)),
        lately=lately,
        reasons=REASONS,
        instance=instance,
        reason=reason,
        older=more and link(cursor=more),
        newest=link(cursor=None) if after else None,
    )


@blueprint.get("/rejections/<int:id>")
@require_session
def rejection(services: Services, caller: Caller, id: int) -> Response:
    """Show a rejected delivery, why it was rejected, and its body."""
    record = the_rejection(services, caller, id)
    return page(
        "rejection.html",
        rejection=record,
        why=read_keys(services).explain(record).text_for(caller.bearer.instances),
        signature=None if record.signature is None else record.signature.decode("latin-1"),
        body=readable(record.body),
    )


@blueprint.get("/rejections/<int:id>/body")
@require_session
def rejection_body(services: Services, caller: Caller, id: int) -> Response:
    """Return the exact bytes of a rejected delivery."""
    record = the_rejection(services, caller, id)
    if record.body is None:
        raise BodyGone("The body of this delivery was not kept.")
    return download(record.body, f"rejected-{record.id}.bin")


def the_rejection(services: Services, caller: Caller, id_: int) -> Rejection:
    """Return a quarantined delivery that the token reaches. Raises NotFound."""
    with services.database.read() as session:
        record = find_rejection(session, id_, caller.bearer.instances) if id_ < 2**63 else None
    if record is None:
        raise NotFound("This delivery is not in the quarantine, which keeps only the latest.")
    return record
