"""Verified callbacks as they become visible, none left out: what the stream of events reads.

The number of an event begins with its time and is assigned before its transaction commits, by
several nodes and processes: an event may become visible after one with a higher number was read.
It does so within a window of its time, or never: `store` commits no transaction that took longer
than MAX_WRITING_SECONDS (8), PostgreSQL ends one that idles (5 s) and a commit that hangs (7 s).
SQLite has one writer at a time, whose numbers grow with each commit; its window is for a clock that
is put back a little. Hence the rule:

- Each read begins again at the start of the window, or at the newest event read if that is older,
  and leaves out what was read before.
- Who resumes after an event reads from a window before that event: what was visible when it was
  sent was sent as well, and what was not is in that window. So the last events may come twice, each
  with the id it had; within one connection none does.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import BigInteger, Integer, Row, bindparam, select, text

from receiver.callbacks.events import EventRecord, read_events
from receiver.database.engine import TIME, Database
from receiver.database.models import NUMBER_BITS, Event, Retention
from receiver.errors import ClockStepped
from receiver.jobs.queries import Instances

WINDOW_MS, SQLITE_WINDOW_MS = 20_000, 5_000
PAGE = 200  # events of one read
PAGE_BYTES = 4 * 2**20  # of their bodies, unless one alone has more

Missed: TypeAlias = Literal["too_old", "unknown_id"]


class NewEvents(NamedTuple):
    """Events that became visible, each with its body unless that is gone.

    more -- whether others wait to be read.
    """

    events: list[tuple[EventRecord, bytes | None]]
    more: bool


class Reader:
    """Reads events as they become visible. clock -- ms since the epoch, where SQLite is used."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        self._database, self._clock = database, clock
        self._window = SQLITE_WINDOW_MS if database.is_sqlite else WINDOW_MS
        self._low = self._newest = 0  # what is not above `_low` was read, or is never to be
        self._seen: set[int] = set()  # of what is above
        self.position = 0  # all that was visible at the time in this number was read

    def begin(self, after: int | None = None) -> Missed | None:
        """Begin after the event of a number, or now; return why events after it may be missing.

        A number ahead of the clock comes from another receiver, or the clock was put back: then the
        reader begins now.
        """
        now = self._now()
        if after is not None and after <= (now + self._window) << NUMBER_BITS:
            ((forgotten_before,),) = self._database.rows(_FORGOTTEN)
            is_too_old = after >> NUMBER_BITS < forgotten_before
            first = max((after >> NUMBER_BITS) - self._window, forgotten_before)
            self._low = self._newest = (first << NUMBER_BITS) - 1
            return "too_old" if is_too_old else None
        self._low = (now - self._window) << NUMBER_BITS
        self._seen = {n for (n,) in self._database.rows(_VISIBLE, {"low": self._low})}
        self._newest = max(self._seen, default=self._low)
        self.position = now << NUMBER_BITS
        return None if after is None else "unknown_id"

    def read(self, instances: Instances) -> NewEvents:
        """Read on; return the new events of these instances. Raises ClockStepped: begin again."""
        now = self._now()
        if now << NUMBER_BITS < self._low:
            raise ClockStepped("the clock was put back: events have lower numbers than before")
        limit = len(self._seen) + PAGE
        rows = self._database.rows(_NUMBERS, {"low": self._low, "limit": limit})
        fresh = [row for row in rows if row.n not in self._seen]
        taken = list(_page(fresh))
        wanted = [row.n for row in taken if instances is None or row.instance in instances]
        events = read_events(self._database, wanted)
        more = len(taken) < len(fresh) or len(rows) == limit
        numbers = [row.n for row in taken]
        self._newest = max(self._newest, *numbers, self._low)
        end = numbers[-1] if more else self._newest
        self._low = max(self._low, min((now - self._window) << NUMBER_BITS, end))
        self._seen = {n for n in self._seen.union(numbers) if n > self._low}
        if not more:
            self.position = now << NUMBER_BITS
        return NewEvents(events, more)

    def has_read(self, n: int) -> bool:
        """Whether an event that is visible was read."""
        return n <= self._low or n in self._seen

    def _now(self) -> int:
        if self._database.is_sqlite:
            return self._clock()
        return int(self._database.rows(text(TIME))[0][0])


def _page(rows: Sequence[Row[*tuple[Any, ...]]]) -> Iterator[Row[*tuple[Any, ...]]]:
    """Yield the rows that fit into one page, by number and by size."""
    remaining = PAGE_BYTES
    for count, row in enumerate(rows[:PAGE]):
        remaining -= row.size
        if remaining < 0 and count:
            return
        yield row


_LOW = bindparam("low", type_=BigInteger)
_VISIBLE = select(Event.n).where(Event.n > _LOW)
_NUMBERS = (
    select(Event.n, Event.instance, Event.size)
    .where(Event.n > _LOW)
    .order_by(Event.n)
    .limit(bindparam("limit", type_=Integer))
)
_FORGOTTEN = select(Retention.events_before)
