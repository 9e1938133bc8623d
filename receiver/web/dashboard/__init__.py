"""The dashboard: pages for people, rendered here, complete without JavaScript."""

from receiver.web.dashboard import (
    actions,
    alarms,
    events,
    home,
    instances,
    job,
    jobs,
    rejections,
    runbook,
    schedules,
    subscriptions,
)
from receiver.web.dashboard.pages import blueprint

__all__ = [
    "actions",
    "alarms",
    "blueprint",
    "events",
    "home",
    "instances",
    "job",
    "jobs",
    "rejections",
    "runbook",
    "schedules",
    "subscriptions",
]
