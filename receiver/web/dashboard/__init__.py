"""The dashboard: pages for people, rendered here, complete without JavaScript."""

from receiver.web.dashboard import (
    alarms,
    callbacks,
    home,
    instances,
    job,
    jobs,
    runbook,
    subscriptions,
)
from receiver.web.dashboard.pages import blueprint

__all__ = [
    "alarms",
    "blueprint",
    "callbacks",
    "home",
    "instances",
    "job",
    "jobs",
    "runbook",
    "subscriptions",
]
