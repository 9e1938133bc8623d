"""The queue of messages to others: enqueued in the transaction that causes them, claimed by lease.

A message is delivered at least once. Its state and its next turn are in the database, so pauses
survive a restart, and what a dead process was sending is sent again by another.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from sqlalchemy import (
    BigInteger,
    Connection,
    LargeBinary,
    Text,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from receiver.database.leases import is_due
from receiver.database.models.outbound import OutboundAttempt, OutboundDelivery
from receiver.database.page import distinct_values
from receiver.lib.clock import MINUTE_MS

PAUSES_SECONDS = (5, 30, 120, 600, 3_600, 21_600, 86_400)  # after the first attempt, the second, …
JITTER = 0.1  # of a pause, so that what failed together is not tried together again
LEASE_MS = MINUTE_MS  # an attempt takes a third of it at most
MAX_PAUSE_MS = 1000 * round(PAUSES_SECONDS[-1] * (1 + JITTER))
MAIL_HOST = "mail"  # all mails go through one server
MAX_PER_HOST = 2  # attempts under way at once in a process


Result: TypeAlias = Literal["delivered", "waiting", "failed"]


class Message(NamedTuple):
    """What one recipient is sent. See OutboundDelivery."""

    kind: str
    target: str
    body: bytes
    webhook_id: str
    instance: str | None = None
    job: str | None = None
    subscription: str | None = None
    type: str | None = None

    @property
    def host(self) -> str:
        """Its target's, as `host_of` has it."""
        return host_of(self.target)

    def row(self, now: int) -> tuple[object, ...]:
        """Return the values of COLUMNS that have it sent from now on, ms."""
        return *self, self.host, now, now


COLUMNS = (*Message._fields, "host", "at", "next_at")


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message that this process, and no other, is to send now. tries -- this one included.

    at -- ms, by the time that all nodes agree on.
    """

    id: int
    tries: int
    at: int
    message: Message


@dataclass(frozen=True, slots=True)
class Attempt:
    """The outcome of sending a message once.

    status -- of HTTP or SMTP, if there was an answer, else `error` says why not. final -- whether
    another attempt is of no use. retry_after -- seconds the recipient asks to be left alone for, at
    most the longest pause.
    """

    delivered: bool
    status: int | None = None
    error: str | None = None
    answer: bytes = b""
    final: bool = False
    retry_after: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that is over, and not recorded yet."""

    claimed: Claimed
    attempt: Attempt
    duration_ms: int


def enqueue(connection: Connection, messages: Iterable[Message], now: int) -> None:
    """Add messages to the queue. One whose webhook_id is there already is the same: it is not."""
    rows = [dict(zip(COLUMNS, message.row(now), strict=True)) for message in messages]
    if rows:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(dialect.insert(OutboundDelivery).on_conflict_do_nothing(), rows)


def due(
    session: Session, kinds: Collection[str], now: int, busy: Mapping[str, int], limit: int
) -> list[int]:
    """Return the ids of deliveries that are due, longest waiting first, some of each host.

    busy -- hosts to leave out, and hosts with attempts under way: how many more each may have.
    """
    connection = session.connection()
    turn = {"now": now, "kinds": kinds}
    full = [host for host, free in busy.items() if free <= 0]
    ids: list[int] = []
    for host in connection.scalars(_HOSTS, {**turn, "full": full, "limit": limit}).all():
        free = busy.get(host, MAX_PER_HOST)
        ids += connection.scalars(_FIRST, {**turn, "of_host": host, "limit": free})
    return ids[:limit]


def claim_due(session: Session, ids: Sequence[int], now: int) -> list[Claimed]:
    """Take those deliveries that are still due, for LEASE_MS; others may look at the same time."""
    lease = {"now": now, "ids": ids, "lease_ends": now + LEASE_MS}
    rows = session.connection().execute(_CLAIM, lease).all()
    return [Claimed(id_, tries, now, Message(*facts)) for id_, tries, *facts in rows]


def result_of(claimed: Claimed, attempt: Attempt) -> Result:
    """Return what an attempt makes of a delivery."""
    if attempt.delivered:
        return "delivered"
    is_last = attempt.final or claimed.tries > len(PAUSES_SECONDS)
    return "failed" if is_last else "waiting"


def record(session: Session, ended: Sequence[Ended], now: int) -> None:
    """Record attempts and give their leases back: each delivery is done, or has its next turn."""
    rows = [_record_of(one, now) for one in ended]
    session.connection().execute(_RECORD, rows)
    session.connection().execute(_RECORD_ATTEMPT, rows)


def _record_of(ended: Ended, now: int) -> dict[str, object]:
    claimed, attempt = ended.claimed, ended.attempt
    state, next_at = result_of(claimed, attempt), None
    if state == "waiting":
        next_at = now + _pause_ms(claimed.tries, attempt.retry_after)
    return {
        "of_id": claimed.id,
        "of_tries": claimed.tries,
        "new_state": state,
        "new_turn": next_at,
        "began": claimed.at,
        "took": ended.duration_ms,
        "status": attempt.status,
        "error": attempt.error,
        "answer": attempt.answer,
    }


@lru_cache
def host_of(target: str) -> str:
    """Return what attempts to send to a URL are counted by."""
    return (urlsplit(target).hostname or MAIL_HOST)[:255]


def _pause_ms(tries: int, retry_after: int) -> int:
    pause = 1000 * max(PAUSES_SECONDS[tries - 1], retry_after)
    return pause + secrets.randbelow(round(pause * JITTER))


# Built once: to build one takes longer than to run it.
_ROW, _BEFORE = OutboundDelivery, aliased(OutboundDelivery)
_NOW = bindparam("now", type_=BigInteger)
_IS_DUE = _ROW.next_at.is_not(None), is_due(_ROW.next_at, _NOW, MAX_PAUSE_MS)
_OF_KINDS = _ROW.kind.in_(bindparam("kinds", expanding=True))
# By a few searches of the index for each host, however many wait.
_WAITING = distinct_values(_ROW.host, _ROW.next_at.is_not(None)).subquery()
_OF_HOST = _ROW.host == _WAITING.c.value, _ROW.next_at.is_not(None), _OF_KINDS
_earliest = select(func.min(_ROW.next_at)).where(*_OF_HOST).scalar_subquery()
_latest = select(func.max(_ROW.next_at)).where(*_OF_HOST).scalar_subquery()
_HOSTS = (
    select(_WAITING.c.value)
    .where(
        _WAITING.c.value.not_in(bindparam("full", expanding=True)),
        or_(_earliest <= _NOW, _latest > _NOW + MAX_PAUSE_MS),
    )
    .order_by(_earliest)
    .limit(bindparam("limit"))
)
_IN_TURN = ~exists().where(
    _BEFORE.job == _ROW.job,
    _BEFORE.instance == _ROW.instance,
    _BEFORE.subscription == _ROW.subscription,
    _BEFORE.id < _ROW.id,
    _BEFORE.next_at.is_not(None),
)
_FIRST = (
    select(_ROW.id)
    .where(*_IS_DUE, _OF_KINDS, _ROW.host == bindparam("of_host"), _IN_TURN)
    .order_by(_ROW.next_at, _ROW.id)
    .limit(bindparam("limit"))
)
_CLAIM = (
    update(_ROW)
    .where(_ROW.id.in_(bindparam("ids", expanding=True)), *_IS_DUE)
    .values(tries=_ROW.tries + 1, next_at=bindparam("lease_ends"))
    .returning(_ROW.id, _ROW.tries, *(getattr(_ROW, name) for name in Message._fields))
)
# Not those that were erased meanwhile, or sent again by another process after the lease.
_CLAIMED = _ROW.id == bindparam("of_id"), _ROW.tries == bindparam("of_tries")
_RECORD = (
    update(_ROW)
    .where(*_CLAIMED)
    .values(state=bindparam("new_state"), next_at=bindparam("new_turn"))
)
_ATTEMPT = {
    OutboundAttempt.delivery: _ROW.id,
    OutboundAttempt.at: bindparam("began", type_=BigInteger),
    OutboundAttempt.duration_ms: bindparam("took", type_=BigInteger),
    OutboundAttempt.status: bindparam("status", type_=BigInteger),
    OutboundAttempt.error: bindparam("error", type_=Text),
    OutboundAttempt.answer: bindparam("answer", type_=LargeBinary),
}
_RECORD_ATTEMPT = insert(OutboundAttempt).from_select(
    list(_ATTEMPT), select(*_ATTEMPT.values()).where(*_CLAIMED)
)
