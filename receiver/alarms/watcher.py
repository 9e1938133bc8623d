"""Watching for alarms: look, raise or clear, tell. Any number of nodes may; one at a time does.

Who watches goes on to do so until it stops; only then another takes over. So there is one who may
speak for all when the database itself, where everything else is agreed on, is what fails.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from receiver.alarms import store as alarms
from receiver.alarms.channels import Message, Target, content
from receiver.alarms.conditions import symptoms
from receiver.alarms.store import Told, note_symptoms, write_notice
from receiver.database.alarm_models import Alarm
from receiver.database.engine import Database, database_time
from receiver.errors import StoreError
from receiver.jobs.usual_times import learn_all_usual_times
from receiver.lib.clock import MINUTE_MS
from receiver.settings import Settings

PERIOD_MS = MINUTE_MS // 2
LEASE_MS = 3 * MINUTE_MS
LEARN_PERIOD_MS = 10 * MINUTE_MS

log = structlog.get_logger()


class Watcher:
    """Looks for what is wrong and tells. clock -- ms since the epoch; PostgreSQL's own if there.

    told -- who is told; without any, alarms are raised and cleared all the same.
    period -- ms between two looks.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        told: Sequence[Target],
        clock: Callable[[], int],
        period: int = PERIOD_MS,
    ) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._targets = {target.name: target for target in told}
        self._lease = max(LEASE_MS, 3 * period)
        self._period, self._next_at, self._learn_at = period, 0, 0
        self._me = secrets.token_hex(12)
        self._watches = False
        self._lost: Alarm | None = None  # the database: an alarm that cannot be written down
        self._informed: set[str] = set()  # of that

    def step(self) -> bool:
        """Do a pass if one is due; for a thread. Raises StoreError."""
        now = self._clock()
        if now >= self._next_at:
            self._next_at = now + self._period
            self.one_pass()
        return False

    def one_pass(self, *, force: bool = False) -> bool:
        """Look, raise and clear, and send what is due; tell whether all that was sent was taken.

        force -- look though another watches. Raises StoreError, having told of it if need be.
        """
        try:
            self._look(force=force)
        except StoreError:
            self._tell_of_loss()
            raise
        self._lost, self._informed = None, set()
        return self._send_due()

    def _look(self, *, force: bool) -> None:
        with self._database.write() as session:
            now = database_time(session, self._clock)
            self._watches = alarms.claim_watch(session, self._me, now, self._lease, force=force)
        if not self._watches:
            return
        if now >= self._learn_at:
            self._learn_at = now + LEARN_PERIOD_MS
            learn_all_usual_times(self._database)
        with self._database.read() as session:
            found = symptoms(session, self._settings, now)
        with self._database.write() as session:
            if not alarms.still_watches(session, self._me):
                return
            if self._lost is not None and self._informed:
                alarms.write_down(session, self._lost)
            for alarm in note_symptoms(session, found, now):
                _log(alarm)
            if self._targets:
                write_notice(session, self._targets, self._composed(now), now)
            alarms.forget(session, now, self._settings.keep_events)

    def _send_due(self) -> bool:
        all_taken = True
        while self._targets:
            with self._database.write() as session:
                now = database_time(session, self._clock)
                notice = alarms.next_notice(session, tuple(self._targets), now)
            if notice is None:
                break
            message = Message(notice.id, notice.body)
            taken, result = self._targets[notice.target].send(message, self._clock())
            all_taken &= taken
            if not taken:
                log.warning("a notice was not taken", target=notice.target, result=result)
            with self._database.write() as session:
                alarms.end_notice(session, notice, now, result, sent=taken)
        return all_taken

    def _tell_of_loss(self) -> None:
        """Tell of a database that fails for too long, though nothing can be written down."""
        now = self._clock()
        if self._lost is None:
            self._lost = alarms.unwritten("failing", "database", now, "it cannot be used")
        lost = self._lost
        lost.last_seen_at = now
        if not self._watches or now - lost.raised_at < self._settings.failing_after:
            return
        told = Told([lost], [], open=1)
        # One and the same message at each try, by its id.
        body = json.dumps(content(told, lost.raised_at, self._settings.public_url))
        message = Message(f"msg_{self._me}{lost.raised_at:x}", body)
        for name, target in self._targets.items():
            if name not in self._informed and target.send(message, now)[0]:
                self._informed.add(name)
                lost.notified_at = now

    def _composed(self, now: int) -> Callable[[Told], Any]:
        return lambda told: content(told, now, self._settings.public_url)


def _log(alarm: Alarm) -> None:
    what = "an alarm is raised" if alarm.cleared_at is None else "an alarm is cleared"
    log.warning(what, kind=alarm.kind, subject=alarm.subject, count=alarm.count)
