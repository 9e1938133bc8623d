"""The queue of messages to others: enqueued in the transaction that causes them, claimed by lease.

A message is delivered at least once. Its state and its next turn are in the database, so pauses
survive a restart, and what a dead process was sending is sent again by another.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Connection, exists, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from receiver.database.engine import affected
from receiver.database.leases import claim, is_due
from receiver.database.models.outbound import OutboundAttempt, OutboundDelivery
from receiver.lib.clock import MINUTE_MS

PAUSES_SECONDS = (5, 30, 120, 600, 3_600, 21_600, 86_400)  # after the first attempt, the second, …
JITTER = 0.1  # of a pause, so that what failed together is not tried together again
LEASE_MS = MINUTE_MS  # an attempt takes a third of it at most
MAX_PAUSE_MS = 1000 * round(PAUSES_SECONDS[-1] * (1 + JITTER))
MAIL_HOST = "mail"  # all mails go through one server
MAX_PER_HOST = 2  # attempts under way at once in a process


Result: TypeAlias = Literal["delivered", "waiting", "failed"]


class Message(msgspec.Struct, frozen=True):
    """What one recipient is sent. See OutboundDelivery."""

    kind: str
    target: str
    body: bytes
    webhook_id: str = msgspec.field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    instance: str | None = None
    job: str | None = None
    subscription: str | None = None
    type: str | None = None

    @property
    def host(self) -> str:
        """What attempts are counted by."""
        return _host_of(self.target)

    def row(self, now: int) -> "NewRow":
        """Return the row that has it sent from now on, ms."""
        headers = msgspec.json.encode(self.headers).decode()
        return NewRow._make((*_facts(self), self.host, headers, now, "waiting", 0, now))


class NewRow(NamedTuple):
    """A row of OutboundDelivery; what it has in common with its message comes first."""

    kind: str
    target: str
    body: bytes
    webhook_id: str
    instance: str | None
    job: str | None
    subscription: str | None
    type: str | None
    host: str
    headers: str
    at: int
    state: str
    tries: int
    next_at: int


_FACTS = NewRow._fields[: NewRow._fields.index("host")]

_facts = attrgetter(*_FACTS)


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
    another attempt is of no use. retry_after -- seconds the recipient asks to be left alone for.
    """

    delivered: bool
    status: int | None = None
    error: str | None = None
    answer: bytes = b""
    final: bool = False
    retry_after: int = 0


def enqueue(connection: Connection, messages: Iterable[Message], now: int) -> None:
    """Add messages to the queue. One whose webhook_id is there already is the same: it is not."""
    rows = [message.row(now)._asdict() for message in messages]
    if rows:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(dialect.insert(OutboundDelivery).on_conflict_do_nothing(), rows)


def due(
    session: Session, kinds: Collection[str], now: int, busy: Mapping[str, int], limit: int
) -> list[OutboundDelivery]:
    """Return deliveries that are due, longest waiting first, some of each host.

    busy -- hosts to leave out, and hosts with attempts under way: how many more each may have.
    """
    row, before = OutboundDelivery, aliased(OutboundDelivery)
    full = [host for host, free in busy.items() if free <= 0]
    ready = (row.next_at.is_not(None), is_due(row.next_at, now, MAX_PAUSE_MS), row.kind.in_(kinds))
    # Read from the index alone: 10,000 that wait for one dead host cost about a millisecond.
    hosts = (
        select(row.host, func.min(row.next_at))
        .where(*ready, row.host.not_in(full))
        .group_by(row.host)
        .order_by(func.min(row.next_at))
        .limit(limit)
    )
    in_turn = ~exists().where(
        *(before.job == row.job, before.instance == row.instance),
        before.subscription == row.subscription,
        *(before.id < row.id, before.next_at.is_not(None)),
    )
    rows: list[OutboundDelivery] = []
    for host, _ in session.execute(hosts).all():
        first = select(row).where(*ready, row.host == host, in_turn)
        order = first.order_by(row.next_at, row.id).limit(busy.get(host, MAX_PER_HOST))
        rows += session.scalars(order)
    return rows[:limit]


def claim_delivery(session: Session, row: OutboundDelivery, now: int) -> Claimed | None:
    """Take a delivery that is due, for LEASE_MS; None if another process did."""
    seen = {"tries": row.tries, "next_at": row.next_at}
    lease = {"tries": row.tries + 1, "next_at": now + LEASE_MS}
    if not claim(session, OutboundDelivery, {"id": row.id}, seen, lease):
        return None
    facts = dict(zip(_FACTS, _facts(row), strict=True))
    message = Message(headers=msgspec.json.decode(row.headers), **facts)
    return Claimed(row.id, row.tries + 1, now, message)


def result_of(claimed: Claimed, attempt: Attempt) -> Result:
    """Return what an attempt makes of a delivery."""
    if attempt.delivered:
        return "delivered"
    is_last = attempt.final or claimed.tries > len(PAUSES_SECONDS)
    return "failed" if is_last else "waiting"


def record(
    session: Session, claimed: Claimed, attempt: Attempt, now: int, duration_ms: int
) -> None:
    """Record an attempt and give the lease back: the delivery is done, or has its next turn."""
    state, next_at = result_of(claimed, attempt), None
    if state == "waiting":
        next_at = now + _pause_ms(claimed.tries, attempt.retry_after)
    # Not if it was erased meanwhile, or sent again by another process after the lease.
    claimed_row = update(OutboundDelivery).where(
        OutboundDelivery.id == claimed.id, OutboundDelivery.tries == claimed.tries
    )
    if affected(session, claimed_row.values(state=state, next_at=next_at)):
        session.execute(
            insert(OutboundAttempt).values(
                delivery=claimed.id,
                at=now - duration_ms,
                duration_ms=duration_ms,
                status=attempt.status,
                error=attempt.error,
                answer=attempt.answer,
            )
        )


@lru_cache
def _host_of(target: str) -> str:
    return (urlsplit(target).hostname or MAIL_HOST)[:255]


def _pause_ms(tries: int, retry_after: int) -> int:
    pause = 1000 * max(PAUSES_SECONDS[tries - 1], min(retry_after, PAUSES_SECONDS[-1]))
    return pause + secrets.randbelow(round(pause * JITTER))
