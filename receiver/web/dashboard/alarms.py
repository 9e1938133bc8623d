"""/alarms: what is wrong, and what lately was."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from flask import Response

from receiver.alarms import store
from receiver.alarms.channels import TITLES
from receiver.database.alarm_models import Alarm
from receiver.web import services
from receiver.web.auth import current_bearer
from receiver.web.dashboard.pages import blueprint, page

MOST_SHOWN = 100
# Where what an alarm tells of is seen; `{}` is the instance.
PLACES = {
    "silent": "/instances/{}",
    "overdue": "/jobs?show=overdue&instance={}",
    "refused": "/refusals?instance={}",
    "unreadable": "/events?kind=unreadable",
    "failing": "/instances",
    "expiring": "/jobs?show=expiring&instance={}",
    "failed": "/jobs?outcome=failed&outcome=partial&instance={}",
}
_OF_JOBS = ("silent", "overdue", "expiring", "failed")


@dataclass(frozen=True, slots=True)
class AlarmView:
    """An alarm for people. examples -- some of what is affected: (what, where it is seen)."""

    row: Alarm
    title: str
    url: str
    examples: Sequence[tuple[str, str | None]]


@blueprint.get("/alarms")
def alarms() -> Response:
    """Show alarms, newest first."""
    visible, now = current_bearer().instances, services().clock()
    with services().database.read() as session:
        unsettled = store.alarms(session, visible, only_open=True, limit=MOST_SHOWN)
        latest = store.alarms(session, visible, only_open=False, limit=MOST_SHOWN)
        watched = store.is_watched(session, now)
    return page(
        "alarms.html",
        unsettled=[alarm_view(row) for row in unsettled],
        cleared=[alarm_view(row) for row in latest if row.cleared_at is not None],
        watched=watched,
    )


def alarm_view(row: Alarm) -> AlarmView:
    """Show an alarm; of a kind that another release knows, without a word for it."""
    url = PLACES.get(row.kind, "/alarms").format(quote(row.subject, safe=""))
    examples = [(each, _place(row, each)) for each in json.loads(row.examples)]
    return AlarmView(row, TITLES.get(row.kind, (row.kind, ""))[0], url, examples)


def _place(row: Alarm, example: str) -> str | None:
    if row.kind in _OF_JOBS:
        return f"/jobs/{quote(example, safe='')}?{urlencode({'instance': row.subject})}"
    return f"/events/{quote(example, safe='')}" if row.kind == "unreadable" else None
