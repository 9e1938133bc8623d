"""What was sent to subscriptions: each delivery with its attempts, and sending it again."""

from collections.abc import Sequence
from heapq import nlargest

from sqlalchemy import ColumnElement, func, select, true, update
from sqlalchemy.orm import Session, selectinload

from receiver.database.engine import affected
from receiver.database.models.outbound import OutboundAttempt, OutboundDelivery
from receiver.database.models.outbound import Subscription as Row
from receiver.errors import BadParameter, NotFound
from receiver.jobs.queries import Instances
from receiver.outbound.queue import host_of
from receiver.subscriptions.registry import KIND

STATES = ("waiting", "delivered", "failed", "cancelled")
FAILED = ("failed", "cancelled")


def list_deliveries(
    session: Session,
    subscriptions: Sequence[str],
    *,
    only_failed: bool,
    limit: int,
    before: int | None = None,
    visible: Instances = None,
) -> Sequence[OutboundDelivery]:
    """Return deliveries of subscriptions, newest first, with their attempts.

    before -- the id of the last one seen.
    visible -- the instances that a token reaches; a subscription may have been another's before.
    """
    row = OutboundDelivery
    ids: list[int] = []
    for name in subscriptions:
        for state in FAILED if only_failed else STATES:
            # Each in the order of the index, whatever there is of the others.
            page = select(row.id).where(row.subscription == name, row.state == state)
            if before is not None:
                page = page.where(row.id < before)
            if len(ids) == limit:
                page = page.where(row.id > ids[-1])
            page = page.where(_is_visible(visible)).order_by(row.id.desc()).limit(limit)
            ids = nlargest(limit, [*ids, *session.scalars(page)])
    found = select(row).where(row.id.in_(ids)).order_by(row.id.desc())
    return session.scalars(found.options(selectinload(row.attempts))).all()


def get_delivery(session: Session, id_: int, visible: Instances = None) -> str:
    """Return whose a delivery is. Raises NotFound."""
    row = OutboundDelivery
    named = select(row.subscription).where(row.id == id_, row.kind == KIND, _is_visible(visible))
    name = session.scalar(named)
    if name is None:
        raise NotFound(f"there is no delivery {id_}")
    return name


def retry_one(session: Session, id_: int, now: int) -> None:
    """Send a delivery again, with the same webhook-id. Raises NotFound, BadParameter."""
    name = get_delivery(session, id_)
    if not _retry(session, name, OutboundDelivery.id == id_, now):
        raise BadParameter(f"delivery {id_} waits already, or its subscription is disabled or gone")


def count_failed(
    session: Session, subscriptions: Sequence[str], since: int, visible: Instances = None
) -> int:
    """Return how many failed, or were cancelled, of those queued since then, ms."""
    failed = OutboundDelivery.subscription.in_(subscriptions), _has_failed(since, visible)
    return session.scalar(select(func.count()).where(*failed)) or 0


def retry_failed(
    session: Session,
    subscriptions: Sequence[str],
    since: int,
    now: int,
    visible: Instances = None,
) -> int:
    """Send those again; return how many. A subscription that is disabled is left out."""
    failed = _has_failed(since, visible)
    return sum(_retry(session, name, failed, now) for name in subscriptions)


def _has_failed(since: int, visible: Instances) -> ColumnElement[bool]:
    row = OutboundDelivery
    return row.state.in_(FAILED) & (row.at >= since) & _is_visible(visible)


def _is_visible(instances: Instances) -> ColumnElement[bool]:
    return true() if instances is None else OutboundDelivery.instance.in_(sorted(instances))


def _retry(session: Session, name: str, condition: ColumnElement[bool], now: int) -> int:
    # Locked, before the deliveries, against one who disables it.
    of_name = select(Row.url).where(Row.name == name, Row.disabled_at.is_(None))
    url = session.scalar(of_name.with_for_update())
    if url is None:
        return 0
    row = OutboundDelivery
    again = update(row).where(row.subscription == name, row.next_at.is_(None), condition)
    values = {"state": "waiting", "tries": 0, "next_at": now, "target": url, "host": host_of(url)}
    return affected(session, again.values(**values))


def oldest_waiting(session: Session, now: int) -> dict[str, float]:
    """Return the age of the oldest delivery that waits, in seconds, by subscription."""
    row, ages = OutboundDelivery, {}
    for name in session.scalars(select(Row.name)).all():
        first = select(row.at).where(row.subscription == name, row.state == "waiting")
        at = session.scalar(first.order_by(row.id).limit(1))
        ages[name] = 0.0 if at is None else max(0, now - at) / 1000
    return ages


def count_waiting(session: Session, name: str) -> tuple[int, str]:
    """Return how many deliveries of a subscription wait, and the last answer to the oldest."""
    row = OutboundDelivery
    mine = row.subscription == name, row.state == "waiting"
    oldest = select(func.min(row.id)).where(*mine).scalar_subquery()
    made = select(OutboundAttempt).where(OutboundAttempt.delivery == oldest)
    last = session.scalars(made.order_by(OutboundAttempt.id.desc()).limit(1)).first()
    answer = "nothing waits" if last is None else last.error or f"it answered {last.status}"
    return session.scalar(select(func.count()).where(*mine)) or 0, answer
