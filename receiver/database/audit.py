"""The audit: who did what, in a hash chain, so that later changes and deletions show.

The hash of an entry covers the hash before it. One row has the number of entries and the last hash:
it is the lock that puts two nodes in order, and shows when entries at the end are missing. Triggers
refuse to change or delete entries. Whoever may drop triggers and rewrite the whole chain is found
out only by a hash that was noted elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

import structlog
from sqlalchemy import select, true, update
from sqlalchemy.orm import Session

from receiver.database.engine import database_time
from receiver.database.models import AuditEntry, AuditHead
from receiver.openconnectors.notifications import UNSTORABLE

MAX_TEXT = 500
_GENESIS = b"\0" * 32


def record(
    session: Session, *, at: int, actor: str, action: str, subject: str, detail: str = ""
) -> None:
    """Add an entry, last in the transaction that does what it says: others wait from then on.

    at -- ms by this machine, used where the database has no clock. actor -- the name of a token, or
    `cli:` and the system's user. action -- like `key.add`. subject -- what it is done to.
    The texts must contain no secret; they are cut to MAX_TEXT characters.
    """
    entries, previous = session.execute(
        select(AuditHead.entries, AuditHead.hash).with_for_update()
    ).one()
    request = structlog.contextvars.get_contextvars().get("request_id")
    entry = AuditEntry(
        id=entries + 1,
        at=database_time(session, lambda: at),
        actor=_plain(actor),
        action=_plain(action),
        subject=_plain(subject),
        detail=_plain(detail),
        request=None if request is None else _plain(str(request)),
    )
    entry.hash = _hash(previous, entry)
    session.add(entry)
    session.flush()
    session.execute(update(AuditHead).values(entries=entry.id, hash=entry.hash))


def list_entries(session: Session, limit: int) -> Sequence[AuditEntry]:
    """Return the newest entries, newest first."""
    return session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)).all()


def find_faults(session: Session) -> Iterator[str]:
    """Verify the whole chain; return a text for each place where it is broken."""
    # One statement sees the chain and its end as they were at one moment.
    chain = select(AuditHead, AuditEntry).outerjoin(AuditEntry, true()).order_by(AuditEntry.id)
    number, previous, head = 0, _GENESIS, None
    for row in session.execute(chain.execution_options(yield_per=1000)):
        head, entry = row
        if entry is None:
            break
        if entry.id != number + 1:
            yield f"{entry.id - number - 1} entries are missing before entry {entry.id}"
        elif entry.hash != _hash(previous, entry):
            yield f"entry {entry.id} or the one before it was changed"
        number, previous = entry.id, entry.hash
    if head is None:
        yield "the end of the chain was deleted"
    elif head.entries != number:
        yield f"the chain ends at entry {number}, but {head.entries} were written"
    elif head.hash != previous:
        yield f"entry {number} is not the one that was written last"


def _hash(previous: bytes, entry: AuditEntry) -> bytes:
    texts = entry.actor, entry.action, entry.subject, entry.detail, entry.request
    content = json.dumps([entry.id, entry.at, *texts])
    return hashlib.sha256(previous + content.encode()).digest()


def _plain(text: str) -> str:
    return UNSTORABLE.sub("\ufffd", text)[:MAX_TEXT]
