"""Asking the vendor where callbacks never came, and finishing what an ended job leaves to do.

What is learnt goes the one way that callbacks go. Any number of nodes may run this at once: work is
claimed in the database, and so is the vendor's time, a turn at once for each instance.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from receiver import upstream
from receiver.clock import iso, now_ms
from receiver.errors import (
    CredentialError,
    StoreError,
    StoreUnavailable,
    UpstreamError,
    UpstreamNonsense,
    UpstreamRefused,
)
from receiver.intake import Intake
from receiver.jobs import is_ending
from receiver.notifications import Notification
from receiver.record_errors import cause
from receiver.settings import Settings
from receiver.storage import credentials, followups, queries
from receiver.storage.credentials import Vault, VendorSecrets
from receiver.storage.database import Database
from receiver.storage.followups import LEASE_MS, Claim
from receiver.storage.merging import NewObservation

log = structlog.get_logger()

LONGEST_PAUSE_MS = 6 * 3_600_000  # between two polls of one job
MOST_LANES = 8  # instances asked at once
LONGEST_FILE_NAME = 200
LIST_PAGES = 5  # of the job list, newest first, looked through for jobs nobody told us of


@dataclass(slots=True)
class Report:
    """What a pass did.

    asked -- polls; ended -- those that told an ending. found -- jobs nobody had told us of.
    errors, queued, redelivered, results -- records, deliveries, files. blocked -- instances left
    out or not finished, because their vendor failed. unclear -- submissions of unknown fate.
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

    def add(self, other: "Report") -> None:
        """Count what another lane did too."""
        for name in ("asked", "ended", "found", "errors", "queued", "redelivered", "results"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.blocked += other.blocked


class Reconciler:
    """Does one pass after another; thread-safe."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        intake: Intake,
        vendor: upstream.Upstream,
        *,
        clock: Callable[[], int] = now_ms,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._database, self._intake = settings, database, intake
        self._vendor, self._clock, self._sleep = vendor, clock, sleep
        self._vault = Vault(settings.encryption_keys)

    def one_pass(
        self, *, everything: bool = False, redeliver: bool = False, results: Path | None = None
    ) -> Report:
        """Ask for the jobs that are due, or for all under way; then fetch errors and results."""
        with self._database.write() as session:
            if followups.beat(session, self._clock()):
                log.warning("after an outage of ours, all jobs under way are asked for")
            names = credentials.with_vendor_secrets(session)
            patience = self._settings.overdue_after
            unclear = followups.unclear_submissions(session, self._clock(), patience)
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
            waiting = followups.with_due_errors(session, self._clock())
        report = Report()
        for name in waiting:
            self._attempt(name, report, self._fetch_errors)
        return report.errors > 0

    def beat(self) -> None:
        """Say that this node is alive and can write."""
        with self._database.write() as session:
            followups.beat(session, self._clock())

    def _lane(
        self, name: str, *, everything: bool, redeliver: bool, results: Path | None
    ) -> Report:
        report = Report()

        def work(lane: "_Lane") -> None:
            self._poll(lane, everything=everything)
            self._find(lane)
            self._fetch_errors(lane)
            self._look_at_queue(lane, redeliver=redeliver)
            if results is not None:
                self._save_results(lane, results)

        if not self._attempt(name, report, work):
            report.blocked.append(name)
        return report

    def _attempt(self, name: str, report: Report, work: Callable[["_Lane"], None]) -> bool:
        """Work for an instance until it is done or its vendor fails; tell which."""
        try:
            with self._database.read() as session:
                vendors = credentials.vendor_secrets(session, self._vault, name)
            if vendors is None:
                return True
            work(_Lane(name, vendors, report))
        except _Blocked:
            return False
        except CredentialError as error:
            log.warning("vendor secrets cannot be used", instance=name, error=str(error))
            return False
        except UpstreamError as error:
            log.warning("the vendor failed", instance=name, error=str(error), reason=error.reason)
            self._note_health(name, failed=True)
            return False
        except StoreError as error:
            log.warning("the database failed", instance=name, error=str(error))
            return False
        self._note_health(name, failed=False)
        return True

    def _note_health(self, name: str, *, failed: bool) -> None:
        with self._database.write() as session:
            followups.note_health(session, name, self._clock(), failed=failed)

    def _turn(self, lane: "_Lane", claim: Callable[[Any], bool] | None = None) -> bool:
        """Wait until the vendor may be asked for this instance. Raises _Blocked.

        claim -- takes the work that the turn is for. False, and no turn, if another node has it.
        """
        interval = max(1, round(1000 / self._settings.vendor_rate))
        with self._database.write() as session:
            if claim is not None and not claim(session):
                return False
            now = self._clock()
            turn = followups.take_turn(session, lane.instance, now, interval)
            if turn is None:
                raise _Blocked  # in here: the claim is not kept
        self._sleep(max(0, turn - now) / 1000)
        return True

    def _send(self, lane: "_Lane", call: upstream.Call) -> upstream.Answer:
        """Send a call whose turn it is; what is sent again waits for a turn of its own."""
        return self._vendor.send(lane.secrets.authorization, call, lambda: self._turn(lane))

    def _poll(self, lane: "_Lane", *, everything: bool) -> None:
        with self._database.read() as session:
            claims = followups.due_polls(
                session,
                lane.instance,
                self._clock(),
                self._settings.overdue_after,
                everything=everything,
            )
        for claim in claims:
            pause = min(LONGEST_PAUSE_MS, self._settings.overdue_after * 2 ** min(claim.tries, 20))
            next_at = self._clock() + pause
            take = partial(followups.claim_poll, claim=claim, next_at=next_at)
            if self._turn(lane, take):
                self._ask(lane, claim)

    def _ask(self, lane: "_Lane", claim: Claim) -> None:
        lane.report.asked += 1
        try:
            call = upstream.status(claim.job, lane.secrets.hub)
            told = upstream.read_status(self._send(lane, call), claim.job)
        except UpstreamRefused as error:
            if error.status != 404:  # noqa: PLR2004
                raise
            log.warning("the vendor does not know this job", instance=lane.instance, job=claim.job)
            return
        self._observe(lane, told)
        lane.report.ended += is_ending(told.status)

    def _find(self, lane: "_Lane") -> None:
        """Look through the newest pages of the job list for jobs that nobody told us of."""
        first = upstream.jobs(None, None, lane.secrets.hub)
        try:
            self._turn(lane)
            for number, answer in enumerate(self._pages(lane, first)):
                told = upstream.read_jobs(answer)
                with self._database.read() as session:
                    ids = [str(each.job) for each in told]
                    known = queries.known_jobs(session, lane.instance, ids)
                new = [each for each in told if each.job not in known]
                for each in new:
                    lane.report.found += 1
                    self._observe(lane, each, "found in the vendor's job list")
                if not new or number + 1 >= LIST_PAGES:
                    return
        except (UpstreamRefused, UpstreamNonsense) as error:
            if error.status == 401:  # noqa: PLR2004
                raise
            log.info("the vendor has no job list", instance=lane.instance, error=str(error))

    def _observe(self, lane: "_Lane", told: Notification, note: str | None = None) -> None:
        self._intake.observe(NewObservation(lane.instance, replace(told, source="poll"), note))

    def _fetch_errors(self, lane: "_Lane") -> None:
        with self._database.read() as session:
            claims = followups.due_errors(session, lane.instance, self._clock())
        for claim in claims:
            next_at = self._clock() + LEASE_MS * 2 ** min(claim.tries, 8)
            take = partial(followups.claim_errors, claim=claim, next_at=next_at)
            if self._turn(lane, take):
                self._fetch_errors_of(lane, claim)

    def _fetch_errors_of(self, lane: "_Lane", claim: Claim) -> None:
        entries: list[str] = []
        try:
            first = upstream.errors(claim.job, None, lane.secrets.hub)
            for page in self._pages(lane, first):
                entries += upstream.read_entries(page)
                with self._database.write() as session:
                    if not followups.renew_errors(session, claim, self._clock() + LEASE_MS):
                        return  # another node's by now, or the job was reset
        except UpstreamRefused as error:
            if error.status in (401, 403):  # our secrets are wrong, which can be mended
                raise
            log.warning("errors refused", instance=lane.instance, job=claim.job, error=str(error))
            with self._database.write() as session:
                followups.give_up_errors(session, claim)
            return
        with self._database.write() as session:
            followups.keep_errors(session, claim, [(entry, cause(entry)) for entry in entries])
        lane.report.errors += len(entries)

    def _pages(self, lane: "_Lane", first: upstream.Call) -> Iterator[upstream.Answer]:
        """Give all pages; the turn for the first one is there."""

        def turn() -> bool:
            return self._turn(lane)

        for answer in self._vendor.pages(lane.secrets.authorization, first, turn):
            yield answer
            if answer.next_page:
                self._turn(lane)

    def _look_at_queue(self, lane: "_Lane", *, redeliver: bool) -> None:
        try:
            self._turn(lane)
            held = upstream.read_entries(self._send(lane, upstream.queued()))
            if held and redeliver:
                self._turn(lane)
                self._send(lane, upstream.queued(resend=True))
                lane.report.redelivered += len(held)
        except (UpstreamRefused, UpstreamNonsense) as error:
            log.info("the vendor lists no queue", instance=lane.instance, error=str(error))
            return
        lane.report.queued += len(held)
        with self._database.write() as session:
            followups.note_queued(session, lane.instance, self._clock(), len(held))

    def _save_results(self, lane: "_Lane", folder: Path) -> None:
        with self._database.read() as session:
            claims = followups.downloads(session, lane.instance, self._clock())
        for claim in claims:
            target = folder / _file_name(claim)
            if not claim.object or target.exists():
                continue
            self._turn(lane)
            unfinished = folder / f".{secrets.token_hex(8)}.part"  # nodes may share the folder
            try:
                call = upstream.result(claim.job, claim.object, "text/csv", lane.secrets.hub)
                with (
                    self._vendor.stream(lane.secrets.authorization, call) as (_, pieces),
                    unfinished.open("wb") as file,
                ):
                    file.writelines(pieces)
                unfinished.rename(target)
            except UpstreamRefused as error:
                log.warning("no result", instance=lane.instance, job=claim.job, error=str(error))
                continue
            except OSError as error:
                raise StoreUnavailable(f"a result cannot be saved: {error.strerror}") from error
            finally:
                unfinished.unlink(missing_ok=True)
            lane.report.results += 1


def _file_name(claim: Claim) -> str:
    """Name a result's file; no instance has a point in its name, so that no two share one."""
    name = f"{claim.instance}.{claim.job}.csv"
    if len(name) <= LONGEST_FILE_NAME:
        return name
    return f"{claim.instance}.{hashlib.sha256(claim.job.encode()).hexdigest()}.csv"


@dataclass(frozen=True, slots=True)
class _Lane:
    """One instance's part of a pass."""

    instance: str
    secrets: VendorSecrets
    report: Report


class _Blocked(Exception):
    """The vendor failed for this instance a short while ago."""
