"""/: how it stands, at one look; to a stranger, the door."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from flask import Response, g, request
from markupsafe import Markup

from receiver.alarms.conditions import kind_of
from receiver.database.models import Submission
from receiver.jobs.queries import ENDED
from receiver.jobs.summary import MAX_COUNTED, Overview, Summary, overview
from receiver.lib.clock import DAY_MS, HOUR_MS
from receiver.reconcile.submissions import list_unclear
from receiver.web import services
from receiver.web.auth import current_bearer
from receiver.web.dashboard.formatting import ago, left
from receiver.web.dashboard.instances import LOOK_BACK, reached, schedule, silences_of
from receiver.web.dashboard.pages import blueprint, joined, kept, page, part
from receiver.web.dashboard.sign_in import door


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that leads to what it counts. tone -- whose colour it has if it is not zero.

    most -- what it is counted up to.
    """

    label: str
    value: int | None
    url: str
    icon: str
    tone: str = ""
    note: str = ""
    most: int | None = None

    @property
    def told(self) -> str:
        """The number as it is written."""
        if self.value is None:
            return "\N{EN DASH}"
        if self.most is not None and self.value > self.most:
            return f"{self.most:,}+"
        return f"{self.value:,}"


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time to draw. width -- ms of a bar; places -- how many; said -- for people."""

    width: int
    places: int
    said: str
    each: str


WINDOWS = {
    "hours": Window(HOUR_MS, 24, "24 hours", "hour"),
    "days": Window(DAY_MS, 30, "30 days", "day"),
}


@blueprint.get("/")
def front() -> Response:
    """Show how it stands."""
    if g.get("bearer") is None:
        return door()
    window = WINDOWS.get(request.args.get("over", ""), WINDOWS["hours"])
    now, overdue_after = services().clock(), services().settings.overdue_after
    first = now - now % window.width - (window.places - 1) * window.width
    found = overview(
        *(services().database, current_bearer().instances, now, overdue_after),
        *(first, window.width, LOOK_BACK * schedule()),
    )
    counts = found.summary
    return page(
        "front.html",
        jobs=_shown(_of_jobs(counts)),
        cares=_shown(_of_cares(counts)),
        alert=counts.overdue > 0 or counts.rejections_1h > 0 or bool(found.alarms),
        alarms={kind_of(kind).title: n for kind, n in sorted(found.alarms.items())},
        silences=_heard(found),
        picture=_picture(frozenset(found.ended.items()), first, window),
        unclear=_unclear() if counts.unclear_submissions else (),
    )


@lru_cache(maxsize=16)
def _picture(ended: frozenset[tuple[tuple[int, str], int]], first: int, window: Window) -> Markup:
    # It takes longer to import than all the rest together, and who only takes callbacks needs none.
    from receiver.web.dashboard.chart import chart  # noqa: PLC0415

    return part("picture", chart(dict(ended), first, window.width, window.places), window, WINDOWS)


def _unclear() -> Sequence[Submission]:
    given = services()
    reached = current_bearer().instances
    return list_unclear(given.database, given.settings, given.clock, reached)


def _shown(counters: Iterable[Counter]) -> Markup:
    return joined(kept("counter", counter) for counter in counters)


def _heard(found: Overview) -> Markup:
    said, last = [], found.last_callbacks
    for silence in silences_of(reached(), last, found.refusing, found.failing_since):
        at, until = silence.last_callback_at, silence.gives_up_at
        times = None if at is None else ago(at), None if until is None else left(until)
        said.append(kept("heard", silence, *times))
    return joined(said)


def _of_jobs(counts: Summary) -> list[Counter]:
    jobs = counts.jobs
    under_way = Counter(
        "Under way",
        jobs["pending"] + jobs["unknown"],
        "/jobs?outcome=pending&outcome=unknown",
        "pending",
        "pending",
    )
    return [under_way] + [
        Counter(name.capitalize(), jobs[name], f"/jobs?outcome={name}", name, name)
        for name in ENDED
    ]


def _of_cares(counts: Summary) -> list[Counter]:
    queued, unreadable = counts.queued_at_vendor, counts.unreadable_events
    cares = [
        Counter(
            "Overdue",
            counts.overdue,
            "/jobs?show=overdue",
            "pending",
            "failed",
            most=MAX_COUNTED,
        ),
        Counter(
            "Files expire within a day",
            counts.expiring_24h,
            "/jobs?show=expiring",
            "file",
            "partial",
        ),
        Counter("Refused in the last hour", counts.rejections_1h, "/refusals", "shield", "failed"),
        Counter(
            "Callbacks lost, learnt by poll",
            counts.lost_callbacks,
            "/jobs?show=lost",
            "poll",
            "partial",
        ),
        Counter(
            "Queued at the vendor",
            queued,
            "/instances",
            "queue",
            "partial",
            "not asked yet" if queued is None else "",
        ),
    ]
    if unreadable:
        url = "/events?kind=unreadable"
        cares.append(Counter("Unreadable callbacks", unreadable, url, "unknown", "unknown"))
    return cares
