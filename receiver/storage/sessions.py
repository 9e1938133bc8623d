"""Who is signed in at the dashboard: rows, so that any node knows them and sign-out is at once.

Of a session's id, 256 random bits in the browser's cookie, only the SHA-256 is kept. A session
reaches as far as its token, and no longer than it.
"""

import secrets
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from receiver.clock import MINUTE_MS
from receiver.storage.models import SignIn, Token
from receiver.storage.tokens import Bearer, bearer_of, hash_of

IDLE_MS = 12 * 60 * MINUTE_MS
LONGEST_MS = 7 * 24 * 60 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who is signed in. stale -- whether `touch` is due. notice -- what to tell them, once."""

    bearer: Bearer
    stale: bool
    notice: str | None


def sign_in(session: Session, token: str, now: int) -> str | None:
    """Begin a session with a token; give its id, or None if the token is not valid now."""
    row = session.scalar(select(Token).where(Token.sha256 == hash_of(token)))
    if row is None or bearer_of(row, now) is None:
        return None
    session.execute(
        delete(SignIn).where((SignIn.expires_at <= now) | (SignIn.last_seen_at <= now - IDLE_MS))
    )
    session_id = secrets.token_urlsafe(32)
    session.add(
        SignIn(
            sha256=hash_of(session_id),
            token=row.id,
            created_at=now,
            last_seen_at=now,
            expires_at=min(now + LONGEST_MS, row.expires_at or now + LONGEST_MS),
        )
    )
    return session_id


def signed_in(session: Session, session_id: str, now: int) -> SignedIn | None:
    """Tell whose a session is, or None if there is none, or it or its token is over."""
    found = session.execute(
        select(SignIn, Token)
        .join(Token, Token.id == SignIn.token)
        .where(SignIn.sha256 == hash_of(session_id))
    ).first()
    if found is None or found[0].expires_at <= now or found[0].last_seen_at <= now - IDLE_MS:
        return None
    bearer = bearer_of(found[1], now)
    if bearer is None:
        return None
    return SignedIn(bearer, found[0].last_seen_at < now - MINUTE_MS, found[0].notice)


def touch(session: Session, session_id: str, now: int) -> None:
    """Remember that a session is in use; to the minute, for each is a write."""
    mine = update(SignIn).where(SignIn.sha256 == hash_of(session_id), SignIn.last_seen_at < now)
    session.execute(mine.values(last_seen_at=now))


def notify(session: Session, session_id: str, notice: str | None) -> None:
    """Set what the next page tells whoever is signed in; None: it was told."""
    mine = update(SignIn).where(SignIn.sha256 == hash_of(session_id))
    session.execute(mine.values(notice=notice))


def sign_out(session: Session, session_id: str) -> None:
    """End a session."""
    session.execute(delete(SignIn).where(SignIn.sha256 == hash_of(session_id)))
