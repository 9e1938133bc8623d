"""One instance's turn at the vendor: paced over all nodes, and closed while the vendor fails."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy.orm import Session

from receiver.database.engine import Database, database_time
from receiver.instances.registry import VendorSecrets
from receiver.openconnectors import client as upstream
from receiver.reconcile import followups


class Blocked(Exception):
    """The vendor failed for this instance a short while ago."""


@dataclass(frozen=True, slots=True)
class Road:
    """What all lanes have in common. interval -- ms between two requests for an instance."""

    database: Database
    vendor: upstream.Upstream
    interval: int
    clock: Callable[[], int]
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Lane:
    """The way to the vendor for one instance."""

    instance: str
    secrets: VendorSecrets
    road: Road

    def turn(
        self,
        claim: Callable[[Session, int], bool] | None = None,
        patience: int = followups.MAX_POLL_PAUSE_MS,
    ) -> bool:
        """Wait until the vendor may be asked for this instance. Raises Blocked.

        patience -- ms; Blocked where it would take longer. claim -- takes, at a time (ms), the work
        that the turn is for. False, and no turn, if another node has it.
        """
        with self.road.database.write() as session:
            now = database_time(session, self.road.clock)
            if claim is not None and not claim(session, now):
                return False
            turn = followups.take_turn(session, self.instance, now, self.road.interval, patience)
            if turn is None:
                raise Blocked  # in here: the claim is not kept
        self.road.sleep(max(0, turn - now) / 1000)
        return True

    def send(self, call: upstream.Call) -> upstream.Answer:
        """Send a call whose turn it is; what is sent again waits for a turn of its own."""
        return self.road.vendor.send(self.secrets.authorization, call, self.turn)

    def ask_queue(self, *, resend: bool = False) -> upstream.Answer:
        """Ask for the deliveries that the vendor holds back, or have them sent; its turn it is."""
        return self.road.vendor.send(self.secrets.queue, upstream.queued(resend=resend), self.turn)

    def pages(self, first: upstream.Call) -> Iterator[upstream.Answer]:
        """Give all pages; the turn for the first one is there."""
        for answer in self.road.vendor.pages(self.secrets.authorization, first, self.turn):
            yield answer
            if answer.next_page:
                self.turn()
