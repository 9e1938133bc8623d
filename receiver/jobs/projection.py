"""Applying a batch of notifications to stored jobs."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import msgspec

from receiver.jobs.job import UNDER_WAY, Job, Outcome, changes, encode, join, must_poll
from receiver.lib.clock import HOUR_MS
from receiver.openconnectors.notifications import Notification
from receiver.openconnectors.shapes import JobFacts, write

MAX_FACET_TEXT = 200  # characters of a status word or an object's name that lists filter by
MAX_MISSES = 3  # in a row and over at least MISSING_MS: then a job is closed
MISSING_MS = HOUR_MS


class NewObservation(msgspec.Struct, frozen=True, array_like=True, tag="observation"):
    """A poll or a submission, as `notification.source` says, to be merged like a callback.

    callback_due -- whether the vendor has our callback URL. client_url -- the callback URL of the
    client that submitted the job. submission -- the id of the row that waits for this job.
    """

    instance: str
    notification: Notification
    note: str | None = None
    callback_due: bool = False
    client_url: str | None = None
    submission: str | None = None


class NewAbsence(msgspec.Struct, frozen=True, array_like=True, tag="absence"):
    """The vendor does not know a job. closed_by -- an operator, who gives it up without asking."""

    instance: str
    job: str
    closed_by: str | None = None


class Forward(NamedTuple):
    """A notification for the client that submitted the job. webhook_id -- the vendor's, if any."""

    body: bytes
    webhook_id: str | None = None


Counted: TypeAlias = tuple[int, int | None]  # a facet, and the hour in which the files expire


class FacetKey(NamedTuple):
    """What a job is filtered by and counted under. other -- see `database.models.Facet`."""

    instance: str
    status: str | None
    outcome: str
    object: str | None
    direction: str | None
    callback_lost: bool
    other: bool = False

    def number(self) -> int:
        """Return the number that stands for it in rows: computed, so that no node looks it up."""
        digest = hashlib.sha256(msgspec.json.encode(self)).digest()
        return int.from_bytes(digest[:8], "big", signed=True)

    def as_other(self) -> "FacetKey":
        """Return the facet of all those that are beyond what an instance may have."""
        return FacetKey(
            self.instance, None, self.outcome, None, None, self.callback_lost, other=True
        )


class JobValues(NamedTuple):
    """A job's columns: as they are read, its row locked, and as they are written."""

    instance: str
    id: str
    registers: str
    facet: int
    updated_at: int
    revision: int
    events: int
    first_seen_at: int
    files_expire_at: int | None
    callback_due: bool
    learnt_by: str | None
    under_way: bool
    errors_at: int | None = None
    errors_tries: int = 0
    client_url: str | None = None
    poll_at: int | None = None
    polls: int = 0
    misses: int = 0
    missing_since: int | None = None
    closed_at: int | None = None


@dataclass(slots=True)
class JobState:
    """A job while a batch is merged into it; what was stored of it comes first.

    counted -- the facet and the hour it is counted under, as stored. before, was_closed -- what it
    was, as stored; None if it is new. contested -- its endings contradict each other, and the
    vendor has not answered since. is_revised -- whether what people see of it changed; needs_write
    -- whether anything did. forwards -- what its client is to be sent; None stands for all earlier
    callbacks.
    """

    instance: str
    id: str
    updated_at: int
    first_seen_at: int
    job: Job = field(default_factory=Job)
    revision: int = 0
    events: int = 0
    callback_due: bool = False
    client_url: str | None = None
    contested: bool = False
    poll_at: int | None = None
    polls: int = 0
    misses: int = 0
    missing_since: int | None = None
    closed_at: int | None = None
    errors_at: int | None = None
    errors_tries: int = 0
    counted: Counted | None = None
    before: Job | None = None
    was_closed: bool = False
    is_revised: bool = False
    needs_write: bool = False
    submissions: list[str] = field(default_factory=list)
    forwards: list[Forward | None] = field(default_factory=list)

    @classmethod
    def from_row(cls, row: JobValues) -> "JobState":
        """Take up a stored job."""
        job = Job.decode(row.registers)
        return cls(
            instance=row.instance,
            id=row.id,
            updated_at=row.updated_at,
            first_seen_at=row.first_seen_at,
            job=job,
            revision=row.revision,
            events=row.events,
            callback_due=bool(row.callback_due),
            client_url=row.client_url,
            contested=bool(row.under_way) and job.outcome not in UNDER_WAY,
            poll_at=row.poll_at,
            polls=row.polls,
            misses=row.misses,
            missing_since=row.missing_since,
            closed_at=row.closed_at,
            errors_at=row.errors_at,
            errors_tries=row.errors_tries,
            counted=(row.facet, _hour(row.files_expire_at)),
            before=job,
            was_closed=row.closed_at is not None,
        )

    def apply_callback(
        self, notification: Notification, forward: Forward, now: int
    ) -> tuple[str, str | None]:
        """Merge a new event; return what that changed (JSON array of names), or why nothing."""
        self.events += 1
        self.callback_due = self.is_revised = self.needs_write = True
        self._forward([forward])
        return self._merge(notification, now)

    def apply_observation(self, observation: NewObservation, now: int) -> tuple[str, str | None]:
        """Merge a poll or a submission; return as `apply_callback`."""
        before = self.job
        changed, note = self._merge(observation.notification, now)
        if observation.callback_due and not self.callback_due:
            self.callback_due = self.needs_write = True
        if observation.submission is not None:
            self.submissions.append(observation.submission)
        if observation.client_url is not None and self.client_url is None:
            self.client_url, self.needs_write = observation.client_url, True
            self._forward(
                [None] if self.events else [_missed_callback(self)] if self.job.ended else []
            )
        elif self.job.ended and not before.ended:
            self._forward([_missed_callback(self)])
        return changed, observation.note or note

    def apply_absence(self, absence: NewAbsence, now: int) -> tuple[str, str | None]:
        """Count that the vendor does not know it, or close it; return as `apply_callback`."""
        if not self.under_way:
            return (
                "[]",
                "closed before" if self.closed_at is not None else "not closed: it has ended",
            )
        outcome = self.outcome
        self.missing_since = self.missing_since or now
        if absence.closed_by is None:
            self.misses += 1
            closes = self.misses >= MAX_MISSES and now - self.missing_since >= MISSING_MS
            note = f"the vendor does not know this job (404), {self.misses} in a row"
        else:
            closes, note = True, f"closed by {absence.closed_by}"
        if closes:
            self.closed_at, self.contested, self.poll_at = now, False, None
        else:
            self.poll_at = now + MISSING_MS // (MAX_MISSES - 1)
        self.needs_write = True
        names = ["outcome"] if self.outcome != outcome else []
        self.is_revised |= bool(names)
        return msgspec.json.encode(names).decode(), note

    @property
    def outcome(self) -> Outcome:
        """What became of it; `lost` if it was closed while under way."""
        outcome = self.job.outcome
        return "lost" if self.closed_at is not None and outcome in UNDER_WAY else outcome

    @property
    def under_way(self) -> bool:
        """Whether the vendor is to be asked for it."""
        return self.contested or self.outcome in UNDER_WAY

    def facet(self) -> FacetKey:
        """Return what it is to be filtered by and counted under."""
        job = self.job
        lost = self.callback_due and job.learnt_by == "poll" and not job.called_back
        return FacetKey(
            self.instance,
            truncate(job.status),
            self.outcome,
            truncate(job.text("object")),
            truncate(job.text("direction")),
            lost,
        )

    def values(self, facet: int, now: int) -> JobValues:
        """Return its row."""
        job = self.job
        return JobValues(
            instance=self.instance,
            id=self.id,
            facet=facet,
            # Never backwards, or a page by newest change could show a job twice.
            updated_at=max(self.updated_at, now) if self.is_revised else self.updated_at,
            revision=self.revision + self.is_revised,
            events=self.events,
            first_seen_at=self.first_seen_at,
            files_expire_at=job.files_expire_at,
            callback_due=self.callback_due,
            learnt_by=job.learnt_by,
            client_url=self.client_url,
            under_way=self.under_way,
            poll_at=self.poll_at,
            polls=self.polls,
            misses=self.misses,
            missing_since=self.missing_since,
            closed_at=self.closed_at,
            errors_at=self.errors_at,
            errors_tries=self.errors_tries,
            registers=encode(job.registers),
        )

    def _merge(self, notification: Notification, now: int) -> tuple[str, str | None]:
        before, was_lost = self.job, self.outcome == "lost"
        self.job = join(before, Job.of(notification, now))
        names, note = changes(before, self.job, notification)
        if was_lost and "outcome" not in names:
            names, note = [*names, "outcome"], "the job was closed, and is open again"
        if self.missing_since is not None:
            self.misses, self.missing_since, self.closed_at = 0, None, None
            self.needs_write = True
        self.is_revised |= bool(names)
        self.needs_write |= self.job != before or bool(names)
        self._note_errors(before, now)
        self._note_polling(before, notification, now)
        return msgspec.json.encode(names).decode(), note

    def _note_errors(self, before: Job, now: int) -> None:
        """Have the errors fetched once a job ended with failed records, and after a reset anew."""
        job = self.job
        if not job.failed or not job.ended or job.erased_at is not None:
            return
        if _ending(before) != _ending(job):
            self.errors_at, self.errors_tries = now, 0

    def _note_polling(self, before: Job, notification: Notification, now: int) -> None:
        """Have the vendor asked at once where endings contradict each other, until it answers."""
        ask = must_poll(before, self.job, notification)
        if ask is not None:
            self.contested, self.poll_at, self.polls = ask, now if ask else None, 0
            self.needs_write = True
        if before.status is not None and before.attempt < self.job.attempt and not self.job.ended:
            # It runs again: how long it takes counts from now on.
            self.first_seen_at, self.poll_at, self.polls = now, None, 0

    def _forward(self, forwards: Sequence[Forward | None]) -> None:
        if self.client_url:  # '' once the job was erased
            self.forwards += forwards


def tally(
    changes: Iterable[tuple[Counted | None, JobValues]], slot: int
) -> list[tuple[int, int, int, int]]:
    """Return what jobs' new rows change in the counts of jobs: (facet, hour, slot, by how many).

    changes -- what each job was counted under, and its new row. Hour 0 stands for all.
    """
    numbers: defaultdict[tuple[int, int], int] = defaultdict(int)
    for before, values in changes:
        counted = values.facet, _hour(values.files_expire_at)
        if counted == before:
            continue
        for place, by in ((before, -1), (counted, 1)):
            if place is not None:
                facet, hour = place
                numbers[facet, 0] += by
                if hour is not None:
                    numbers[facet, hour] += by
    return [(*place, slot, number) for place, number in sorted(numbers.items()) if number]


def _ending(job: Job) -> tuple[object, ...]:
    return job.ended, job.attempt, job.failed, job.reported


def _hour(files_expire_at: int | None) -> int | None:
    return None if files_expire_at is None else files_expire_at // HOUR_MS


def truncate(text: str | None) -> str | None:
    """Return as much of a text as lists filter by."""
    return text and text[:MAX_FACET_TEXT]


def facts_of(job_id: str, job: Job) -> JobFacts:
    """Return a job as the vendor would write it: one under way has loaded nothing so far."""
    none_yet = None if job.ended else 0
    return JobFacts(
        id=job_id,
        status=job.status,
        reported=none_yet if job.reported is None else job.reported,
        failed=none_yet if job.failed is None else job.failed,
        message=job.text("message"),
        object=job.text("object"),
        direction=job.text("direction"),
        created_at=job.created_at,
        completed_at=job.ended_at,
    )


def _missed_callback(state: JobState) -> Forward:
    """Write the callback that the vendor should have sent, in the shape of bulk v2."""
    body = write(facts_of(state.id, state.job), "v2")
    if (payload := state.job.text("callback_payload")) is not None:
        body["callback-payload"] = msgspec.Raw(payload.encode())
    return Forward(msgspec.json.encode(body))
