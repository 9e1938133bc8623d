"""Who did what: an append-only chain, so that what was changed or taken out afterwards shows.

Each entry's hash covers the hash before it. One row holds the number of entries and the last hash:
it is the lock that puts two nodes in order, and what tells when entries at the end are missing.
Triggers refuse to change or delete entries; who may drop triggers and rewrite the whole chain is
found out only by a hash that was noted elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

import structlog
from sqlalchemy import select, true, update
from sqlalchemy.orm import Session

from receiver.database.leases import database_time
from receiver.database.models import AuditEntry, AuditHead
from receiver.openconnectors.notifications import UNSTORABLE

LONGEST_TEXT = 500
_GENESIS = b"\0" * 32


def note(
    session: Session, *, at: int, actor: str, action: str, subject: str, detail: str = ""
) -> None:
    """Write down who does what, in the transaction that does it; last, for others wait until then.

    at -- ms by this machine, taken where the database has no clock. actor -- the name of a token,
    or `cli:` and the system's user. action -- like `key.add`. subject -- what it is done to.
    The texts must hold no secret; they are cut to LONGEST_TEXT characters.
    """
    entries, previous = session.execute(
        select(AuditHead.entries, AuditHead.hash).with_for_update()
    ).one()
    texts = [_plain(text) for text in (actor, action, subject, detail)]
    request = structlog.contextvars.get_contextvars().get("request_id")
    entry = AuditEntry(
        id=entries + 1,
        at=database_time(session, lambda: at),
        actor=texts[0],
        action=texts[1],
        subject=texts[2],
        detail=texts[3],
        request=None if request is None else _plain(str(request)),
    )
    entry.hash = _hash(previous, entry)
    session.add(entry)
    session.flush()
    session.execute(update(AuditHead).values(entries=entry.id, hash=entry.hash))


def entries(session: Session, limit: int) -> Sequence[AuditEntry]:
    """Give the newest entries, newest first."""
    return session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)).all()


def faults(session: Session) -> Iterator[str]:
    """Go through the whole chain; tell of each place where it does not hold."""
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
    told = [
        entry.id,
        entry.at,
        entry.actor,
        entry.action,
        entry.subject,
        entry.detail,
        entry.request,
    ]
    return hashlib.sha256(previous + json.dumps(told).encode()).digest()


def _plain(text: str) -> str:
    return UNSTORABLE.sub("\ufffd", text)[:LONGEST_TEXT]
