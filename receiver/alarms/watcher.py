"""Checking for alarms: raise or clear them, and report. One node at a time does.

It holds the lease in `watch`, so nothing is raised or reported twice, and renews it with each
check. When the database itself fails, the last holder reports that for all.
"""

import json
import secrets
from collections.abc import Callable, Iterable

import structlog
from sqlalchemy import delete, func, or_, select, true, update
from sqlalchemy.orm import Session

from receiver.alarms.channels import Content, contents, has_channel, messages
from receiver.alarms.conditions import Condition, active_conditions, schedule_conditions
from receiver.alarms.handling import MAX_SNOOZE_MS, public_alarm, reopen
from receiver.alarms.kinds import instance_of
from receiver.database.engine import Database, affected, database_time
from receiver.database.leases import claim, is_due, is_steady
from receiver.database.models.alarms import Alarm, Fetch, Node, Watch
from receiver.errors import StoreError
from receiver.jobs.usual_times import learn_all_usual_times
from receiver.lib.clock import DAY_MS, HOUR_MS, MINUTE_MS
from receiver.outbound.queue import Attempt, Message, enqueue
from receiver.schedules.check import judge_schedules, save
from receiver.settings import Settings
from receiver.subscriptions.changes import Type, queue_alarm, queue_overdue

PERIOD_SECONDS = 20
LEASE_PERIODS = 2  # a holder that died is followed within three periods
CLEAR_AFTER_MS = 5 * MINUTE_MS  # without its condition; what flickers stays one alarm
REPORT_PERIOD_MS = 5 * MINUTE_MS  # between two reports, which hold all that came meanwhile
RENOTIFY_AFTER_MS = HOUR_MS  # new jobs of an open alarm are news again
LEARN_PERIOD_MS = 10 * MINUTE_MS

log = structlog.get_logger()


class Watcher:
    """Checks for alarms and reports them. clock -- ms since the epoch; PostgreSQL's own if there.

    send -- sends a message at once, for when the queue cannot be reached. period -- seconds between
    two checks.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        send: Callable[[Message], Attempt],
        clock: Callable[[], int],
        period: int = PERIOD_SECONDS,
    ) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._send = send
        self._lease = 1000 * LEASE_PERIODS * period
        self._learn_at = 0
        self._holder = secrets.token_hex(12)
        self._has_lease = False
        # While the database cannot be used: the alarm of that, and the recipients it was sent to.
        self._outage: Alarm | None = None
        self._notified: set[str] = set()

    def check(self, *, force: bool = False) -> bool:
        """Raise and clear alarms, and put a report of them into the outbound queue.

        force -- check though another node has the lease. Returns False: nothing more is to be done.
        Raises StoreError, having reported it if need be.
        """
        try:
            self._check(force=force)
        except StoreError:
            self._report_loss()
            raise
        self._outage, self._notified = None, set()
        return False

    def release(self) -> None:
        """Give the lease back, so that another node may check at once. Raises StoreError."""
        if self._has_lease:
            self._has_lease = False
            with self._database.write() as session:
                claim(session, Watch, {}, {"holder": self._holder}, {"holder": "", "until": 0})

    def _check(self, *, force: bool) -> None:
        with self._database.write() as session:
            now = database_time(session, self._clock)
            self._has_lease = claim_watch(session, self._holder, now, self._lease, force=force)
        if not self._has_lease:
            return
        if not 0 < self._learn_at - now <= LEARN_PERIOD_MS:  # further ahead: a clock was wrong
            self._learn_at = now + LEARN_PERIOD_MS
            learn_all_usual_times(self._database)
        with self._database.read() as session:
            verdicts = judge_schedules(session, now)
            conditions = active_conditions(session, self._settings, now)
        with self._database.write() as session:
            # What was read took no lock: another node may have taken the lease meanwhile.
            if not lock_watch(session, self._holder):
                return
            if self._outage is not None and self._notified:
                store_alarm(session, self._outage)
            save(session, verdicts)
            conditions += schedule_conditions(verdicts)
            for alarm in update_alarms(session, conditions, now):
                _log(alarm)
                _queue_for_subscriptions(session, alarm, now)
            queue_overdue(session.connection(), self._settings.overdue_after, now)
            if has_channel(self._settings):
                self._report(session, now)
            if is_steady(session, now):
                delete_old(session, now, self._settings.keep_events)

    def _report(self, session: Session, now: int) -> None:
        content = take_report(session, self._settings.public_url, now)
        if content is not None:
            id_ = f"msg_{secrets.token_hex(12)}"
            enqueue(session.connection(), messages(self._settings, content, now, id_), now)

    def _report_loss(self) -> None:
        """Report a database that fails for too long, though nothing can be stored."""
        now = self._clock()
        if self._outage is None:
            self._outage = make_alarm("failing", "database", now, "the database cannot be used")
        lost = self._outage
        lost.last_seen_at = now
        if not self._has_lease or now - lost.raised_at < self._settings.failing_after:
            return
        # One and the same message at each attempt, by its id.
        id_ = f"msg_{self._holder}{lost.raised_at:x}"
        content = contents(self._settings.public_url, [lost], [], 1)
        for message in messages(self._settings, content, lost.raised_at, id_):
            if message.target not in self._notified and self._send(message).delivered:
                self._notified.add(message.target)
                lost.notified_at = now


def claim_watch(session: Session, holder: str, now: int, lease: int, *, force: bool) -> bool:
    """Take or renew the lease of the watch, for `lease` ms; False if another holds it."""
    free = true() if force else or_(is_due(Watch.until, now, DAY_MS), Watch.holder == holder)
    return claim(session, Watch, {}, {}, {"holder": holder, "until": now + lease}, free)


def lock_watch(session: Session, holder: str) -> bool:
    """Lock the lease until the end of the transaction; False if another node has taken it."""
    return claim(session, Watch, {}, {"holder": holder}, {"holder": holder})


def update_alarms(session: Session, conditions: Iterable[Condition], now: int) -> list[Alarm]:
    """Raise what is new, renew what still holds, clear what is over. Returns what is news.

    That is what was raised or cleared, is open when its snooze ends, or has new jobs or events.
    """
    # Locked: people acknowledge and snooze the same rows meanwhile.
    still_open = select(Alarm).where(Alarm.cleared_at.is_(None)).with_for_update()
    open_alarms = {
        (row.kind, row.subject, row.instance): row for row in session.scalars(still_open)
    }
    changed = []
    for condition in conditions:
        kind, subject = condition.kind, condition.subject
        instance = condition.instance or instance_of(kind, subject)
        row = open_alarms.get((kind, subject, instance))
        if row is None:
            row = make_alarm(kind, subject, now, condition.detail, instance)
            session.add(row)
            changed.append(row)
            row.news_newest = condition.newest
        elif _is_news(row, condition, now):
            changed.append(row)
            row.news_at, row.news_newest = now, condition.newest
        row.last_seen_at, row.newest = now, condition.newest
        row.count = max(row.count, condition.count)
        row.detail, row.examples = condition.detail, json.dumps(condition.examples)
    session.flush()
    for row in open_alarms.values():
        if abs(now - row.last_seen_at) >= CLEAR_AFTER_MS:  # ahead of now: a clock was wrong
            row.cleared_at = now
            changed.append(row)
    return changed


def _is_news(row: Alarm, condition: Condition, now: int) -> bool:
    """Whether an open alarm is to be reported again; one whose snooze is over is open again."""
    if row.snoozed_until is None:
        is_time = abs(now - row.news_at) >= RENOTIFY_AFTER_MS  # ahead of now: a clock was wrong
        return is_time and condition.newest > row.news_newest
    if now < row.snoozed_until <= now + MAX_SNOOZE_MS:
        return False
    reopen(row)
    return True


def make_alarm(
    kind: str, subject: str, now: int, detail: str, instance: str | None = None
) -> Alarm:
    """Make an alarm that is in no database. instance -- None: as the subject says."""
    return Alarm(
        kind=kind,
        subject=subject,
        instance=instance_of(kind, subject) if instance is None else instance,
        raised_at=now,
        last_seen_at=now,
        news_at=now,
        count=1,
        detail=detail,
        examples="[]",
    )


def store_alarm(session: Session, alarm: Alarm) -> None:
    """Store an alarm that was raised, and reported, while the database could not store it."""
    same = Alarm.kind == alarm.kind, Alarm.subject == alarm.subject, Alarm.cleared_at.is_(None)
    session.execute(update(Alarm).where(*same).values(cleared_at=alarm.raised_at))
    session.merge(alarm)  # a copy: this transaction may fail, and another store it
    session.flush()


def take_report(session: Session, receiver: str | None, now: int) -> Content | None:
    """Return what was not reported yet, and mark it as reported; None if it is not time yet.

    An alarm that was over before a report, or is snoozed since, is not reported.
    """
    last = session.execute(
        select(func.max(Alarm.notified_at), func.max(Alarm.clear_notified_at))
    ).one()
    if now - REPORT_PERIOD_MS < max((at or 0) for at in last) <= now:
        return None
    new = select(Alarm).where(Alarm.cleared_at.is_(None), Alarm.snoozed_until.is_(None))
    new = new.where(or_(Alarm.notified_at.is_(None), Alarm.notified_at < Alarm.news_at))
    raised = session.scalars(new.order_by(Alarm.id)).all()
    over = select(Alarm).where(Alarm.notified_at.is_not(None), Alarm.cleared_at.is_not(None))
    over = over.where(Alarm.clear_notified_at.is_(None))
    cleared = session.scalars(over.order_by(Alarm.id)).all()
    if not raised and not cleared:
        return None
    for row in raised:
        row.notified_at = row.news_at = now
    for row in cleared:
        row.clear_notified_at = now
    still_open = session.scalar(select(func.count()).where(Alarm.cleared_at.is_(None)))
    return contents(receiver, raised, cleared, still_open or 0)


def delete_old(session: Session, now: int, keep: int) -> None:
    """Delete alarms that were over `keep` ms ago, nodes that are gone, downloads long over."""
    affected(session, delete(Alarm).where(Alarm.cleared_at < now - keep))
    # The newest stays: it shows since when none is alive.
    newest = select(func.max(Node.at)).where(Node.at <= now).scalar_subquery()
    affected(session, delete(Node).where(Node.at < newest - DAY_MS))
    affected(session, delete(Fetch).where(Fetch.at < now - 4 * DAY_MS))  # files are kept for three


def _queue_for_subscriptions(session: Session, alarm: Alarm, now: int) -> None:
    type_: Type = "alarm.raised" if alarm.cleared_at is None else "alarm.resolved"
    change = f"{alarm.id}/{alarm.news_at}" if _is_again(alarm) else str(alarm.id)
    place = change, alarm.instance or None
    queue_alarm(session.connection(), type_, place, public_alarm(alarm), now)


def _log(alarm: Alarm) -> None:
    again = "an alarm is still open" if _is_again(alarm) else "an alarm is raised"
    what = again if alarm.cleared_at is None else "an alarm is cleared"
    log.warning(what, kind=alarm.kind, subject=alarm.subject, count=alarm.count)


def _is_again(alarm: Alarm) -> bool:
    return alarm.cleared_at is None and alarm.news_at != alarm.raised_at
