"""/alarms: open problems, and those recently resolved."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

from flask import Response

from receiver.alarms.kinds import KINDS, Kind, kind_of
from receiver.alarms.watcher import list_alarms
from receiver.database.engine import Session
from receiver.database.models.alarms import Alarm
from receiver.web import Services
from receiver.web.dashboard.pages import Caller, blueprint, page
from receiver.web.dashboard.sign_in import require_session

MAX_ALARMS = 100
CAUSES = [KINDS[name] for name in ("failing", "vendor", "queued", "refused")]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, for people; times are ms.

    subject -- mostly an instance. others -- subjects with the very same. since -- None where no
    alarm says so. resolved_at -- None while it is wrong. examples -- some of what is affected:
    (what, its page).
    """

    kind: Kind
    subject: str
    count: int
    detail: str = ""
    since: int | None = None
    resolved_at: int | None = None
    examples: Sequence[tuple[str, str | None]] = ()
    others: Sequence[str] = ()

    @property
    def url(self) -> str:
        """The page that shows what is affected."""
        return self.kind.page.format(quote(self.subject, safe=""))


@blueprint.get("/alarms")
@require_session
def alarms(services: Services, caller: Caller) -> Response:
    """Show alarms, newest first."""
    visible = caller.bearer.instances
    with services.database.read() as session:
        latest = list_alarms(session, visible, only_open=False, limit=MAX_ALARMS)
        problems = open_problems(session, caller)
    resolved = [problem(row) for row in latest if row.cleared_at is not None]
    return page("alarms.html", problems=by_severity(problems), resolved=resolved)


def open_problems(session: Session, caller: Caller) -> list[Problem]:
    """Return what the open alarms say that the token sees, newest first."""
    rows = list_alarms(session, caller.bearer.instances, only_open=True, limit=MAX_ALARMS)
    return [problem(row) for row in rows]


def by_severity(problems: Iterable[Problem]) -> list[Problem]:
    """Sort problems: critical ones first, causes before what they lead to; join those alike."""
    alike: dict[tuple[Kind, str], list[Problem]] = {}
    for each in problems:
        alike.setdefault((each.kind, each.detail), []).append(each)
    merged = [
        replace(
            first,
            others=[each.subject for each in others],
            count=sum(each.count for each in (first, *others)),
        )
        for first, *others in alike.values()
    ]
    return sorted(merged, key=lambda one: (one.kind.severity != "critical", one.kind not in CAUSES))


def problem(row: Alarm) -> Problem:
    """Show an alarm."""
    kind = kind_of(row.kind)
    examples = [(example, _page_of(kind, row, example)) for example in json.loads(row.examples)]
    shown = row.subject, row.count, row.detail, row.raised_at, row.cleared_at
    return Problem(kind, *shown, examples)


def _page_of(kind: Kind, row: Alarm, example: str) -> str | None:
    if kind.examples == "jobs":
        return f"/jobs/{quote(example, safe='')}?{urlencode({'instance': row.subject})}"
    return f"/events/{quote(example, safe='')}" if kind.examples == "events" else None
