"""What is asked for all the time: jobs by id, and pages of jobs, events and rejections.

Functions take `Database.rows`: no Session, no ORM.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast

from sqlalchemy import Table, bindparam, case, func, literal_column, select

from receiver.database.models import (
    FORGOTTEN,
    IS_UNDER_WAY,
    Event,
    JobRow,
    Rejection,
    Token,
    UsualTime,
)
from receiver.database.paging import Listing, Wanted, page
from receiver.database.reading import Hex, Rows, Statement
from receiver.instances.tokens import TOKEN_COLUMNS, Bearer, bearer_of, token_hash
from receiver.jobs.job import UNDER_WAY, Outcome
from receiver.jobs.queries import EventFilter, Instances, JobFilter, RejectionFilter


class JobLine(NamedTuple):
    """What is shown of a job, or says whether to show it. registers -- JSON of job.Registers.

    usual_ms -- how long those of its object take, where that is known and it is under way.
    """

    id: str
    instance: str
    registers: str
    outcome: Outcome
    learnt_by: Literal["callback", "poll"] | None
    files_expire_at: int | None
    revision: int
    events: int
    updated_at: int
    first_seen_at: int
    usual_ms: int | None

    def overdue(self, now: int, overdue_after: int) -> bool:
        """Whether it takes longer than it should; overdue_after -- ms, where nothing is usual."""
        due_after = overdue_after if self.usual_ms is None else self.usual_ms
        return self.outcome in UNDER_WAY and self.first_seen_at + due_after <= now


class EventLine(NamedTuple):
    """What is shown of an event. sha256 -- hex."""

    id: str
    instance: str
    kind: str
    job: str | None
    received_at: int
    last_received_at: int
    deliveries: int
    key: str
    size: int
    sha256: str


class RejectionLine(NamedTuple):
    """What is shown of a refused delivery."""

    id: int
    at: int
    instance: str
    reason: str
    peer: str
    size: int


_JOB = cast("Table", JobRow.__table__).c
_EVENT = cast("Table", Event.__table__).c
_REJECTION = cast("Table", Rejection.__table__).c
_TOKEN = cast("Table", Token.__table__).c
_USUAL = cast("Table", UsualTime.__table__).c

_USUAL_MS = (
    select(_USUAL.ms)
    .where(
        _USUAL.instance == _JOB.instance,
        _USUAL.object == func.coalesce(_JOB.object, literal_column("''")),
    )
    .scalar_subquery()
)
JOB_COLUMNS = (
    *(_JOB[name] for name in JobLine._fields[:-1]),
    case((IS_UNDER_WAY, _USUAL_MS)).label("usual_ms"),
)
_EVENT_COLUMNS = (
    *(_EVENT[name] for name in EventLine._fields[:-1]),
    Hex(_EVENT.sha256).label("sha256"),
)

JOBS = Listing(
    columns=JOB_COLUMNS,
    order=(_JOB.updated_at, _JOB.id, _JOB.instance),
    facets={name: _JOB[name] for name in ("instance", "status", "outcome", "object", "direction")},
    leading=dict.fromkeys(("instance", "status", "outcome", "object", "direction")),
    bounds={
        "updated_after": (_JOB.updated_at, True),
        "updated_before": (_JOB.updated_at, False),
        "expires_before": (_JOB.files_expire_at, False),
    },
    seldom="expires_before",
    text=_JOB.id,
)
EVENTS = Listing(
    columns=_EVENT_COLUMNS,
    order=(_EVENT.received_at, _EVENT.id),
    facets={name: _EVENT[name] for name in ("instance", "kind", "job")},
    leading={"instance": None, "kind": "bulk_job", "job": None},
    bounds={
        "received_after": (_EVENT.received_at, True),
        "received_before": (_EVENT.received_at, False),
    },
)
# A few thousand at most: they need no index but that of their order.
REJECTIONS = Listing(
    columns=tuple(_REJECTION[name] for name in RejectionLine._fields),
    order=(_REJECTION.at, _REJECTION.id),
    facets={name: _REJECTION[name] for name in ("instance", "reason", "peer")},
    leading={},
    bounds={"after": (_REJECTION.at, True), "before": (_REJECTION.at, False)},
)

_CALLED = Statement(select(*JOB_COLUMNS).where(_JOB.id == bindparam("id")))
_ASKED_FOR = Statement(
    select(*TOKEN_COLUMNS, *JOB_COLUMNS)
    .select_from(Token.__table__.outerjoin(JobRow.__table__, _JOB.id == bindparam("id")))
    .where(_TOKEN.sha256 == bindparam("sha256"))
)
_ONE_EVENT = Statement(select(*_EVENT_COLUMNS).where(_EVENT.id == bindparam("id")))


def jobs(
    read: Rows,
    wanted: JobFilter,
    visible: Instances,
    limit: int,
    after: tuple[int, str, str] | None,
) -> list[JobLine]:
    """Give jobs, newest change first, from behind (updated_at, id, instance) `after`."""
    found = page(read, JOBS, wanted_jobs(wanted, visible, after), limit)
    return [JobLine(*row) for row in found]


def wanted_jobs(
    wanted: JobFilter, visible: Instances, after: tuple[int, str, str] | None
) -> Wanted:
    """Say which jobs are asked for, as far as the token sees them."""
    facets = {
        "instance": wanted.instances,
        "status": wanted.statuses,
        "outcome": wanted.outcomes,
        "object": wanted.objects,
        "direction": wanted.directions,
    }
    bounds = {
        "updated_after": wanted.updated_after,
        "updated_before": wanted.updated_before,
        "expires_before": wanted.expires_before,
    }
    return _wanted(facets, bounds, visible, after, wanted.text)


def jobs_called(read: Rows, id_: str, instance: str | None, visible: Instances) -> list[JobLine]:
    """Give the jobs of that id, one for each instance that has it."""
    rows = read(_CALLED, {"id": _possible(id_)})
    return _reached((JobLine(*row) for row in rows), instance, visible)


def job_asked_for(
    read: Rows, token: str, now: int, id_: str, instance: str | None
) -> tuple[Bearer | None, list[JobLine]]:
    """Tell whose a token is, and give the jobs of that id that it sees: one statement for both.

    So a token that was revoked is refused at once, without a cache to be told of it.
    """
    rows = read(_ASKED_FOR, {"sha256": token_hash(token), "id": _possible(id_)})
    width = len(TOKEN_COLUMNS)
    who = bearer_of(rows[0][:width], now) if rows else None
    if who is None:
        return None, []
    found = (JobLine(*row[width:]) for row in rows if row[width] is not None)
    return who, _reached(found, instance, who.instances)


def events(
    read: Rows,
    wanted: EventFilter,
    visible: Instances,
    limit: int,
    after: tuple[int, str] | None,
) -> list[EventLine]:
    """Give events that are not forgotten, newest first, from behind (received_at, id) `after`."""
    facets = {"instance": wanted.instances, "kind": wanted.kinds, "job": wanted.jobs}
    kept = max(wanted.received_after or 0, FORGOTTEN + 1)
    bounds = {"received_after": kept, "received_before": wanted.received_before}
    asked = _wanted(facets, bounds, visible, after)
    return [EventLine(*row) for row in page(read, EVENTS, asked, limit)]


def event(read: Rows, id_: str, visible: Instances) -> EventLine | None:
    """Give an event; one that was forgotten has received_at FORGOTTEN."""
    rows = read(_ONE_EVENT, {"id": _possible(id_)})
    found = EventLine(*rows[0]) if rows else None
    return found if found and (visible is None or found.instance in visible) else None


def rejections(
    read: Rows,
    wanted: RejectionFilter,
    visible: Instances,
    limit: int,
    after: tuple[int, int] | None,
) -> list[RejectionLine]:
    """Give quarantined deliveries without their bodies, newest first, from behind (at, id)."""
    facets = {"instance": wanted.instances, "reason": wanted.reasons, "peer": wanted.peers}
    asked = _wanted(facets, {"after": wanted.after, "before": wanted.before}, visible, after)
    return [RejectionLine(*row) for row in page(read, REJECTIONS, asked, limit)]


def _wanted(
    facets: dict[str, Sequence[str]],
    bounds: dict[str, int | None],
    visible: Instances,
    after: tuple[Any, ...] | None,
    text: str | None = None,
) -> Wanted:
    """Leave out what is not asked, and of the instances those that the token does not see."""
    asked = {name: values for name, values in facets.items() if values}
    if visible is not None:
        asked["instance"] = list(visible.intersection(asked.get("instance", visible)))
    given = {name: value for name, value in bounds.items() if value is not None}
    return Wanted(facets=asked, bounds=given, text=text, after=after)


def _reached(lines: Iterable[JobLine], instance: str | None, visible: Instances) -> list[JobLine]:
    return [
        line
        for line in lines
        if instance in (None, line.instance) and (visible is None or line.instance in visible)
    ]


def _possible(id_: str) -> str:
    """The id, or one that nothing has for what a database cannot even be asked."""
    return id_ if id_.isascii() and "\0" not in id_ else ""
