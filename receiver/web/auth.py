"""Who asks: the bearer token of an API request."""

from typing import Any, cast

from flask import g, request

from receiver.errors import Forbidden, Unauthenticated
from receiver.storage.tokens import Bearer, bearer
from receiver.web import services


def authenticate() -> None:
    """Find out whose token came with this request. Raises Unauthenticated, TooManyRequests."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("send a token: Authorization: Bearer <token>")
    with services().database.read() as session:
        found = holder(session, token.strip())
    if found is None:
        raise Unauthenticated("the token is unknown, expired or revoked")
    g.bearer = found


def holder(session: Any, token: str) -> Bearer | None:  # noqa: ANN401 - a session of storage's
    """Tell whose a token is, or None; counts it either way. Raises TooManyRequests."""
    limits, peer = services().limits, request.remote_addr or ""
    limits.check_address(peer)
    found = bearer(session, token, services().clock())
    if found is None:
        limits.note_failure(peer)
    else:
        limits.check_token(found.name)
    return found


def who() -> Bearer:
    """Whose token this is."""
    return cast("Bearer", g.bearer)


def check_instances(named: list[str]) -> None:
    """Refuse instances that were asked for by name and that the token does not reach."""
    for instance in named:
        if not who().may_see(instance):
            raise Forbidden(f"the token does not reach the instance {instance}")


def check_may_act() -> None:
    """Refuse a token that may only look. Raises Forbidden."""
    if who().scope != "operate":
        raise Forbidden("this needs a token of the scope operate")
