"""The dashboard: pages for people, rendered here, complete without JavaScript."""

from receiver.web.dashboard import doors, front, job_list, job_page, words
from receiver.web.dashboard.pages import blueprint

__all__ = ["blueprint", "doors", "front", "job_list", "job_page", "words"]
