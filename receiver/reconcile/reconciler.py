"""Asking the vendor where callbacks never came, and finishing what an ended job leaves to do.

What is learnt goes the one way that callbacks go. Any number of nodes may run this at once: work is
claimed in the database, and so is the vendor's time, a turn at once for each instance.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import structlog

from receiver.callbacks.intake import Intake
from receiver.database.engine import Database, database_time
from receiver.errors import (
    CredentialError,
    StoreError,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from receiver.instances import audit, registry
from receiver.instances.encryption import Vault
from receiver.jobs import failed_records as failures
from receiver.jobs import queries
from receiver.jobs.job import is_ending, is_news
from receiver.jobs.projection import NewObservation
from receiver.jobs.record_errors import cause
from receiver.jobs.usual_times import learn_usual_times
from receiver.lib.clock import iso, now_ms
from receiver.openconnectors import client as upstream
from receiver.openconnectors.notifications import Notification
from receiver.reconcile import followups
from receiver.reconcile.followups import Claim
from receiver.reconcile.pacing import Blocked, Lane, Road
from receiver.reconcile.results import NotSaved, save_result
from receiver.settings import Settings

log = structlog.get_logger()

MOST_LANES = 8  # instances asked at once
LIST_PAGES = 5  # of the job list, newest first, looked through for jobs nobody told us of


@dataclass(slots=True)
class Report:
    """What a pass did.

    asked -- polls; ended -- those that told an ending. found -- jobs nobody had told us of.
    errors, queued, redelivered, results -- records, deliveries, files. blocked -- instances left
    out or not finished, because their vendor failed. unclear -- submissions of unknown fate.
    unsaved -- ended downloads whose file could not be had.
    """

    asked: int = 0
    ended: int = 0
    found: int = 0
    errors: int = 0
    queued: int = 0
    redelivered: int = 0
    results: int = 0
    blocked: list[str] = field(default_factory=list)
    unclear: list[dict[str, object]] = field(default_factory=list)
    unsaved: list[dict[str, str]] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Count what another lane did too."""
        for name in ("asked", "ended", "found", "errors", "queued", "redelivered", "results"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.blocked += other.blocked
        self.unsaved += other.unsaved


Work: TypeAlias = Callable[[Lane, Report], None]


class Reconciler:
    """Does one pass after another; thread-safe. actor -- whom the audit names for what it does."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        intake: Intake,
        vendor: upstream.Upstream,
        *,
        clock: Callable[[], int] = now_ms,
        sleep: Callable[[float], None] = time.sleep,
        actor: str = "receiver",
    ) -> None:
        self._settings, self._database, self._intake = settings, database, intake
        self._clock, self._actor = clock, actor
        interval = max(1, round(1000 / settings.vendor_rate))
        self._road = Road(database, vendor, interval, clock, sleep)
        self._vault = Vault(settings.encryption_keys)

    def one_pass(
        self, *, everything: bool = False, redeliver: bool = False, results: Path | None = None
    ) -> Report:
        """Ask for the jobs that are due, or for all under way; then fetch errors and results."""
        with self._database.write() as session:
            now = database_time(session, self._clock)
            if followups.beat(session, now):
                log.warning("after an outage of ours, all jobs under way are asked for")
            names = registry.with_vendor_secrets(session)
            patience = self._settings.overdue_after
            unclear = followups.unclear_submissions(session, now, patience)
            report = Report(
                unclear=[
                    {"at": iso(row.at), "instance": row.instance, "file": row.file}
                    for row in unclear
                ]
            )

        def lane(name: str) -> Report:
            return self._lane(name, everything=everything, redeliver=redeliver, results=results)

        # A lane for each instance, so that a dead vendor holds up nobody else's.
        with ThreadPoolExecutor(MOST_LANES) as lanes:
            for each in lanes.map(lane, names):
                report.add(each)
        return report

    def fetch_errors(self) -> bool:
        """Fetch the errors that are due now; tell whether there were any."""
        with self._database.read() as session:
            waiting = failures.with_due_errors(session, database_time(session, self._clock))
        report = Report()
        for name in waiting:
            self._attempt(name, report, self._fetch_errors)
        return report.errors > 0

    def beat(self) -> None:
        """Say that this node is alive and can write."""
        with self._database.write() as session:
            followups.beat(session, database_time(session, self._clock))

    def _lane(
        self, name: str, *, everything: bool, redeliver: bool, results: Path | None
    ) -> Report:
        report = Report()

        def work(lane: Lane, report: Report) -> None:
            learn_usual_times(self._database, lane.instance)
            self._poll(lane, report, everything=everything)
            self._find(lane, report)
            self._fetch_errors(lane, report)
            self._look_at_queue(lane, report, redeliver=redeliver)
            if results is not None:
                self._save_results(lane, report, results)

        if not self._attempt(name, report, work):
            report.blocked.append(name)
        return report

    def _attempt(self, name: str, report: Report, work: Work) -> bool:
        """Work for an instance until it is done or its vendor fails; tell which."""
        try:
            with self._database.read() as session:
                vendors = registry.vendor_secrets(session, self._vault, name)
            if vendors is None:
                return True
            work(Lane(name, vendors, self._road), report)
        except Blocked:
            return False
        except CredentialError as error:
            log.warning("vendor secrets cannot be used", instance=name, error=str(error))
            return False
        except UpstreamError as error:
            log.warning("the vendor failed", instance=name, error=str(error), reason=error.reason)
            self._note_health(name, failed=True, retry_after=error.retry_after)
            return False
        except StoreError as error:
            log.warning("the database failed", instance=name, error=str(error))
            return False
        self._note_health(name, failed=False)
        return True

    def _note_health(self, name: str, *, failed: bool, retry_after: int | None = None) -> None:
        at_least = 1000 * (retry_after or 0)
        with self._database.write() as session:
            now = database_time(session, self._clock)
            followups.note_health(session, name, now, failed=failed, at_least=at_least)

    def _poll(self, lane: Lane, report: Report, *, everything: bool) -> None:
        with self._database.read() as session:
            claims = followups.due_polls(
                session,
                lane.instance,
                database_time(session, self._clock),
                self._settings.overdue_after,
                everything=everything,
            )
        for claim in claims:
            pause = followups.poll_pause(self._settings.overdue_after, claim.tries)
            take = partial(followups.claim_poll, poll=claim, pause=pause)
            if lane.turn(take):
                self._ask(lane, report, claim)

    def _ask(self, lane: Lane, report: Report, claim: Claim) -> None:
        report.asked += 1
        asked_at = self._now()
        try:
            call = upstream.status(claim.job, lane.secrets.hub)
            told = upstream.read_status(lane.send(call), claim.job)
        except UpstreamRefused as error:
            if error.status != 404:  # noqa: PLR2004
                raise
            log.warning("the vendor does not know this job", instance=lane.instance, job=claim.job)
            return
        self._observe(lane, told, asked_at)
        report.ended += is_ending(told.status)

    def _find(self, lane: Lane, report: Report) -> None:
        """Look through the newest pages of the job list for what nobody told us."""
        first = upstream.jobs(None, None, lane.secrets.hub)
        try:
            lane.turn()
            asked_at = self._now()
            for number, answer in enumerate(lane.pages(first)):
                told = upstream.read_jobs(answer)
                with self._database.read() as session:
                    now = self._clock()
                    ids = [str(each.job) for each in told]
                    known = queries.open_jobs(session, lane.instance, ids)
                news = [each for each in told if is_news(each, known.get(str(each.job)), now)]
                for each in news:
                    report.found += each.job not in known
                    self._observe(lane, each, asked_at, "found in the vendor's job list")
                if not news or number + 1 >= LIST_PAGES:
                    return
        except (UpstreamRefused, UpstreamNonsense) as error:
            if error.status == 401:  # noqa: PLR2004
                raise
            log.info("the vendor has no job list", instance=lane.instance, error=str(error))

    def _now(self) -> int:
        with self._database.read() as session:
            return database_time(session, self._clock)

    def _observe(
        self, lane: Lane, told: Notification, asked_at: int, note: str | None = None
    ) -> None:
        polled = told.replace(source="poll", asked_at=asked_at)
        self._intake.observe(NewObservation(lane.instance, polled, note))

    def _fetch_errors(self, lane: Lane, report: Report) -> None:
        with self._database.read() as session:
            claims = failures.due_errors(
                session, lane.instance, database_time(session, self._clock)
            )
        for claim in claims:
            if lane.turn(partial(failures.claim_errors, fetch=claim)):
                self._fetch_errors_of(lane, report, claim)

    def _fetch_errors_of(self, lane: Lane, report: Report, claim: Claim) -> None:
        entries: list[str] = []
        try:
            first = upstream.errors(claim.job, None, lane.secrets.hub)
            for page in lane.pages(first):
                entries += upstream.read_entries(page)
                with self._database.write() as session:
                    now = database_time(session, self._clock)
                    if not failures.renew_errors(session, now, claim):
                        return  # another node's by now, or the job was reset
        except UpstreamRefused as error:
            if error.status in (401, 403):  # our secrets are wrong, which can be mended
                raise
            log.warning("errors refused", instance=lane.instance, job=claim.job, error=str(error))
            with self._database.write() as session:
                failures.give_up_errors(session, claim)
            return
        named = [(entry, cause(entry)) for entry in entries]
        with self._database.write() as session:
            kept = failures.keep_errors(session, claim, named)
        report.errors += len(entries) if kept else 0

    def _look_at_queue(self, lane: Lane, report: Report, *, redeliver: bool) -> None:
        try:
            lane.turn()
            held = upstream.read_entries(lane.ask_queue())
            if held and redeliver:
                lane.turn()
                self._note_redelivery(lane, len(held))
                lane.ask_queue(resend=True)
                report.redelivered += len(held)
        except (UpstreamRefused, UpstreamNonsense) as error:
            log.info("the vendor lists no queue", instance=lane.instance, error=str(error))
            return
        report.queued += len(held)
        with self._database.write() as session:
            followups.note_queued(
                session, lane.instance, database_time(session, self._clock), len(held)
            )

    def _note_redelivery(self, lane: Lane, held: int) -> None:
        with self._database.write() as session:
            audit.note(
                session,
                at=database_time(session, self._clock),
                actor=self._actor,
                action="redeliver",
                subject=lane.instance,
                detail=f"{held} deliveries",
            )

    def _save_results(self, lane: Lane, report: Report, folder: Path) -> None:
        with self._database.read() as session:
            claims = followups.downloads(
                session, lane.instance, database_time(session, self._clock)
            )
        for claim in claims:
            try:
                report.results += save_result(lane, claim, folder)
            except NotSaved as error:
                place = {"instance": lane.instance, "job": claim.job, "why": str(error)}
                report.unsaved.append(place)
                log.warning("no result", **place)
