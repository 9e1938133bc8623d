"""What was rejected: counts by reason and by address, and a bounded quarantine."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import case, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from receiver.callbacks.deliveries import AddressCount, NewRejection
from receiver.database.engine import Database, upsert
from receiver.database.models import RefusedAddress, Rejection, RejectionCount
from receiver.database.page import page, page_values
from receiver.jobs.queries import Instances, reachable
from receiver.lib.clock import MINUTE_MS

MAX_REJECTIONS = 5_000
MAX_REJECTIONS_OF_A_PEER = 1_000
MAX_REJECTION_BYTES = 64 * 2**20


def record_rejections(
    session: Session, rejections: Sequence[NewRejection], now: int
) -> list[AddressCount]:
    """Count rejected deliveries, and quarantine those to a known instance; count each address."""
    _count_rejections(session, rejections, now)
    named = [rejection for rejection in rejections if rejection.instance]
    if named:
        rows = [{"at": now, **msgspec.structs.asdict(rejection)} for rejection in named]
        session.execute(insert(Rejection), rows)
        _trim_quarantine(session)
    return _count_addresses(session, [rejection.peer for rejection in rejections], now)


def quarantined(
    session: Session, only: frozenset[str] | None, limit: int, after: int = 0
) -> Sequence[Rejection]:
    """Give deliveries that may be verified again, oldest first, with ids above `after`.

    only -- the instances, or None for all.
    """
    whole = select(Rejection).where(
        Rejection.id > after, Rejection.body.is_not(None), Rejection.signature.is_not(None)
    )
    mine = whole if only is None else whole.where(Rejection.instance.in_(sorted(only)))
    return session.scalars(mine.order_by(Rejection.id).limit(limit)).all()


def rejection(session: Session, id_: int, only: frozenset[str] | None) -> Rejection | None:
    """Give a quarantined delivery, if it is of one of those instances."""
    found = session.get(Rejection, id_)
    return found if found and (only is None or found.instance in only) else None


def forget_rejection(session: Session, id_: int) -> None:
    """Take a delivery out of the quarantine: it is an event by now."""
    session.execute(delete(Rejection).where(Rejection.id == id_))


def _count_rejections(session: Session, rejections: Sequence[NewRejection], now: int) -> None:
    tally: dict[tuple[str, str], int] = {}
    for rejection in rejections:
        place = rejection.reason, rejection.instance
        tally[place] = tally.get(place, 0) + 1
    new = upsert(session, RejectionCount)
    statement = new.on_conflict_do_update(
        index_elements=[RejectionCount.minute, RejectionCount.reason, RejectionCount.instance],
        set_={"count": RejectionCount.count + new.excluded.count},
    )
    minute = now // MINUTE_MS
    session.execute(
        statement,
        [
            {"minute": minute, "reason": reason, "instance": instance, "count": count}
            for (reason, instance), count in sorted(tally.items())
        ],
    )


def _count_addresses(session: Session, peers: Sequence[str], now: int) -> list[AddressCount]:
    new = upsert(session, RefusedAddress)
    over = RefusedAddress.since <= now - MINUTE_MS
    statement = new.on_conflict_do_update(
        index_elements=[RefusedAddress.peer],
        set_={
            "since": case((over, now), else_=RefusedAddress.since),
            "count": case(
                (over, new.excluded.count), else_=RefusedAddress.count + new.excluded.count
            ),
        },
    ).returning(RefusedAddress.peer, RefusedAddress.count, RefusedAddress.since)
    rows = [{"peer": peer, "since": now, "count": peers.count(peer)} for peer in sorted(set(peers))]
    return [
        AddressCount(peer, count, since + MINUTE_MS - now)
        for peer, count, since in session.execute(statement, rows)
    ]


def _trim_quarantine(session: Session) -> None:
    """Bound the quarantine in rows, in rows of one address, and in bytes, oldest out."""
    newest = Rejection.id.desc()
    ranked = select(
        Rejection.id,
        func.row_number().over(order_by=newest).label("place"),
        func.row_number().over(partition_by=Rejection.peer, order_by=newest).label("of_peer"),
        func.sum(Rejection.size).over(order_by=newest).label("bytes"),
    ).subquery()
    surplus = select(ranked.c.id).where(
        or_(
            ranked.c.place > MAX_REJECTIONS,
            ranked.c.of_peer > MAX_REJECTIONS_OF_A_PEER,
            ranked.c.bytes > MAX_REJECTION_BYTES,
        )
    )
    # Two nodes that trim at once must not wait for each other.
    free = select(Rejection.id).where(Rejection.id.in_(surplus)).with_for_update(skip_locked=True)
    session.execute(
        delete(Rejection).where(Rejection.id.in_(free)).execution_options(synchronize_session=False)
    )


class RejectionFilters(Struct, frozen=True, kw_only=True):
    """Which rejections. An empty sequence or None leaves a filter open; times are ms.

    visible -- the instances that the token reaches.
    """

    instances: Sequence[str] = ()
    reasons: Sequence[str] = ()
    peers: Sequence[str] = ()
    after: int | None = None
    before: int | None = None
    visible: Instances = None


class RejectionRecord(Struct, frozen=True):
    """A quarantined delivery as it is listed; at -- ms."""

    id: int
    at: int
    instance: str
    reason: str
    peer: str
    size: int


def list_rejections(
    database: Database, filters: RejectionFilters, limit: int, after: tuple[int, int] | None = None
) -> list[RejectionRecord]:
    """Read quarantined deliveries, newest first, from behind the (at, id) `after`.

    They are a few thousand at most, and need no index but that of their order.
    """
    instances = reachable(filters.instances, filters.visible)
    lists = {"instance": instances, "reason": filters.reasons, "peer": filters.peers}
    where = [
        getattr(Rejection, name).in_(sorted(values))
        for name, values in lists.items()
        if values or values == frozenset()
    ]
    if filters.after is not None:
        where.append(Rejection.at > filters.after)
    if filters.before is not None:
        where.append(Rejection.at < filters.before)
    order = [Rejection.at, Rejection.id]
    keys = page(order, where, after=after is not None, sqlite=database.is_sqlite).subquery()
    columns = [getattr(Rejection, name) for name in RejectionRecord.__struct_fields__]
    of_page = select(*columns).join(keys, keys.c.id == Rejection.id)
    statement = of_page.order_by(keys.c.at.desc(), keys.c.id.desc())
    return [RejectionRecord(*row) for row in database.rows(statement, page_values(limit, after))]
