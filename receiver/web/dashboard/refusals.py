"""/refusals: deliveries that were refused for their signature, and why."""

from typing import Any

from flask import Response, request
from msgspec import UNSET

from receiver.callbacks import rejections as store
from receiver.callbacks.quarantine import REASONS, Explained, Keys
from receiver.callbacks.rejections import RejectionFilters, list_rejections
from receiver.database.models import Rejection
from receiver.errors import BadParameter, BodyGone, NotFound
from receiver.jobs.summary import rejections_by_reason
from receiver.lib.clock import HOUR_MS
from receiver.web import services
from receiver.web.auth import current_bearer, require_instance
from receiver.web.dashboard.instances import reached
from receiver.web.dashboard.job import download, readable
from receiver.web.dashboard.pages import blueprint, page
from receiver.web.dashboard.paging import link
from receiver.web.http import read_cursor, write_cursor

A_PAGE = 50
LARGEST_EXPLAINED = 16 * 1024  # bytes of a body, in the list


@blueprint.get("/refusals")
def refusals() -> Response:
    """List refused deliveries, newest first."""
    instance, reason = request.args.get("instance") or None, request.args.get("reason") or None
    if "\0" in f"{instance}{reason}":
        raise BadParameter("a name holds no NUL")
    require_instance(current_bearer(), [instance] if instance else [])
    wanted = RejectionFilters(
        instances=[instance] if instance else [],
        reasons=[reason] if reason else [],
        visible=current_bearer().instances,
    )
    after = read_cursor(request.args.get("cursor") or UNSET, tuple[int, int])
    keys = read_keys()
    rows = list_rejections(services().database, wanted, A_PAGE + 1, after)
    with services().database.read() as session:
        shown = [(row, _explained(session, keys, row)) for row in rows[:A_PAGE]]
        names = reached()
        lately = rejections_by_reason(
            session, current_bearer().instances, services().clock() - HOUR_MS
        )
    more = write_cursor((rows[A_PAGE - 1].at, rows[A_PAGE - 1].id)) if len(rows) > A_PAGE else None
    return page(
        "refusals.html",
        rows=shown,
        lately=lately,
        instances=names,
        reasons=REASONS,
        instance=instance,
        reason=reason,
        older=more and link(cursor=more),
        newest=link(cursor=None) if after else None,
    )


@blueprint.get("/refusals/<int:id>")
def refusal(id: int) -> Response:  # noqa: A002
    """Show a refused delivery, why it was refused, and its body."""
    found = the_refusal(id)
    return page(
        "refusal.html",
        refused=found,
        why=seen(read_keys().explain(found)),
        signature=None if found.signature is None else found.signature.decode("latin-1"),
        body=None if found.body is None else readable(found.body),
    )


@blueprint.get("/refusals/<int:id>/body")
def refusal_body(id: int) -> Response:  # noqa: A002
    """Give the exact bytes of a refused delivery, as a file and never as a page."""
    found = the_refusal(id)
    if found.body is None:
        raise BodyGone("Of this delivery no body was kept.")
    return download(found.body, f"refused-{found.id}")


def the_refusal(id_: int) -> Rejection:
    """Give a quarantined delivery that the token reaches. Raises NotFound."""
    with services().database.read() as session:
        found = store.rejection(session, id_, current_bearer().instances) if id_ < 2**63 else None
    if found is None:
        raise NotFound("There is no such delivery in the quarantine, which keeps only the latest.")
    return found


def read_keys() -> Keys:
    """Read all keys, to explain with."""
    settings = services().settings
    return Keys.read(services().database, services().vault, settings.default_keys)


def seen(why: Explained) -> str:
    """Say why, naming another instance only to those who reach it."""
    if why.elsewhere and current_bearer().may_see(why.elsewhere):
        return f"{why.text} ({why.elsewhere})"
    return why.text


def _explained(session: Any, keys: Keys, row: Any) -> str:  # noqa: ANN401 - storage's
    small = row.size <= LARGEST_EXPLAINED
    found = store.rejection(session, row.id, None) if small else None
    return seen(keys.explain(found)) if found else REASONS.get(str(row.reason), str(row.reason))
