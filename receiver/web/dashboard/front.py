"""/: how it stands, at one look; to a stranger, the door."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flask import Response, g, request, url_for

from receiver.clock import DAY_MS, HOUR_MS
from receiver.storage import followups, history
from receiver.storage.history import ENDED
from receiver.storage.overview import summary
from receiver.web import services
from receiver.web.auth import who
from receiver.web.dashboard.doors import door
from receiver.web.dashboard.instances import reached, silences
from receiver.web.dashboard.pages import blueprint, page

if TYPE_CHECKING:
    from receiver.web.dashboard.chart import Chart


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that leads to what it counts. tone -- whose colour it has if it is not zero."""

    label: str
    value: int | None
    url: str
    icon: str
    tone: str = ""
    note: str = ""


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
    name = request.args.get("over", "hours")
    window = WINDOWS.get(name, WINDOWS["hours"])
    now, visible = services().clock(), who().instances
    overdue_after = services().settings.overdue_after
    counts = summary(services().database.rows, visible, now, overdue_after)
    with services().database.read() as session:
        unclear = followups.unclear_submissions(session, now, overdue_after)
    return page(
        "front.html",
        jobs=_of_jobs(counts),
        cares=_of_cares(counts),
        alert=counts["overdue"] > 0 or counts["rejections_1h"] > 0,
        silences=silences(reached()),
        chart=_chart(window, now),
        window=window,
        windows=WINDOWS,
        unclear=[row for row in unclear if who().may_see(row.instance)],
    )


def _chart(window: Window, now: int) -> "Chart":
    # It takes longer to import than all the rest together, and who only takes callbacks needs none.
    from receiver.web.dashboard.chart import chart  # noqa: PLC0415

    first = now - now % window.width - (window.places - 1) * window.width
    found = history.outcomes_over_time(
        services().database.rows, who().instances, first, window.width
    )
    return chart(found, first, window.width, window.places)


def _of_jobs(counts: Mapping[str, Any]) -> list[Counter]:
    jobs = counts["jobs"]
    under_way = Counter(
        "Under way",
        jobs["pending"] + jobs["unknown"],
        url_for("dashboard.jobs", outcome=["pending", "unknown"]),
        "pending",
        "pending",
    )
    return [under_way] + [
        Counter(name.capitalize(), jobs[name], url_for("dashboard.jobs", outcome=name), name, name)
        for name in ENDED
    ]


def _of_cares(counts: Mapping[str, Any]) -> list[Counter]:
    jobs = "dashboard.jobs"
    cares = [
        Counter("Overdue", counts["overdue"], url_for(jobs, show="overdue"), "pending", "failed"),
        Counter(
            "Files expire within a day",
            counts["expiring_24h"],
            url_for(jobs, show="expiring"),
            "file",
            "partial",
        ),
        Counter(
            "Refused in the last hour",
            counts["rejections_1h"],
            url_for("dashboard.refusals"),
            "shield",
            "failed",
        ),
        Counter(
            "Callbacks lost, learnt by poll",
            counts["lost_callbacks"],
            url_for(jobs, show="lost"),
            "poll",
            "partial",
        ),
        Counter(
            "Queued at the vendor",
            counts["queued_at_vendor"],
            url_for("dashboard.instances"),
            "queue",
            "partial",
            "not asked yet" if counts["queued_at_vendor"] is None else "",
        ),
    ]
    if counts["unreadable_events"]:
        cares.append(
            Counter(
                "Unreadable callbacks",
                counts["unreadable_events"],
                url_for("dashboard.events", kind="unreadable"),
                "unknown",
                "unknown",
            )
        )
    return cares
