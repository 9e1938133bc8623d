"""Sessions of the dashboard: rows, so that any node knows them and sign-out is at once.

Of a session's id, 256 random bits in the browser's cookie, only the SHA-256 is stored. A session
reaches as far as its token, and ends with it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, func, literal_column, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import Database
from receiver.database.lookup import LookUp
from receiver.database.models import Instance, SignIn, Token
from receiver.database.models.alarms import Watch
from receiver.database.models.outbound import Subscription
from receiver.instances.tokens import TOKEN_COLUMNS, Bearer, bearer_of, token_hash
from receiver.lib.clock import DAY_MS, HOUR_MS, MINUTE_MS

MAX_IDLE_MS = 12 * HOUR_MS
MAX_AGE_MS = 7 * DAY_MS

# With the names of the instances, the lease of who checks for alarms and whether a subscription is
# sent them, which every page shows: asked for on the way, they cost nothing.
_COMMA: Any = literal_column("','")
_NAMES = select(func.aggregate_strings(Instance.name, _COMMA)).scalar_subquery()
_WATCHED = select(func.max(Watch.until)).scalar_subquery()
_NO_ALARM = func.replace(Subscription.types, literal_column("'\"alarm\"'"), literal_column("''"))
_TO_ALARMS = (
    select(func.count())
    .where(Subscription.types != _NO_ALARM, Subscription.disabled_at.is_(None))
    .scalar_subquery()
)
_SESSION = (SignIn.last_seen_at, SignIn.expires_at, SignIn.notice, _NAMES, _WATCHED, _TO_ALARMS)
_SIGNED_IN = LookUp(
    select(*_SESSION, *TOKEN_COLUMNS)
    .select_from(SignIn.__table__.join(Token.__table__, Token.id == SignIn.token))
    .where(SignIn.sha256 == bindparam("sha256"))
)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session. stale -- whether `touch` is due. notice -- shown on the next page, once.

    instances -- the names of all in the database. watched_until -- ms: until when whoever checks
    for alarms has that lease. alarm_subscriptions -- how many are sent alarms.
    """

    bearer: Bearer
    stale: bool
    notice: str | None
    instances: Sequence[str]
    watched_until: int
    alarm_subscriptions: int


def sign_in(session: Session, token: str, now: int) -> str | None:
    """Begin a session with a token; return its id, or None if the token is not valid now."""
    of_token = select(Token.id, Token.expires_at, *TOKEN_COLUMNS)
    row = session.execute(of_token.where(Token.sha256 == token_hash(token))).first()
    if row is None or bearer_of(row[2:], now) is None:
        return None
    session.execute(
        delete(SignIn).where(
            (SignIn.expires_at <= now) | (SignIn.last_seen_at <= now - MAX_IDLE_MS)
        )
    )
    session_id = secrets.token_urlsafe(32)
    session.add(
        SignIn(
            sha256=token_hash(session_id),
            token=row.id,
            created_at=now,
            last_seen_at=now,
            expires_at=min(now + MAX_AGE_MS, row.expires_at or now + MAX_AGE_MS),
        )
    )
    return session_id


def find_session(database: Database, session_id: str, now: int) -> SignedIn | None:
    """Return a session; None if there is none, or it or its token has ended."""
    rows = database.rows(_SIGNED_IN, {"sha256": token_hash(session_id)})
    if not rows:
        return None
    last_seen_at, expires_at, notice, names, watched_until, to_alarms, *token = rows[0]
    bearer = bearer_of(token, now)
    if bearer is None or expires_at <= now or last_seen_at <= now - MAX_IDLE_MS:
        return None
    instances = sorted(names.split(",")) if names else []
    stale = last_seen_at < now - MINUTE_MS
    return SignedIn(bearer, stale, notice, instances, watched_until or 0, to_alarms)


def touch(session: Session, session_id: str, now: int) -> None:
    """Record that a session is in use; to the minute, since each time is a write."""
    this = SignIn.sha256 == token_hash(session_id)
    older = update(SignIn).where(this, SignIn.last_seen_at < now)
    session.execute(older.values(last_seen_at=now))


def set_notice(session: Session, session_id: str, notice: str | None) -> None:
    """Set what the next page shows whoever is signed in; None: it was shown."""
    this = SignIn.sha256 == token_hash(session_id)
    session.execute(update(SignIn).where(this).values(notice=notice))


def sign_out(session: Session, session_id: str) -> None:
    """End a session."""
    session.execute(delete(SignIn).where(SignIn.sha256 == token_hash(session_id)))
