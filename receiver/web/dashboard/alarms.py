"""/alarms: what is wrong, and what is done about it; /schedules: whether expected jobs came."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

from flask import Response, request, url_for

from receiver.alarms.handling import State, get_open_alarm, list_alarms, state_of
from receiver.alarms.kinds import KINDS, Kind, kind_of
from receiver.database.engine import Session, database_time
from receiver.database.models.alarms import Alarm
from receiver.errors import BadParameter
from receiver.schedules.registry import next_due
from receiver.schedules.times import local_time
from receiver.settings import duration_ms
from receiver.web import Services
from receiver.web.api.alarms import handle, reached
from receiver.web.dashboard.pages import (
    Action,
    Caller,
    Steps,
    action_page,
    blueprint,
    page,
    page_at,
)

blueprint.add_app_template_filter(kind_of)

MAX_ALARMS = 100
MAX_RESOLVED = 25  # on a page, which weighs less than 100 KB
CAUSES = [KINDS[name] for name in ("failing", "vendor", "queued", "rejected")]
SNOOZES = {"2h": "2 hours", "24h": "24 hours"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, for people.

    subject -- mostly an instance. others -- subjects with the very same. examples -- some of what
    is affected: (what, its page). row -- the alarm; None where none says so.
    """

    kind: Kind
    subject: str
    count: int
    detail: str = ""
    examples: Sequence[tuple[str, str | None]] = ()
    row: Alarm | None = None
    others: Sequence[str] = ()

    @property
    def state(self) -> State:
        """Where it stands."""
        return "open" if self.row is None else state_of(self.row)

    @property
    def is_handled(self) -> bool:
        """Whether somebody acknowledged or snoozed it."""
        return self.state in {"acknowledged", "snoozed"}

    @property
    def url(self) -> str:
        """The page that shows what is affected."""
        return self.kind.page.format(quote(self.subject, safe=""))


@page_at("/alarms")
def alarms(services: Services, caller: Caller) -> Response:
    """Show alarms, newest first."""
    visible = caller.bearer.instances
    with services.database.read() as session:
        latest = list_alarms(session, visible, only_open=False, limit=MAX_ALARMS)
        problems = open_problems(session, caller)
    resolved = [problem(row) for row in latest if row.cleared_at is not None][:MAX_RESOLVED]
    ordered = by_severity(problems)
    return page("alarms.html", problems=ordered, resolved=resolved, snoozes=SNOOZES)


@action_page("/alarms/<string:id>/acknowledge")
def acknowledge_alarm(services: Services, caller: Caller, id: str) -> Steps:
    """Acknowledge an alarm."""
    yield Action(
        f"Acknowledge: {_title(services, caller, id)}",
        "Acknowledge",
        url_for("dashboard.alarms"),
        "The alarm stays in the list, with your token's name.",
        "What it is about by now is reported no more; new jobs are, at most once an hour.",
        "Its end is reported in any case.",
    )
    handle(services, id, caller.bearer)
    return "The alarm is acknowledged."


@action_page("/alarms/<string:id>/snooze")
def snooze_alarm(services: Services, caller: Caller, id: str) -> Steps:
    """Snooze an alarm."""
    title, name = _title(services, caller, id), request.args.get("duration", "")
    if name not in SNOOZES:
        raise BadParameter("an alarm is snoozed for 2h or 24h here")
    yield Action(
        f"Snooze for {SNOOZES[name]}: {title}",
        "Snooze",
        url_for("dashboard.alarms"),
        f"Nothing of this alarm is reported for {SNOOZES[name]}, but its end.",
        "If it is still open after that, it is reported again.",
    )
    alarm = handle(services, id, caller.bearer, ms=duration_ms(name))
    return f"The alarm is snoozed until {alarm.snoozed_until}."


def _title(services: Services, caller: Caller, id_: str) -> str:
    with services.database.read() as session:
        row = get_open_alarm(session, id_, caller.bearer.instances)
    return f"{kind_of(row.kind).title} ({row.subject})"


def open_problems(session: Session, caller: Caller) -> list[Problem]:
    """Return what the open alarms say that the token sees, newest first."""
    rows = list_alarms(session, caller.bearer.instances, only_open=True, limit=MAX_ALARMS)
    return [problem(row) for row in rows]


def by_severity(problems: Iterable[Problem]) -> list[Problem]:
    """Sort problems: unhandled ones first, then critical ones, then causes before their effects."""
    return sorted(
        problems,
        key=lambda problem: (
            problem.is_handled,
            problem.kind.severity != "critical",
            problem.kind not in CAUSES,
        ),
    )


def join_alike(problems: Iterable[Problem]) -> list[Problem]:
    """Join problems that differ in their subjects alone."""
    alike: dict[tuple[Kind, str, State], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.kind, problem.detail, problem.state), []).append(problem)
    return [
        replace(
            first,
            others=[problem.subject for problem in others],
            count=sum(problem.count for problem in (first, *others)),
        )
        for first, *others in alike.values()
    ]


def problem(row: Alarm) -> Problem:
    """Show an alarm."""
    kind = kind_of(row.kind)
    examples = [(example, _page_of(kind, row, example)) for example in json.loads(row.examples)]
    return Problem(kind, row.subject, row.count, row.detail, examples, row)


def _page_of(kind: Kind, row: Alarm, example: str) -> str | None:
    if kind.examples == "jobs":
        return f"/jobs/{quote(example, safe='')}?{urlencode({'instance': row.instance})}"
    return f"/events/{quote(example, safe='')}" if kind.examples == "events" else None


@page_at("/schedules", scope="operate")
def schedules(services: Services, caller: Caller) -> Response:
    """List schedules."""
    with services.database.read() as session:
        now = database_time(session, services.clock)
        rows = [(one, next_due(one, now)) for one in reached(session, caller.bearer)]
    return page("schedules.html", rows=rows, local_time=local_time)
