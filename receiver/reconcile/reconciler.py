"""Asking the vendor where callbacks never came, and finishing what an ended job leaves to do.

Each question is the same four: claim the work, wait for a turn, ask, record what was learnt, which
goes the one way that callbacks go. Any number of nodes may run this at once. A job's fault backs
that job off, by its claim; an instance's opens its circuit for all nodes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from receiver.callbacks.intake import Intake
from receiver.database import audit
from receiver.database.engine import Database, Session, database_time
from receiver.database.models import Submission
from receiver.errors import (
    CircuitOpen,
    CredentialError,
    StoreError,
    VendorError,
    VendorRefused,
)
from receiver.instances import registry
from receiver.instances.encryption import SecretBox
from receiver.jobs import queries
from receiver.jobs.failed_records import replace_failed_records
from receiver.jobs.job import is_ending, is_news
from receiver.jobs.projection import NewAbsence, NewObservation
from receiver.jobs.record_errors import cause
from receiver.jobs.usual_times import learn_usual_times
from receiver.lib.clock import iso, now_ms
from receiver.openconnectors import client
from receiver.openconnectors.client import VendorClient
from receiver.openconnectors.notifications import Notification
from receiver.reconcile import claims
from receiver.reconcile.claims import Claim
from receiver.reconcile.pacing import PacedVendor, Pacer, describe_failure
from receiver.reconcile.results import NotSaved, Report, save_result
from receiver.reconcile.submissions import link, list_unclear
from receiver.settings import Settings

log = structlog.get_logger()

CHECK_SECONDS = 60  # between two looks for queues that are to be looked at
MAX_INSTANCES = 8  # asked at once
MAX_LIST_PAGES = 5  # of the job list, newest first, looked through for jobs nobody reported
MAX_FAILURES = 3  # questions in a row, of whatever jobs: then it is the instance
INSTANCE_STATUSES = (401, 403, 429)  # that concern all of an instance, whatever was asked
UNKNOWN_STATUSES = (404, 410)  # the vendor does not know the job


@dataclass(slots=True)
class _Visit(PacedVendor):
    """One instance's part of a pass.

    failures -- questions in a row that failed. failure -- the last. answered -- whether any was.
    """

    report: Report = field(default_factory=Report)
    failures: int = 0
    failure: VendorError | None = None
    answered: bool = False


Work = Callable[[_Visit], None]


class Reconciler:
    """Does one pass after another; thread-safe. actor -- whom the audit names for what it does."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        intake: Intake,
        vendor: VendorClient,
        *,
        clock: Callable[[], int] = now_ms,
        sleep: Callable[[float], None] = time.sleep,
        actor: str = "receiver",
    ) -> None:
        self._settings, self._database, self._intake = settings, database, intake
        self._vendor, self._clock, self._actor = vendor, clock, actor
        interval = max(1, round(1000 / settings.vendor_rate))
        self.pacer = Pacer(database, interval, clock, sleep)
        self._secret_box = SecretBox(settings.encryption_keys)

    def one_pass(
        self, *, everything: bool = False, redeliver: bool = False, results: Path | None = None
    ) -> Report:
        """Ask for the jobs that are due, or for all under way; then fetch errors and results."""
        self.beat()
        with self._database.read() as session:
            names = registry.list_instances_with_secrets(session)
        work: list[Work] = [
            partial(self._poll, everything=everything),
            self._discover_jobs,
            self._fetch_errors,
            partial(self._check_queue, redeliver=redeliver),
        ]
        if results is not None:
            work.append(partial(self._save_results, folder=results))
        report = Report()
        # Each instance by itself, so that a dead vendor holds up nobody else's.
        with ThreadPoolExecutor(MAX_INSTANCES) as threads:
            for done in threads.map(lambda name: self._work(name, work), names):
                report.add(done)
        late = self._settings.overdue_after
        with self._read() as (session, now):
            due = claims.count_due(session, now, late, everything=everything, excluded=names)
        report.unasked = [
            {"instance": name, "why": f"jobs to ask for: {jobs}; no vendor secrets"}
            for name, jobs in due.items()
        ]
        report.unclear = [
            {"id": row.id, "at": iso(row.at), "instance": row.instance, "file": row.file}
            for row in self._unclear()
        ]
        return report

    def fetch_errors(self) -> bool:
        """Fetch the failed records that are due now; return whether there were any."""
        with self._read() as (session, now):
            names = claims.instances_with_due_errors(session, now)
        reports = [self._work(name, [self._fetch_errors]) for name in names]
        return any(report.errors for report in reports)

    def check_queues(self) -> bool:
        """Ask what the vendor holds back, where nobody did lately; return False: no hurry."""
        with self._write() as (session, now):
            names = registry.list_instances_with_secrets(session)
            due = [name for name in names if claims.note_queued(session, name, now)]
        for name in due:
            self._work(name, [partial(self._check_queue, redeliver=False)])
        return False

    def beat(self) -> None:
        """Record that this node is alive and can write."""
        with self._write() as (session, now):
            if claims.beat(session, now):
                log.warning("after an outage of ours, all jobs in progress are polled")

    def ask(self, instance: str, job: str, by: str, max_wait: int) -> Notification:
        """Ask the vendor where a job stands, and record the answer. by -- who wants to know.

        max_wait -- ms until its turn. Raises VendorError (CircuitOpen where it is not its turn
        in time), CredentialError, StoreError.
        """
        visit = self._visit(instance, max_wait)
        return self._ask_status(visit, job, visit.wait(), f"asked for by {by}")

    def resend(self, instance: str, max_wait: int) -> int:
        """Ask the vendor to send what it holds back; return how many deliveries that were.

        max_wait -- as in `ask`, whose errors it raises.
        """
        visit = self._visit(instance, max_wait)
        self._look_at_queue(visit, redeliver=True, audited=False)
        return visit.report.redelivered

    @contextmanager
    def _read(self) -> Iterator[tuple[Session, int]]:
        with self._database.read() as session:
            yield session, database_time(session, self._clock)

    @contextmanager
    def _write(self) -> Iterator[tuple[Session, int]]:
        with self._database.write() as session:
            yield session, database_time(session, self._clock)

    def _visit(self, instance: str, max_wait: int | None = None) -> _Visit:
        with self._database.read() as session:
            secrets = registry.vendor_secrets(session, self._secret_box, instance)
        if secrets is None:
            raise CredentialError(f"{instance} has no vendor secrets to ask with")
        return _Visit(instance, secrets, self._vendor, self.pacer, max_wait)

    def _work(self, instance: str, work: Sequence[Work]) -> Report:
        """Work for an instance until all is done, or until it fails as a whole."""
        visit = None
        try:
            visit = self._visit(instance)
            for step in work:
                step(visit)
            if visit.failure and visit.failures > 1 and not visit.answered:
                raise visit.failure
            self.pacer.close_circuit(instance)
        except CircuitOpen as error:
            why = str(error)
        except VendorError as error:
            log.warning("the vendor failed", instance=instance, error=str(error))
            why = self.pacer.open_circuit(instance, describe_failure(error), error.retry_after)
        except (CredentialError, StoreError) as error:
            log.warning("no work for an instance", instance=instance, error=str(error))
            why = str(error)
        else:
            return visit.report
        report = visit.report if visit else Report()
        report.unfinished.append({"instance": instance, "why": why})
        return report

    @contextmanager
    def _contain_failure(self, visit: _Visit, question: str, job: str = "") -> Iterator[None]:
        """Go on after the failure of one question; raise one that concerns the whole instance.

        A refusal is an answer, and no failure. Raises VendorError.
        """
        try:
            yield
        except CircuitOpen:
            raise
        except VendorError as error:
            refused = isinstance(error, VendorRefused)
            visit.failures, visit.failure = 0 if refused else visit.failures + 1, error
            visit.answered |= refused
            of_all = error.status in INSTANCE_STATUSES or error.retry_after is not None
            if of_all or visit.failures >= MAX_FAILURES:
                raise
            place = {"instance": visit.instance, "job": job, "why": f"{question}: {error}"}
            log.warning("the vendor failed for one question", **place)
            if job:
                visit.report.failed.append(place)
        else:
            visit.failures, visit.answered = 0, True

    def _poll(self, visit: _Visit, *, everything: bool) -> None:
        learn_usual_times(self._database, visit.instance)
        overdue_after = self._settings.overdue_after
        with self._read() as (session, now):
            due = claims.due_polls(
                session, visit.instance, now, overdue_after, everything=everything
            )
        for poll in due:
            with self._contain_failure(visit, "status", poll.job):
                at = visit.wait(partial(claims.claim_poll, poll=poll, overdue_after=overdue_after))
                if at is not None:
                    visit.report.asked += 1
                    notification = self._ask_status(visit, poll.job, at)
                    visit.report.ended += is_ending(notification.status)

    def _ask_status(
        self, visit: _Visit, job: str, at: int | None, note: str | None = None
    ) -> Notification:
        """Ask for a job in the turn that was waited for, and record what is said of it."""
        try:
            answer = visit.send(client.status_call(job, visit.secrets.hub))
            notification = client.read_status(answer.body, job)
        except VendorRefused as error:
            if error.status in UNKNOWN_STATUSES:
                self._intake.record_absence(NewAbsence(visit.instance, job))
            raise
        self._record(visit, notification, at, note)
        return notification

    def _record(
        self, visit: _Visit, notification: Notification, at: int | None, note: str | None
    ) -> None:
        polled = notification.replace(source="poll", asked_at=at)
        self._intake.observe(NewObservation(visit.instance, polled, note))

    def _discover_jobs(self, visit: _Visit) -> None:
        """Learn from the newest pages of the job list what nobody reported."""
        with self._contain_failure(visit, "job list"):
            at = visit.wait()
            first = client.jobs_call(visit.secrets.hub)
            for number, answer in enumerate(visit.pages(first), start=1):
                news = self._record_listed(visit, client.read_jobs(answer.body), at)
                if not news or number >= MAX_LIST_PAGES:
                    return

    def _record_listed(self, visit: _Visit, listed: Sequence[Notification], at: int | None) -> bool:
        """Record what is new of listed jobs; return whether anything was."""
        unclear = list(self._unclear(visit.instance))
        with self._read() as (session, now):
            ids = [str(notification.job) for notification in listed]
            stored = queries.open_jobs(session, visit.instance, ids)
        news = False
        for notification in listed:
            job = stored.get(str(notification.job))
            if job is None or job.submitted_at is None:
                self._link(unclear, notification)
            if is_news(notification, job, now):
                news = True
                visit.report.found += job is None
                self._record(visit, notification, at, "found in the vendor's job list")
        return news

    def _link(self, unclear: list[Submission], notification: Notification) -> None:
        """Link a listed job to the unclear submission that it came of, if it did."""
        for submission in unclear:
            observation = link(submission, notification)
            if observation is not None:
                self._intake.observe(observation)
                unclear.remove(submission)
                return

    def _unclear(self, *instances: str) -> Sequence[Submission]:
        return list_unclear(self._database, self._settings, self._clock, instances or None)

    def _fetch_errors(self, visit: _Visit) -> None:
        with self._read() as (session, now):
            due = claims.due_errors(session, visit.instance, now)
        for fetch in due:
            with self._contain_failure(visit, "errors", fetch.job):
                if visit.wait(partial(claims.claim_errors, fetch=fetch)) is not None:
                    self._fetch_errors_of(visit, fetch)

    def _fetch_errors_of(self, visit: _Visit, fetch: Claim) -> None:
        entries: list[str] = []
        try:
            for page in visit.pages(client.errors_call(fetch.job, visit.secrets.hub)):
                entries += client.read_entries(page.body)
                with self._write() as (session, now):
                    if not claims.renew_errors(session, now, fetch):
                        return  # another node's by now, or the job was reset
        except VendorRefused as error:
            if error.status not in INSTANCE_STATUSES:
                with self._database.write() as session:
                    claims.end_errors(session, fetch)  # the vendor has them no longer
            raise
        records = [(entry, cause(entry)) for entry in entries]
        with self._database.write() as session:
            if claims.end_errors(session, fetch):
                replace_failed_records(session, fetch.instance, fetch.job, records)
                visit.report.errors += len(records)

    def _check_queue(self, visit: _Visit, *, redeliver: bool) -> None:
        with self._contain_failure(visit, "queue"):
            self._look_at_queue(visit, redeliver=redeliver, audited=True)

    def _look_at_queue(self, visit: _Visit, *, redeliver: bool, audited: bool) -> None:
        """Ask what the vendor holds back, before a redelivery and after."""
        queued = left = visit.count_queued()
        if queued and redeliver:
            if audited:
                self._audit_redelivery(visit.instance, queued)
            visit.resend_queued()
            visit.report.redelivered += queued
            left = visit.count_queued()
        with self._write() as (session, now):
            claims.note_queued(session, visit.instance, now, left)
        visit.report.queued += queued

    def _audit_redelivery(self, instance: str, queued: int) -> None:
        entry = {"actor": self._actor, "subject": instance, "detail": f"{queued} deliveries"}
        with self._write() as (session, now):
            audit.record(session, at=now, action="redeliver", **entry)

    def _save_results(self, visit: _Visit, folder: Path) -> None:
        with self._read() as (session, now):
            downloads = claims.downloads(session, visit.instance, now)
        for job, object_ in downloads:
            with self._contain_failure(visit, "result", job):
                try:
                    if save_result(visit, job, object_, folder):
                        visit.report.results += 1
                        with self._write() as (session, now):
                            claims.note_fetched(session, job, visit.instance, now)
                except NotSaved as error:
                    place = {"instance": visit.instance, "job": job, "why": str(error)}
                    visit.report.unsaved.append(place)
                    log.warning("no result", **place)
