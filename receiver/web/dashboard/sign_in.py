"""Sign-in with an API token, sign-out, and requests of pages from other sites."""

import re
from urllib.parse import urlsplit

import structlog
from flask import Response, request, url_for
from werkzeug.exceptions import Forbidden

from receiver.instances import sessions
from receiver.web import Services, services
from receiver.web.dashboard.pages import (
    STATIC,
    Caller,
    blueprint,
    is_tls,
    page,
    page_at,
    redirect_to,
    session_cookie,
)

log = structlog.get_logger()
MAX_FORM_BYTES = 64 * 1024

# One local path: browsers read `//host` and `/\host` as another host, and drop tabs and line ends.
_LOCAL = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")


@blueprint.before_request
def require_same_origin() -> None:
    """Refuse to change anything for a page of another site: see docs/adr/0013. Raises Forbidden."""
    if request.endpoint == STATIC:
        return
    request.max_content_length = MAX_FORM_BYTES
    if request.method not in ("GET", "HEAD", "OPTIONS") and not _is_same_origin():
        raise Forbidden(
            "This request did not come from a page of this receiver, so nothing was changed. Open"
            " the dashboard by its own address and try again. Behind a proxy, see that it passes"
            " on the headers Origin, Host and Sec-Fetch-Site."
        )


def _is_same_origin() -> bool:
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is not None:
        return origin == f"{'https' if is_tls() else 'http'}://{request.host}"
    # No browser: those that send neither send no cookie of ours from elsewhere. Without a session
    # there is nothing that a forged request could use.
    return request.endpoint == "dashboard.sign_in" and not request.cookies.get(session_cookie())


def sign_in_page(status: int = 200, error: str | None = None) -> Response:
    """Show the sign-in page. error -- what went wrong.

    A link on another site holds back a strict cookie: then the page loads itself once more.
    """
    following = local_path(request.values.get("next"))
    crossing = request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site"
    return page("sign_in.html", status, error=error, following=following, crossing=crossing)


@blueprint.post("/sign-in")
def sign_in() -> Response:
    """Begin a session, with an id nobody has seen before."""
    token, now = request.form.get("token", "").strip(), services().clock()
    limits, peer = services().limits, request.remote_addr or ""
    limits.check_address(peer)
    with services().database.write() as session:
        if previous := request.cookies.get(session_cookie()):
            sessions.sign_out(session, previous)
        session_id = sessions.sign_in(session, token, now) if token else None
    if session_id is None:
        limits.note_failure(peer)
        log.warning("sign-in rejected", peer=peer)
        return sign_in_page(401, "This token is unknown, expired or revoked.")
    response = redirect_to(local_path(request.form.get("next")) or url_for("dashboard.home"))
    response.set_cookie(
        session_cookie(),
        session_id,
        sessions.MAX_AGE_MS // 1000,
        secure=is_tls(),
        httponly=True,
        samesite="Strict",
    )
    return response


@page_at("/sign-out", "POST")
def sign_out(services: Services, caller: Caller) -> Response:
    """End the session, on every node at once."""
    with services.database.write() as session:
        sessions.sign_out(session, caller.session_id)
    response = redirect_to(url_for("dashboard.home"))
    response.delete_cookie(session_cookie(), secure=is_tls(), httponly=True, samesite="Strict")
    return response


def local_path(path: str | None) -> str | None:
    """Return a path if it leads to our own pages alone; else None."""
    if path is None or not _LOCAL.fullmatch(path) or len(path) > 4000:
        return None
    parts = urlsplit(path)
    return None if parts.scheme or parts.netloc else path
