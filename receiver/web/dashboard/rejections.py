"""/rejections: deliveries that were rejected for their signature, and why."""

from urllib.parse import urlencode

from flask import Response
from msgspec import UNSET, Struct, UnsetType

from receiver.callbacks import rejections as store
from receiver.callbacks.quarantine import REASONS, AllKeys, Explained
from receiver.callbacks.rejections import RejectionFilters, RejectionRecord, list_rejections
from receiver.database.engine import Session
from receiver.database.models import Rejection
from receiver.errors import BodyGone, NotFound
from receiver.instances.tokens import Bearer
from receiver.jobs.summary import rejections_by_reason
from receiver.lib.clock import HOUR_MS
from receiver.web import Services, schemas
from receiver.web.auth import require_instance
from receiver.web.dashboard.formatting import readable
from receiver.web.dashboard.pages import Caller, blueprint, download, filled_parameters, link, page
from receiver.web.dashboard.sign_in import require_session
from receiver.web.http import optional, parameters, read_cursor, write_cursor

A_PAGE = 50
MAX_DIAGNOSED_BYTES = 16 * 1024  # of a body, in the list


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
        shown = [(row, _diagnosis(session, keys, caller.bearer, row)) for row in rows[:A_PAGE]]
        hour_ago = services.clock() - HOUR_MS
        lately = rejections_by_reason(session, caller.bearer.instances, hour_ago)
    more = write_cursor((rows[A_PAGE - 1].at, rows[A_PAGE - 1].id)) if len(rows) > A_PAGE else None
    return page(
        "rejections.html",
        rows=shown,
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
    found = the_rejection(services, caller, id)
    return page(
        "rejection.html",
        rejection=found,
        why=_shown(read_keys(services).explain(found), caller.bearer),
        signature=None if found.signature is None else found.signature.decode("latin-1"),
        body=readable(found.body),
    )


@blueprint.get("/rejections/<int:id>/body")
@require_session
def rejection_body(services: Services, caller: Caller, id: int) -> Response:
    """Give the exact bytes of a rejected delivery."""
    found = the_rejection(services, caller, id)
    if found.body is None:
        raise BodyGone("The body of this delivery was not kept.")
    return download(found.body, f"rejected-{found.id}.bin")


def the_rejection(services: Services, caller: Caller, id_: int) -> Rejection:
    """Return a quarantined delivery that the token reaches. Raises NotFound."""
    with services.database.read() as session:
        found = store.rejection(session, id_, caller.bearer.instances) if id_ < 2**63 else None
    if found is None:
        raise NotFound("This delivery is not in the quarantine, which keeps only the latest.")
    return found


def read_keys(services: Services) -> AllKeys:
    """Read all keys, to diagnose with."""
    return AllKeys.read(services.database, services.secret_box, services.settings.default_keys)


def _diagnosis(session: Session, keys: AllKeys, bearer: Bearer, row: RejectionRecord) -> str:
    small = row.size <= MAX_DIAGNOSED_BYTES
    found = store.rejection(session, row.id, None) if small else None
    return _shown(keys.explain(found), bearer) if found else REASONS.get(row.reason, row.reason)


def _shown(why: Explained, bearer: Bearer) -> str:
    """Say why, naming another instance only to those who reach it."""
    elsewhere = why.elsewhere if why.elsewhere and bearer.may_see(why.elsewhere) else None
    return f"{why.text} ({elsewhere})" if elsewhere else why.text
