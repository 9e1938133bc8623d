"""Who is signed in at the dashboard: rows, so that any node knows them and sign-out is at once.

Of a session's id, 256 random bits in the browser's cookie, only the SHA-256 is kept. A session
reaches as far as its token, and no longer than it.
"""

import secrets
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.orm import Session

from receiver.clock import MINUTE_MS
from receiver.storage.models import SignIn, Token
from receiver.storage.reading import Rows, Statement
from receiver.storage.tokens import TOKEN_COLUMNS, Bearer, bearer, bearer_of, token_hash

IDLE_MS = 12 * 60 * MINUTE_MS
LONGEST_MS = 7 * 24 * 60 * MINUTE_MS

_SESSION = (SignIn.last_seen_at, SignIn.expires_at, SignIn.notice)
_SIGNED_IN = Statement(
    select(*_SESSION, *TOKEN_COLUMNS)
    .select_from(SignIn.__table__.join(Token.__table__, Token.id == SignIn.token))
    .where(SignIn.sha256 == bindparam("sha256"))
)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who is signed in. stale -- whether `touch` is due. notice -- what to tell them, once."""

    bearer: Bearer
    stale: bool
    notice: str | None


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


def signed_in(read: Rows, session_id: str, now: int) -> SignedIn | None:
    """Tell whose a session is, or None if there is none, or it or its token is over."""
    rows = read(_SIGNED_IN, {"sha256": token_hash(session_id)})
    if not rows:
        return None
    last_seen_at, expires_at, notice, *token = rows[0]
    if expires_at <= now or last_seen_at <= now - IDLE_MS:
        return None
    found = bearer_of(token, now)
    return None if found is None else SignedIn(found, last_seen_at < now - MINUTE_MS, notice)


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
