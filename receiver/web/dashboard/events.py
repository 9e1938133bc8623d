"""/events: verified callbacks, those that are no jobs too."""

from typing import get_args

from flask import Response, request
from msgspec import UNSET

from receiver.callbacks.events import EventFilters, list_events
from receiver.errors import BadParameter
from receiver.openconnectors.notifications import Kind
from receiver.web import services
from receiver.web.auth import current_bearer
from receiver.web.dashboard.pages import blueprint, page
from receiver.web.dashboard.paging import link
from receiver.web.http import read_cursor, write_cursor

A_PAGE = 50


@blueprint.get("/events")
def events() -> Response:
    """List verified callbacks, newest first."""
    kind = request.args.get("kind") or None
    if kind not in (None, *get_args(Kind)):
        raise BadParameter(f"a kind is one of {', '.join(get_args(Kind))}")
    filters = EventFilters(kinds=[kind] if kind else [], visible=current_bearer().instances)
    (after,) = read_cursor(request.args.get("cursor") or UNSET, tuple[str]) or (None,)
    rows = list_events(services().database, filters, A_PAGE + 1, after)
    last = rows[A_PAGE - 1] if len(rows) > A_PAGE else None
    return page(
        "events.html",
        rows=rows[:A_PAGE],
        kind=kind,
        kinds=get_args(Kind),
        older=last and link(cursor=write_cursor((last.id,))),
        newest=link(cursor=None) if after else None,
    )
