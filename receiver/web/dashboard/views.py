"""What the templates are given of a job."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from receiver.jobs.job import Job
from receiver.lib.clock import DAY_MS
from receiver.web.dashboard.formatting import left, moment, outcome_word, shown, until
from receiver.web.dashboard.pages import blueprint, part

ONE_LINE = 160  # characters
MOST_LINES = 1024  # kept in a process, at 2 KB mostly
_TOLD_WHY = ("failed", "partial", "unknown")

_LINES: dict[tuple[Any, ...], Markup] = {}


@dataclass(frozen=True, slots=True)
class JobView:
    """A job for people; times are ms."""

    row: Any  # a row of a job
    job: Job

    @property
    def outcome(self) -> str:
        """What became of it."""
        return str(self.row.outcome)

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
    return JobView(row, Job.decode(row.registers))


@dataclass(frozen=True, slots=True)
class Line:
    """A job in the list, all of it in words.

    key -- the id as it is; id -- as it is shown. good, bad -- how much of its bar is loaded and
    failed, in hundredths; None without a bar.
    """

    key: str
    instance: str
    revision: int
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


def line(row: Any, now: int, changed: str) -> Markup:  # noqa: ANN401 - a row of a job
    """Say a job in a line of the list. changed -- how much is seen of the time of its change.

    Who looks at a list looks at the same jobs again: a line is kept while it says the same.
    """
    expires = row.files_expire_at
    files = None if expires is None else until(expires - now)
    # Whatever the line says of the job is in its registers, of which no two hash alike by chance.
    told = row.id, row.instance, row.revision, row.updated_at, hash(row.registers)
    key = (*told, files, expires is not None and expires < now + DAY_MS, changed)
    said = _LINES.get(key)
    if said is None:
        if len(_LINES) >= MOST_LINES:
            _LINES.clear()
        said = _LINES[key] = part("job", _line(row, now, changed))
    return said


def _line(row: Any, now: int, changed: str) -> Line:  # noqa: ANN401 - a row of a job
    view = job_view(row)
    job, outcome = view.job, view.outcome
    good, bad = _bar(view)
    expires = row.files_expire_at
    direction = job.text("direction")
    about = (job.text("object"), direction and direction.lower(), job.text("file"))
    return Line(
        key=row.id,
        instance=row.instance,
        revision=row.revision,
        outcome=outcome,
        word=outcome_word(outcome),
        url=job_url(row),
        id=shown(row.id),
        status=shown(job.status or "", 40),
        conflict=job.conflict,
        by_poll=job.learnt_by == "poll",
        about=shown(" \N{MIDDLE DOT} ".join(filter(None, about)), 120),
        message=shown(job.text("message") or "", 160) if outcome in _TOLD_WHY else "",
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
