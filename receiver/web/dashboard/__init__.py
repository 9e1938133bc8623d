"""The dashboard: pages for people, rendered here, complete without JavaScript."""

from receiver.web.dashboard import (
    acting,
    alarms,
    doors,
    events,
    front,
    instances,
    job_list,
    job_page,
    refusals,
    words,
)
from receiver.web.dashboard.pages import blueprint

__all__ = [
    "acting",
    "alarms",
    "blueprint",
    "doors",
    "events",
    "front",
    "instances",
    "job_list",
    "job_page",
    "refusals",
    "words",
]
