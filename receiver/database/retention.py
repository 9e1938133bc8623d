"""Retention: delete expired rows in small batches, each followed by a rest."""

import time
from collections.abc import Callable, Iterator

import structlog

from receiver.database import audit, pruning
from receiver.database.engine import Database, database_time
from receiver.database.leases import is_steady
from receiver.errors import ClockStepped
from receiver.lib.clock import MINUTE_MS
from receiver.settings import Settings

BATCH = 500  # rows
REST = 3  # for each second of deleting, so many for callbacks alone
SHORTEST_REST = 0.02  # seconds
LOOK_SECONDS = 60  # between looks whether a pass is due
PERIOD_MS = 60 * MINUTE_MS
LEASE_MS = MINUTE_MS  # until a pass that a node began and left may be taken up by another

log = structlog.get_logger()


class Retention:
    """Deletes what is too old.

    clock -- ms since the epoch; PostgreSQL's own is used if there. actor -- as the audit names it.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        clock: Callable[[], int],
        sleep: Callable[[float], None] = time.sleep,
        *,
        actor: str = "retention",
    ) -> None:
        self._settings, self._database = settings, database
        self._clock, self._sleep, self._actor = clock, sleep, actor
        self._passing: Iterator[tuple[str, int]] | None = None

    def step(self) -> bool:
        """Do one batch of this node's pass, or begin one that is due; return whether there is more.

        Of all nodes one makes the pass. Nothing is deleted while the clock is doubted. Raises
        StoreError; the pass is due again after LEASE_MS.
        """
        if self._passing is None:
            self._passing = self._due()
        if self._passing is None:
            return False
        if next(self._passing, None) is None:
            self._passing = None
        return self._passing is not None

    def passing(
        self, older_than: int | None = None, *, claimed: bool = False
    ) -> Iterator[tuple[str, int]]:
        """Make a whole pass; give after each batch what went: its kind and how many rows.

        older_than -- ms, instead of both settings. claimed -- whether this is the pass that is due.
        Passes of several nodes at once share the work. Raises StoreError; what went is gone.
        """
        began, old = self._old(older_than)
        deleted = dict.fromkeys(pruning.STEPS, 0)
        for kind in pruning.STEPS:
            place: pruning.Place | None = None
            while True:
                done, took = self._batch(kind, old, place, claimed=claimed)
                deleted[kind] += done.rows
                yield kind, done.rows
                if done.place is None:
                    break
                place = done.place
                self._sleep(max(SHORTEST_REST, REST * took))
        with self._database.write(patience=None) as session:
            now = database_time(session, self._clock)
            if any(deleted.values()) or not claimed:
                told = ", ".join(f"{rows} {kind}" for kind, rows in deleted.items() if rows)
                told = told or "nothing"
                audit.record(session, at=now, actor=self._actor, action="prune", subject=told)
            state = pruning.note_pass(session, began, now, deleted)
            if claimed:
                state.next_at = began + PERIOD_MS
            pruning.drop_hours(session, now)
        if claimed and any(deleted.values()):
            log.info("too old, and deleted", **deleted)

    def due(self, older_than: int | None = None) -> dict[str, int]:
        """Count what a pass would delete now, by kind."""
        _, old = self._old(older_than)
        with self._database.read() as session:
            return pruning.due(session, old)

    def _old(self, older_than: int | None) -> tuple[int, pruning.Cutoffs]:
        bodies = older_than or self._settings.keep_bodies
        events = older_than or self._settings.keep_events
        with self._database.read() as session:
            now = database_time(session, self._clock)
        return now, pruning.cutoffs(now, bodies, events)

    def _batch(
        self, kind: str, old: pruning.Cutoffs, place: pruning.Place | None, *, claimed: bool
    ) -> tuple[pruning.Batch, float]:
        """One transaction; give the seconds it took from others, waiting for them not counted."""
        with self._database.write(patience=None) as session:
            began = time.perf_counter()
            if claimed:
                now = database_time(session, self._clock)
                if not is_steady(session, now):
                    raise ClockStepped("the clock jumped by over a day, so nothing is deleted")
                pruning.turn(session).next_at = now + LEASE_MS
            done = pruning.batch(session, kind, old, place, BATCH)
        return done, time.perf_counter() - began

    def _due(self) -> Iterator[tuple[str, int]] | None:
        with self._database.read() as session:
            if not is_steady(session, database_time(session, self._clock)):
                return None
        with self._database.write(patience=None) as session:
            now = database_time(session, self._clock)
            claimed = pruning.claim_pass(session, now, LEASE_MS, PERIOD_MS)
        return self.passing(claimed=True) if claimed else None
