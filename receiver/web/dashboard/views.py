"""What the templates are given of a job."""

import json
from dataclasses import dataclass
from typing import Any

from receiver.jobs import Job

ONE_LINE = 160  # characters


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


def record(text: str) -> str:
    """Show a failed record: on one line if it fits there."""
    return text if len(text) <= ONE_LINE and "\n" not in text else pretty(text)


def pretty(text: str) -> str:
    """Indent JSON; give what is none as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text
