"""Alarms: raised once, noticed once, cleared once, whoever watches. Functions take a Session.

Of all who watch one holds the row in `watch` and writes, so that nothing is raised or told twice.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from receiver.alarms.conditions import Symptom
from receiver.database.alarm_models import Alarm, Fetch, Node, Notice, Watch
from receiver.database.engine import affected
from receiver.lib.clock import DAY_MS, MINUTE_MS

CALM_MS = 5 * MINUTE_MS  # unseen for so long, an alarm is over; what flickers stays one
INTERVAL_MS = 5 * MINUTE_MS  # between two notices, which tell all that came meanwhile
SEND_LEASE_MS = 2 * MINUTE_MS
MOST_RETRY_MS = 60 * MINUTE_MS
MOST_TRIES = 60  # some two days


def claim_watch(session: Session, holder: str, now: int, lease: int, *, force: bool) -> bool:
    """Be the one who watches, for `lease` ms; False if another is. force -- take it from them."""
    mine = update(Watch).where(or_(Watch.holder == holder, Watch.until <= now))
    statement = update(Watch) if force else mine
    return affected(session, statement.values(holder=holder, until=now + lease)) == 1


def still_watches(session: Session, holder: str) -> bool:
    """Lock the watch until the end of the transaction; False if another has taken it."""
    mine = update(Watch).where(Watch.holder == holder)
    return affected(session, mine.values(holder=holder)) == 1


def is_watched(session: Session, now: int) -> bool:
    """Whether anybody watches."""
    return (session.scalar(select(func.max(Watch.until))) or 0) > now


def note_symptoms(session: Session, found: Iterable[Symptom], now: int) -> list[Alarm]:
    """Raise what is new, renew what is still so, clear what is over. Gives what changed."""
    known = {
        (row.kind, row.subject): row
        for row in session.scalars(select(Alarm).where(Alarm.cleared_at.is_(None)))
    }
    changed = []
    for symptom in found:
        row = known.get((symptom.kind, symptom.subject))
        if row is None:
            row = Alarm(kind=symptom.kind, subject=symptom.subject, raised_at=now, count=0)
            session.add(row)
            changed.append(row)
        row.last_seen_at = now
        row.count = max(row.count, symptom.count)
        row.detail, row.examples = symptom.detail, json.dumps(symptom.examples)
    session.flush()
    for row in known.values():
        if row.last_seen_at <= now - CALM_MS:
            row.cleared_at = now
            changed.append(row)
    return changed


def unwritten(kind: str, subject: str, now: int, detail: str) -> Alarm:
    """Make an alarm that is in no database."""
    return Alarm(
        kind=kind,
        subject=subject,
        raised_at=now,
        last_seen_at=now,
        count=1,
        detail=detail,
        examples="[]",
    )


def write_down(session: Session, alarm: Alarm) -> None:
    """Keep an alarm that was raised, and told of, while the database could not keep it."""
    same = Alarm.kind == alarm.kind, Alarm.subject == alarm.subject, Alarm.cleared_at.is_(None)
    session.execute(update(Alarm).where(*same).values(cleared_at=alarm.raised_at))
    session.add(
        Alarm(
            kind=alarm.kind,
            subject=alarm.subject,
            raised_at=alarm.raised_at,
            last_seen_at=alarm.last_seen_at,
            count=alarm.count,
            detail=alarm.detail,
            examples=alarm.examples,
            notified_at=alarm.notified_at,
        )
    )
    session.flush()


@dataclass(frozen=True, slots=True)
class Told:
    """What a notice tells: alarms raised and cleared, and how many are open."""

    raised: Sequence[Alarm]
    cleared: Sequence[Alarm]
    open: int


def write_notice(
    session: Session, targets: Iterable[str], compose: Callable[[Told], Any], now: int
) -> bool:
    """Write one notice, for each target, of all that was not told yet; False if there is none.

    An alarm that was over before a notice could tell of it is never told.
    """
    last = session.scalar(select(func.max(Notice.made_at)))
    if last is not None and last > now - INTERVAL_MS:
        return False
    raised = session.scalars(
        select(Alarm)
        .where(Alarm.notified_at.is_(None), Alarm.cleared_at.is_(None))
        .order_by(Alarm.id)
    ).all()
    over = select(Alarm).where(Alarm.notified_at.is_not(None), Alarm.cleared_at.is_not(None))
    cleared = session.scalars(
        over.where(Alarm.clear_notified_at.is_(None)).order_by(Alarm.id)
    ).all()
    if not raised and not cleared:
        return False
    body = json.dumps(compose(Told(raised, cleared, _count_open(session))))
    for target in targets:
        id_ = f"msg_{secrets.token_hex(12)}"
        session.add(Notice(id=id_, target=target, body=body, made_at=now, tries=0, next_at=now))
    for row in raised:
        row.notified_at = now
    for row in cleared:
        row.clear_notified_at = now
    return True


def next_notice(session: Session, targets: Sequence[str], now: int) -> Notice | None:
    """Claim a notice that is due to one of the targets, or None if there is none."""
    due = select(Notice).where(Notice.next_at <= now, Notice.target.in_(targets))
    row = session.scalar(due.order_by(Notice.next_at).limit(1))
    if row is None:
        return None
    mine = update(Notice).where(Notice.id == row.id, Notice.next_at == row.next_at)
    claimed = affected(session, mine.values(next_at=now + SEND_LEASE_MS, tries=Notice.tries + 1))
    session.refresh(row)
    session.expunge(row)
    return row if claimed else None


def end_notice(session: Session, notice: Notice, now: int, result: str, *, sent: bool) -> None:
    """Write down what came of sending; what failed is tried again, ever later."""
    pause = min(MOST_RETRY_MS, MINUTE_MS // 2 * 2 ** min(notice.tries, 20))
    again = None if sent or notice.tries >= MOST_TRIES else now + pause
    mine = update(Notice).where(Notice.id == notice.id)
    session.execute(mine.values(result=result, next_at=again, sent_at=now if sent else None))


def alarms(
    session: Session, visible: frozenset[str] | None, *, only_open: bool, limit: int = 50
) -> Sequence[Alarm]:
    """Give alarms, newest first. visible -- instances that are shown; None is all alarms."""
    statement = select(Alarm).order_by(Alarm.raised_at.desc(), Alarm.id.desc()).limit(limit)
    if only_open:
        statement = statement.where(Alarm.cleared_at.is_(None))
    if visible is not None:
        statement = statement.where(Alarm.subject.in_(visible), Alarm.kind != "failing")
    return session.scalars(statement).all()


def forget(session: Session, now: int, keep: int) -> None:
    """Delete what nobody will ask for: alarms that were over `keep` ms ago, and what is done."""
    session.execute(delete(Alarm).where(Alarm.cleared_at < now - keep))
    session.execute(delete(Notice).where(Notice.made_at < now - 30 * DAY_MS))
    newest = select(func.max(Node.at)).scalar_subquery()  # stays, to tell when all fell silent
    session.execute(delete(Node).where(Node.at < newest - DAY_MS))
    session.execute(delete(Fetch).where(Fetch.at < now - 4 * DAY_MS))  # files are kept for three


def _count_open(session: Session) -> int:
    return session.scalar(select(func.count()).where(Alarm.cleared_at.is_(None))) or 0
