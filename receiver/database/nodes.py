"""The processes that answer: that they are alive, and since when they fail."""

from sqlalchemy.orm import Session

from receiver.database.alarm_models import Node
from receiver.database.engine import upsert
from receiver.lib.clock import MINUTE_MS

NODE_GONE_MS = 2 * MINUTE_MS  # nodes say that they are alive every half minute


def note_node(
    session: Session, name: str, now: int, failing_since: int | None, failures: int
) -> None:
    """Remember how a process answers callbacks. failures -- since then."""
    new = upsert(session, Node).values(
        name=name, at=now, failing_since=failing_since, failures=failures
    )
    told = {"at": now, "failing_since": failing_since, "failures": failures}
    session.execute(new.on_conflict_do_update(index_elements=[Node.name], set_=told))
