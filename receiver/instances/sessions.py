"""Who is signed in at the dashboard: rows, so that any node knows them and sign-out is at once.

Of a session's id, 256 random bits in the browser's cookie, only the SHA-256 is kept. A session
reaches as far as its token, and no longer than it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, func, literal_column, select, update
from sqlalchemy.orm import Session

from receiver.database.alarm_models import Watch
from receiver.database.engine import Database
from receiver.database.models import Instance, SignIn, Token
from receiver.instances.tokens import TOKEN_COLUMNS, Bearer, bearer, bearer_of, token_hash
from receiver.lib.clock import MINUTE_MS

IDLE_MS = 12 * 60 * MINUTE_MS
LONGEST_MS = 7 * 24 * 60 * MINUTE_MS

# With the names of the instances and the lease of who checks for alarms, which every page shows:
# asked for on the way, they cost nothing.
_COMMA: Any = literal_column("','")
_NAMES = select(func.aggregate_strings(Instance.name, _COMMA)).scalar_subquery()
_WATCHED = select(func.max(Watch.until)).scalar_subquery()
_SESSION = (SignIn.last_seen_at, SignIn.expires_at, SignIn.notice, _NAMES, _WATCHED)
_SIGNED_IN = (
    select(*_SESSION, *TOKEN_COLUMNS)
    .select_from(SignIn.__table__.join(Token.__table__, Token.id == SignIn.token))
    .where(SignIn.sha256 == bindparam("sha256"))
)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who is signed in. stale -- whether `touch` is due. notice -- what to tell them, once.

    instances -- the names of all in the database. watched_until -- ms: how long whoever checks for
    alarms holds that lease.
    """

    bearer: Bearer
    stale: bool
    notice: str | None
    instances: Sequence[str]
    watched_until: int


def sign_in(session: Session, token: str, now: int) -> str | None:
    """Begin a session with a token; give its id, or None if the token is not valid now."""
    if bearer(session, token, now) is None:
        return None
    of_token = select(Token.id, Token.expires_at).where(Token.sha256 == token_hash(token))
    token_id, expires_at = session.execute(of_token).one()
    session.execute(
        delete(SignIn).where((SignIn.expires_at <= now) | (SignIn.last_seen_at <= now - IDLE_MS))
    )
    session_id = secrets.token_urlsafe(32)
    session.add(
        SignIn(
            sha256=token_hash(session_id),
            token=token_id,
            created_at=now,
            last_seen_at=now,
            expires_at=min(now + LONGEST_MS, expires_at or now + LONGEST_MS),
        )
    )
    return session_id


def signed_in(database: Database, session_id: str, now: int) -> SignedIn | None:
    """Tell whose a session is, or None if there is none, or it or its token is over."""
    rows = database.rows(_SIGNED_IN, {"sha256": token_hash(session_id)})
    if not rows:
        return None
    last_seen_at, expires_at, notice, names, watched_until, *token = rows[0]
    if expires_at <= now or last_seen_at <= now - IDLE_MS:
        return None
    found = bearer_of(token, now)
    if found is None:
        return None
    instances = sorted(names.split(",")) if names else []
    stale = last_seen_at < now - MINUTE_MS
    return SignedIn(found, stale, notice, instances, watched_until or 0)


def touch(session: Session, session_id: str, now: int) -> None:
    """Remember that a session is in use; to the minute, for each is a write."""
    mine = update(SignIn).where(SignIn.sha256 == token_hash(session_id), SignIn.last_seen_at < now)
    session.execute(mine.values(last_seen_at=now))


def notify(session: Session, session_id: str, notice: str | None) -> None:
    """Set what the next page tells whoever is signed in; None: it was told."""
    mine = update(SignIn).where(SignIn.sha256 == token_hash(session_id))
    session.execute(mine.values(notice=notice))


def sign_out(session: Session, session_id: str) -> None:
    """End a session."""
    session.execute(delete(SignIn).where(SignIn.sha256 == token_hash(session_id)))
