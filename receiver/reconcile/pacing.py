"""When the vendor may be asked for an instance: in turn over all nodes, its circuit closed.

A turn is taken by moving the instance's row in `paces` on: whoever did may ask at the time that
stood there. A circuit is opened by what concerns all of an instance, never by one job's fault.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import and_, case, or_, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import Database, database_time, upsert
from receiver.database.leases import is_due
from receiver.database.models import Pace
from receiver.errors import CircuitOpen, VendorError
from receiver.instances.registry import VendorSecrets
from receiver.lib.clock import HOUR_MS, iso
from receiver.openconnectors.client import Answer, Call, VendorClient, queue_call, read_entries

MAX_WAITING = 100  # turns taken ahead of time; one further ahead was taken under a wrong clock
MIN_BLOCK_MS = 10_000
MAX_BLOCK_MS = HOUR_MS

Claimer = Callable[[Session, int], bool]


@dataclass(frozen=True, slots=True)
class Pacer:
    """Gives turns. interval -- ms between two requests for an instance."""

    database: Database
    interval: int
    clock: Callable[[], int]
    sleep: Callable[[float], None] = time.sleep

    def wait_turn(
        self, instance: str, claim: Claimer | None = None, max_wait: int | None = None
    ) -> int | None:
        """Wait until the vendor may be asked for an instance; return when that is, ms.

        claim -- takes, at a time (ms), the work that the turn is for; None, and no turn, if another
        node has it. max_wait -- ms. Raises CircuitOpen, and then nothing is claimed.
        """
        with self.database.write() as session:
            now = database_time(session, self.clock)
            if claim is not None and not claim(session, now):
                return None
            turn = self._take_turn(session, instance, now, max_wait)
        self.sleep(max(0, turn - now) / 1000)
        return turn

    def open_circuit(self, instance: str, reason: str, retry_after: int | None = None) -> str:
        """Keep all from asking for an instance, with each failure for longer; return until when.

        reason -- what the vendor did. retry_after -- seconds that it wants to be left alone, at
        least.
        """
        with self.database.write() as session:
            now = database_time(session, self.clock)
            failures = session.scalar(select(Pace.failures).where(Pace.instance == instance)) or 0
            block = min(MAX_BLOCK_MS, MIN_BLOCK_MS * 2 ** min(failures, 20))
            block -= secrets.randbelow(block // 4 + 1)  # nodes shall not come back all at once
            until = now + max(block, min(1000 * (retry_after or 0), MAX_BLOCK_MS))
            pace = update(Pace).where(Pace.instance == instance)
            now_open = {"failures": failures + 1, "blocked_until": until, "reason": reason}
            session.execute(pace.values(now_open))
        return _left_alone(reason, until)

    def close_circuit(self, instance: str) -> None:
        """Forget an instance's failures, unless another node met one meanwhile."""
        with self.database.write() as session:
            now = database_time(session, self.clock)
            over = Pace.failures > 0, is_due(Pace.blocked_until, now, MAX_BLOCK_MS)
            pace = update(Pace).where(Pace.instance == instance, *over)
            session.execute(pace.values(failures=0, blocked_until=0))

    def _take_turn(self, session: Session, instance: str, now: int, max_wait: int | None) -> int:
        longest = (MAX_WAITING - 1) * self.interval
        wait = longest if max_wait is None else min(max_wait, longest)
        new = upsert(session, Pace).values(
            instance=instance, next_at=now + self.interval, failures=0, blocked_until=0
        )
        waiting = Pace.next_at.between(now + 1, now + longest + self.interval)
        closed = is_due(Pace.blocked_until, now, MAX_BLOCK_MS)
        statement = new.on_conflict_do_update(
            index_elements=[Pace.instance],
            set_={"next_at": case((waiting, Pace.next_at), else_=now) + self.interval},
            where=and_(closed, or_(~waiting, Pace.next_at <= now + wait)),
        )
        next_at = session.scalar(statement.returning(Pace.next_at))
        if next_at is None:
            raise _refusal(session, instance, now, wait)
        return int(next_at) - self.interval


@dataclass(slots=True)
class PacedVendor:
    """The vendor, asked for one instance, each time in its turn. max_wait -- ms for a turn."""

    instance: str
    secrets: VendorSecrets
    vendor: VendorClient
    pacer: Pacer
    max_wait: int | None = None

    def wait(self, claim: Claimer | None = None) -> int | None:
        """Claim work and wait for the turn to ask; see `Pacer.wait_turn`."""
        return self.pacer.wait_turn(self.instance, claim, self.max_wait)

    def send(self, call: Call) -> Answer:
        """Ask, in the turn that was waited for; what is sent again waits for its own."""
        return self.vendor.send(self.secrets.authorization, call, self.wait)

    def pages(self, first: Call) -> Iterator[Answer]:
        """Ask for all pages; the turn of the first was waited for."""
        for answer in self.vendor.pages(self.secrets.authorization, first, self.wait):
            yield answer
            if answer.next_page:
                self.wait()

    def count_queued(self) -> int:
        """Ask how many deliveries the vendor holds back."""
        return len(read_entries(self._ask_queue(queue_call()).body))

    def resend_queued(self) -> None:
        """Ask the vendor to send them."""
        self._ask_queue(queue_call(resend=True))

    def _ask_queue(self, call: Call) -> Answer:
        self.wait()
        return self.vendor.send(self.secrets.queue, call, self.wait)


def _refusal(session: Session, instance: str, now: int, wait: int) -> CircuitOpen:
    pace = session.scalars(select(Pace).where(Pace.instance == instance)).one()
    blocked_until, next_at = pace.blocked_until, pace.next_at
    open_ = now < blocked_until <= now + MAX_BLOCK_MS
    seconds = max(1, -(-((blocked_until if open_ else next_at - wait) - now) // 1000))
    if open_:
        text = _left_alone(pace.reason or "the vendor failed for this instance", blocked_until)
    else:
        text = f"others wait to ask for this instance: it is left alone for {seconds} s"
    return CircuitOpen(text, 503, seconds)


def _left_alone(reason: str, until: int) -> str:
    """Return why a vendor is not asked, and until when (ms)."""
    return f"{reason}; not asked again for this instance before {iso(until)}"


def describe_failure(error: VendorError) -> str:
    """Say what the vendor did: its status too, where the error's text is its own message."""
    text = str(error)
    return text if text.startswith("the vendor") else f"the vendor answered {error.status}: {text}"
