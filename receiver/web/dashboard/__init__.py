"""The dashboard: pages for people, rendered here, complete without JavaScript."""

from receiver.web.dashboard import actions as acting
from receiver.web.dashboard import alarms, events, instances, refusals
from receiver.web.dashboard import formatting as words
from receiver.web.dashboard import home as front
from receiver.web.dashboard import job as job_page
from receiver.web.dashboard import jobs as job_list
from receiver.web.dashboard import sign_in as doors
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
