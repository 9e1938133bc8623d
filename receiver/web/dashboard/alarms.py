"""/alarms: what is wrong, and what lately was."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from flask import Response

from receiver.alarms.conditions import Kind, kind_of
from receiver.alarms.watcher import is_watched, list_alarms
from receiver.database.alarm_models import Alarm
from receiver.web import services
from receiver.web.auth import current_bearer
from receiver.web.dashboard.pages import blueprint, page

MOST_SHOWN = 100


@dataclass(frozen=True, slots=True)
class AlarmView:
    """An alarm for people. examples -- some of what is affected: (what, where it is seen)."""

    row: Alarm
    kind: Kind
    url: str
    examples: Sequence[tuple[str, str | None]]


@blueprint.get("/alarms")
def alarms() -> Response:
    """Show alarms, newest first."""
    visible, now = current_bearer().instances, services().clock()
    with services().database.read() as session:
        unsettled = list_alarms(session, visible, only_open=True, limit=MOST_SHOWN)
        latest = list_alarms(session, visible, only_open=False, limit=MOST_SHOWN)
        watched = is_watched(session, now)
    return page(
        "alarms.html",
        unsettled=[alarm_view(row) for row in unsettled],
        cleared=[alarm_view(row) for row in latest if row.cleared_at is not None],
        watched=watched,
    )


def alarm_view(row: Alarm) -> AlarmView:
    """Show an alarm."""
    kind = kind_of(row.kind)
    url = kind.page.format(quote(row.subject, safe=""))
    examples = [(example, _place(kind, row, example)) for example in json.loads(row.examples)]
    return AlarmView(row, kind, url, examples)


def _place(kind: Kind, row: Alarm, example: str) -> str | None:
    if kind.examples == "jobs":
        return f"/jobs/{quote(example, safe='')}?{urlencode({'instance': row.subject})}"
    return f"/events/{quote(example, safe='')}" if kind.examples == "events" else None
