"""What the templates are given of a job."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from receiver.clock import DAY_MS
from receiver.jobs import Job
from receiver.web.dashboard.pages import blueprint
from receiver.web.dashboard.words import left, moment, outcome_word, shown

ONE_LINE = 160  # characters
_TOLD_WHY = ("failed", "partial", "unknown")


@dataclass(frozen=True, slots=True)
class JobView:
    """A job for people; times are ms."""

    row: Any  # a row of a job
    job: Job

    @property
    def outcome(self) -> str:
        """What became of it."""
        return self.job.outcome

    @property
    def total(self) -> int:
        """How many records its bar stands for."""
        known = (self.job.loaded or 0) + (self.job.failed or 0)
        return max(known, self.job.submitted or 0)

    @property
    def payload(self) -> str | None:
        """The callback payload, indented."""
        text = self.job.text("callback_payload")
        return None if text is None else pretty(text)


def job_view(row: Any) -> JobView:  # noqa: ANN401 - a row of a job
    """Show a job."""
    return JobView(row, Job(json.loads(row.registers)))


@dataclass(frozen=True, slots=True)
class Line:
    """A job in the list, all of it in words: what is said a thousand times must be said quickly.

    good, bad -- how much of its bar is loaded and failed, in hundredths; None without a bar.
    """

    view: JobView
    outcome: str
    word: str
    url: str
    id: str
    status: str
    conflict: bool
    by_poll: bool
    about: str
    message: str
    good: float | None
    bad: float
    counts: str
    failed: str
    files: Markup | None
    files_are: str
    changed: Markup


def line(row: Any, now: int, changed: str) -> Line:  # noqa: ANN401 - a row of a job
    """Say a job in a line. changed -- how much is seen of the time of its change."""
    view = job_view(row)
    job = view.job
    good, bad = _bar(view)
    expires = job.files_expire_at
    direction = job.text("direction")
    about = (job.text("object"), direction and direction.lower(), job.text("file"))
    return Line(
        view=view,
        outcome=view.outcome,
        word=outcome_word(view.outcome),
        url=job_url(row),
        id=shown(row.id),
        status=shown(job.status or "", 40),
        conflict=job.conflict,
        by_poll=job.learnt_by == "poll",
        about=shown(" \N{MIDDLE DOT} ".join(filter(None, about)), 120),
        message=shown(job.text("message") or "", 160) if view.outcome in _TOLD_WHY else "",
        good=good,
        bad=bad,
        counts=counts(job),
        failed=f"{job.failed:,} failed" if job.failed else "",
        files=None if expires is None else left(expires),
        files_are=_files_are(expires, now),
        changed=moment(row.updated_at, changed),
    )


@blueprint.app_template_filter()
def job_url(row: Any) -> str:  # noqa: ANN401 - a row of a job
    """Give the path of a job's page."""
    return f"/jobs/{quote(row.id, safe='')}?instance={quote(row.instance, safe='')}"


@blueprint.app_template_filter()
def counts(job: Job) -> str:
    """Say how many records were submitted and loaded."""
    if job.loaded is not None:
        among = "" if job.submitted is None else f" of {job.submitted:,}"
        return f"{job.loaded:,}{among} loaded"
    if job.submitted is not None:
        return f"{job.submitted:,} submitted"
    return "" if job.failed else "not known"


@blueprint.app_template_filter("bar")
def _bar(view: JobView) -> tuple[float | None, float]:
    job = view.job
    if not view.total or (job.loaded is None and job.failed is None):
        return None, 0
    good = round(100 * (job.loaded or 0) / view.total, 2)
    return good, min(round(100 * (job.failed or 0) / view.total, 2), 100 - good)


def _files_are(expires: int | None, now: int) -> str:
    if expires is None or expires >= now + DAY_MS:
        return ""
    return "soon" if expires > now else "dim"


def record(text: str) -> str:
    """Show a failed record: on one line if it fits there."""
    return text if len(text) <= ONE_LINE and "\n" not in text else pretty(text)


def pretty(text: str) -> str:
    """Indent JSON; give what is none as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
