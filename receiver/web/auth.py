"""Who asks, what their token allows, and what they did."""

from collections.abc import Sequence

from receiver.database import audit
from receiver.database.engine import Session
from receiver.errors import Forbidden, Unauthenticated
from receiver.instances import tokens
from receiver.instances.tokens import Bearer, Scope
from receiver.web import Services
from receiver.web.http import Request


def bearer_token(request: Request) -> str:
    """Return the token of a request. Raises Unauthenticated if it has none."""
    scheme, _, token = (request.authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("send a token: Authorization: Bearer <token>")
    return token.strip()


def authenticate(services: Services, peer: str, token: str) -> Bearer | None:
    """Return a token's bearer, None if it has none; count the request. Raises TooManyRequests."""
    services.limits.check_address(peer)
    bearer = tokens.find_bearer(services.database, token, services.clock())
    if bearer is None:
        services.limits.note_failure(peer)
    else:
        services.limits.check_token(bearer.name)
    return bearer


def require_instance(bearer: Bearer, instances: Sequence[str]) -> None:
    """Raise Forbidden if one of these instances is beyond the token's reach."""
    for instance in instances:
        if not bearer.may_see(instance):
            raise Forbidden(f"the token does not reach the instance {instance}")


def require_scope(bearer: Bearer, scope: Scope) -> None:
    """Raise Forbidden if the token's scope is another; `operate` includes `read`."""
    if bearer.scope not in (scope, "operate"):
        remedy = f"`receiver tokens create NAME --scope {scope}` makes one"
        raise Forbidden(f"this needs a token of the scope {scope}: {remedy}")


def record_action(
    services: Services,
    bearer: Bearer,
    session: Session,
    action: str,
    subject: str,
    *,
    detail: str = "",
) -> None:
    """Record in the audit what a bearer does, last in the transaction that does it."""
    entry = {"actor": bearer.name, "action": action, "subject": subject, "detail": detail}
    audit.record(session, at=services.clock(), **entry)


def record_alone(
    services: Services, bearer: Bearer, action: str, subject: str, *, detail: str = ""
) -> None:
    """Record in the audit what a bearer does where it is not a transaction of ours that does it."""
    with services.database.write() as session:
        record_action(services, bearer, session, action, subject, detail=detail)
