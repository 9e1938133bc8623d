"""API tokens: who may ask, how far and until when. Only their hashes are stored."""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import Database, affected
from receiver.database.lookup import LookUp
from receiver.database.models import Token
from receiver.errors import CredentialError

Scope: TypeAlias = Literal["read", "operate"]

TOKEN_COLUMNS = (Token.name, Token.scope, Token.instances, Token.expires_at, Token.revoked_at)
_BY_HASH = LookUp(select(*TOKEN_COLUMNS).where(Token.sha256 == bindparam("sha256")))


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose token it is. instances -- the names it is limited to; None is all."""

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
    """Create and return an API token; nobody can read it again."""
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


def find_bearer(database: Database, token: str, now: int) -> Bearer | None:
    """Return the token's bearer; None if it is unknown, expired or revoked.

    A plain look-up by hash: what its timing tells of a hash tells nothing of a token.
    """
    rows = database.rows(_BY_HASH, {"sha256": token_hash(token)})
    return bearer_of(rows[0], now) if rows else None


def bearer_of(row: Sequence[Any], now: int) -> Bearer | None:
    """Return the bearer of a token from its TOKEN_COLUMNS; None if it is expired or revoked."""
    name, scope, instances, expires_at, revoked_at = row
    if revoked_at is not None or (expires_at is not None and expires_at <= now):
        return None
    only = None if instances is None else frozenset(json.loads(instances))
    return Bearer(name, "operate" if scope == "operate" else "read", only)


def list_tokens(session: Session) -> list[dict[str, object]]:
    """Return every token, oldest first, without the tokens themselves."""
    columns = (Token.id, Token.name, Token.scope, Token.instances)
    statement = select(*columns, Token.created_at, Token.expires_at, Token.revoked_at)
    rows = session.execute(statement.order_by(Token.created_at, Token.id)).mappings()
    return [{**row, "instances": json.loads(row["instances"] or "null")} for row in rows]


def revoke_token(session: Session, id_or_name: str, now: int) -> int:
    """End the token of that id, or all of that name. Raises CredentialError if there is none."""
    live = update(Token).where(Token.revoked_at.is_(None))
    match = (Token.id == id_or_name) | (Token.name == id_or_name)
    ended = affected(session, live.where(match).values(revoked_at=now))
    if not ended:
        raise CredentialError(
            f"there is no token {id_or_name} in use: `receiver tokens list` lists them"
        )
    return ended


def token_hash(token: str) -> bytes:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
