"""/: what is wrong and how jobs went, at one look; to a stranger, the sign-in page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from flask import Response, request

from receiver.alarms.kinds import kind_of
from receiver.jobs.queries import ENDED
from receiver.jobs.summary import Overview, overview
from receiver.lib.clock import DAY_MS, HOUR_MS, iso
from receiver.reconcile.submissions import list_unclear
from receiver.web import Services
from receiver.web.dashboard.alarms import Problem, by_severity, join_alike, open_problems
from receiver.web.dashboard.instances import SCHEDULES, silences
from receiver.web.dashboard.pages import Caller, page, page_at, redirect_to
from receiver.web.dashboard.sign_in import local_path, sign_in_page

CHART_HEIGHT = 100
_STEPS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Period:
    """What the chart shows. width -- of a bar, ms. bars -- how many. bar_name -- of its width."""

    name: str
    width: int
    bars: int
    bar_name: str
    form: str


PERIODS = {
    "24h": Period("24 hours", HOUR_MS, 24, "hour", "hour"),
    "7d": Period("7 days", 6 * HOUR_MS, 28, "6 hours", "date"),
    "30d": Period("30 days", DAY_MS, 30, "day", "date"),
}


@page_at("/", stranger=sign_in_page)
def home(services: Services, caller: Caller) -> Response:
    """Show open problems, then the jobs of a period and when callbacks came."""
    if following := local_path(request.args.get("next")):  # signed in meanwhile
        return redirect_to(following)
    wanted = request.args.get("period", "")
    period = PERIODS.get(wanted, PERIODS["24h"])
    now, settings = services.clock(), services.settings
    first = now - now % period.width - (period.bars - 1) * period.width
    with services.database.read() as session:
        stats = overview(
            session.connection(),
            caller.bearer.instances,
            now,
            settings.overdue_after,
            first,
            period.width,
            SCHEDULES * settings.vendor_retries_ms,
        )
        problems = open_problems(session, caller) if stats.open_alarms else []
    return page(
        "home.html",
        counts=stats.summary,
        ended={name: sum(n for (_, of), n in stats.ended.items() if of == name) for name in ENDED},
        since=iso(first - 1),
        problems=by_severity(join_alike([*problems, *_problems_without_alarm(stats, problems)])),
        silences=silences(
            settings, caller.instances, stats.last_callbacks, stats.rejecting, stats.failing_since
        ),
        chart=_chart(stats.ended, first, period),
        period=period,
        periods=PERIODS,
        unclear=list_unclear(services.database, settings, services.clock, caller.bearer.instances)
        if stats.summary.unclear_submissions
        else (),
        is_empty=not any(stats.summary.jobs.values()) and not stats.last_callbacks,
    )


def _problems_without_alarm(stats: Overview, problems: Sequence[Problem]) -> list[Problem]:
    """Return what is wrong by the counts alone, where no alarm says so: nobody may be checking."""
    counts = stats.summary
    wrong = {
        "failing": stats.failing_since is not None,
        "rejected": counts.rejections_1h,
        "queued": counts.queued_at_vendor or 0,
        "overdue": counts.overdue,
    }
    alarmed = [problem.kind for problem in problems]
    kinds = [(kind_of(name), int(n)) for name, n in wrong.items() if n]
    return [Problem(kind, "", n) for kind, n in kinds if kind not in alarmed]


def _chart(ended: Mapping[tuple[int, str], int], first: int, period: Period) -> dict[str, object]:
    """Return what ended in stretches of time, and the number that is as high as the chart.

    bars -- (start, ms; how many of each outcome). shapes -- of each outcome, as SVG draws it: a bar
    is 1 wide, the chart CHART_HEIGHT high.
    """
    starts = range(first, first + period.bars * period.width, period.width)
    bars: list[tuple[int, dict[str, int]]] = [
        (start, {name: ended.get((start, name), 0) for name in ENDED}) for start in starts
    ]
    top = _scale(max(sum(counts.values()) for _, counts in bars))
    shapes: dict[str, str] = dict.fromkeys(ENDED, "")
    for n, (_, counts) in enumerate(bars):
        floor = float(CHART_HEIGHT)
        for name, number in counts.items():
            if number:
                height = CHART_HEIGHT * number / top
                floor -= height
                shapes[name] += f"M{n + 0.11:.2f} {floor:.2f}h.78v{height:.2f}h-.78z"
    return {"bars": bars, "top": top, "shapes": shapes}


def _scale(highest: int) -> int:
    """Return a round number that is not below the highest bar, and even, to be halved."""
    numbers: Iterator[int] = (2 * step * 10**power for power in count() for step in _STEPS)
    return next(number for number in numbers if number >= highest)
