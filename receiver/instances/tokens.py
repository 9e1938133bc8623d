"""API tokens: who may ask, how far and until when. Only their hashes are kept."""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import Database, affected
from receiver.database.models import Token
from receiver.errors import CredentialError

Scope: TypeAlias = Literal["read", "operate"]

TOKEN_COLUMNS = (Token.name, Token.scope, Token.instances, Token.expires_at, Token.revoked_at)
_BY_HASH = select(*TOKEN_COLUMNS).where(Token.sha256 == bindparam("sha256"))


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who asks. instances -- the names it is limited to, or None."""

    name: str
    scope: Scope
    instances: frozenset[str] | None

    def may_see(self, instance: str) -> bool:
        """Whether the token reaches an instance."""
        return self.instances is None or instance in self.instances


def create_token(
    session: Session,
    name: str,
    scope: Scope,
    now: int,
    *,
    only: Sequence[str] = (),
    expires_at: int | None = None,
) -> str:
    """Make an API token and give it; nobody can read it again."""
    token = "rcv_" + secrets.token_urlsafe(32)
    session.add(
        Token(
            id="token-" + secrets.token_hex(4),
            name=name,
            sha256=token_hash(token),
            scope=scope,
            instances=json.dumps(sorted(set(only))) if only else None,
            created_at=now,
            expires_at=expires_at,
        )
    )
    return token


def who_asks(database: Database, token: str, now: int) -> Bearer | None:
    """As `bearer`, without a Session."""
    rows = database.rows(_BY_HASH, {"sha256": token_hash(token)})
    return bearer_of(rows[0], now) if rows else None


def bearer(session: Session, token: str, now: int) -> Bearer | None:
    """Tell whose a token is, or None if it is unknown, expired or revoked.

    A plain look-up by hash: what its timing tells of a hash tells nothing of a token.
    """
    row = session.execute(_BY_HASH, {"sha256": token_hash(token)}).first()
    return row and bearer_of(row, now)


def bearer_of(row: Sequence[Any], now: int) -> Bearer | None:
    """Tell whose a token is from its TOKEN_COLUMNS; None if it is expired or revoked."""
    name, scope, instances, expires_at, revoked_at = row
    if revoked_at is not None or (expires_at is not None and expires_at <= now):
        return None
    only = None if instances is None else frozenset(json.loads(instances))
    return Bearer(name, "operate" if scope == "operate" else "read", only)


def tokens(session: Session) -> list[dict[str, object]]:
    """Every token, oldest first, without the tokens themselves."""
    return [
        {
            "id": row.id,
            "name": row.name,
            "scope": row.scope,
            "instances": row.instances and json.loads(row.instances),
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "revoked_at": row.revoked_at,
        }
        for row in session.scalars(select(Token).order_by(Token.created_at, Token.id))
    ]


def revoke_token(session: Session, id_or_name: str, now: int) -> int:
    """End the token of that id, or all of that name. Raises CredentialError if there is none."""
    live = update(Token).where(Token.revoked_at.is_(None))
    match = (Token.id == id_or_name) | (Token.name == id_or_name)
    ended = affected(session, live.where(match).values(revoked_at=now))
    if not ended:
        raise CredentialError(f"there is no token {id_or_name} in use")
    return ended


def token_hash(token: str) -> bytes:
    """Give what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
