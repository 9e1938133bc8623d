"""Who may see a page: sign-in with a token of the API, sign-out, and what a form must carry."""

import hmac
import re
import secrets
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import structlog
from flask import Response, g, redirect, request, url_for
from werkzeug.exceptions import Forbidden, HTTPException

from receiver.errors import ReceiverError, StoreError
from receiver.instances import sessions
from receiver.settings import is_loopback
from receiver.web import problems, services
from receiver.web.dashboard.pages import STATIC, blueprint, faulty, guarded, page

log = structlog.get_logger()

LARGEST_FORM = 64 * 1024
OPEN = ("dashboard.front", "dashboard.sign_in")  # the first is the sign-in page to strangers
FORM_TOKEN = "form_token"  # noqa: S105 - the name of a field  # nosec B105
TOUCH_PATIENCE = 0.2  # seconds; to have been seen is not worth waiting for

# One local path: browsers read `//host` and `/\host` as another host, and drop tabs and line ends.
_LOCAL = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")


@blueprint.before_request
def _admit() -> Any:  # noqa: ANN401 - an answer, or None to go on
    if request.endpoint == STATIC:
        return None
    request.max_content_length = LARGEST_FORM
    g.session_id = request.cookies.get(_cookie("session"))
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        _check_form()
    found = _signed_in()
    if found is not None:
        services().limits.check_token(found.bearer.name)
        _remember(found)
        return None
    g.session_id = None
    if request.endpoint in OPEN:
        return None
    wanted = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("dashboard.front", next=wanted), 303)


@blueprint.app_errorhandler(404)
def nowhere(error: HTTPException) -> Response:
    """Answer whoever asks for a path that is not there: a browser with a page."""
    if request.blueprint == blueprint.name:
        return faulty(error)
    if not _wants_page():
        return problems.respond_to_http_exception(error)
    g.session_id = request.cookies.get(_cookie("session"))
    with suppress(ReceiverError):
        _remember(_signed_in())
    return guarded(faulty(error))


def _wants_page() -> bool:
    """Whether a browser asks, and not for something of the API's or the vendor's."""
    taken = request.accept_mimetypes
    rooms = ("/api/", "/callbacks/", f"{problems.VENDORS_PATHS}/")
    return taken["text/html"] > taken["application/json"] and not request.path.startswith(rooms)


def door(status: int = 200, told: str | None = None) -> Response:
    """Show the sign-in page. told -- what went wrong."""
    g.visitor = request.cookies.get(_cookie("visitor")) or secrets.token_urlsafe(32)
    following = local(request.values.get("next"))
    response = page("sign_in.html", status, told=told, following=following)
    _set_cookie(response, "visitor", g.visitor)
    return response


@blueprint.post("/sign-in")
def sign_in() -> Response:
    """Begin a session, with an id nobody has seen before."""
    token, now = request.form.get("token", "").strip(), services().clock()
    limits, peer = services().limits, request.remote_addr or ""
    limits.check_address(peer)
    with services().database.write() as session:
        if g.session_id:
            sessions.sign_out(session, g.session_id)
        session_id = sessions.sign_in(session, token, now) if token else None
    if session_id is None:
        limits.note_failure(peer)
        log.warning("sign-in refused", peer=peer)
        return door(401, "This token is unknown, expired or revoked.")
    response = see(local(request.form.get("next")) or url_for("dashboard.front"))
    _set_cookie(response, "session", session_id, seconds=sessions.LONGEST_MS // 1000)
    _drop_cookie(response, "visitor")
    return response


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session, on every node at once."""
    with services().database.write() as session:
        sessions.sign_out(session, g.session_id)
    response = see(url_for("dashboard.front"))
    _drop_cookie(response, "session")
    return response


def tell(notice: str) -> None:
    """Have the next page tell whoever is signed in."""
    with services().database.write() as session:
        sessions.notify(session, g.session_id, notice)


@blueprint.app_template_global()
def take_notice() -> str | None:
    """Give what is to be told, once."""
    notice: str | None = g.pop("notice", None)
    if notice is not None:
        with suppress(StoreError), services().database.write(TOUCH_PATIENCE) as session:
            sessions.notify(session, g.session_id, None)
    return notice


@blueprint.app_template_global()
def form_token() -> str:
    """Give the token that a form of this page must carry: only who has the cookie can make it."""
    return _token_of(g.get("session_id") or g.get("visitor") or "")


def local(path: str | None) -> str | None:
    """Give a path if it leads nowhere but to our own pages."""
    if path is None or not _LOCAL.fullmatch(path) or len(path) > 4000:  # noqa: PLR2004
        return None
    parts = urlsplit(path)
    return None if parts.scheme or parts.netloc else path


def _token_of(owner: str) -> str:
    return hmac.digest(owner.encode(), FORM_TOKEN.encode(), "sha256").hex()


def _check_form() -> None:
    # At the door there may be the cookie of a session that is over, too.
    visitor = request.cookies.get(_cookie("visitor")) if request.endpoint in OPEN else None
    owners = [owner for owner in (g.session_id, visitor) if owner]
    sent = request.form.get(FORM_TOKEN, "").encode(errors="replace")
    if not owners:
        raise Forbidden(
            "Your browser sent no cookie with this form. Allow cookies for this site, and use https"
            " where the dashboard is reached over https."
        )
    if not any(hmac.compare_digest(sent, _token_of(owner).encode()) for owner in owners):
        raise Forbidden("This form is out of date. Go back, load the page again and repeat.")


def _signed_in() -> sessions.SignedIn | None:
    if not g.session_id:
        return None
    now = services().clock()
    found = sessions.signed_in(services().database, g.session_id, now)
    if found is not None and found.stale:
        with suppress(StoreError), services().database.write(TOUCH_PATIENCE) as session:
            sessions.touch(session, g.session_id, now)
    return found


def _remember(found: sessions.SignedIn | None) -> None:
    if found is not None:
        g.bearer, g.notice, g.instances = found.bearer, found.notice, found.instances


def see(path: str) -> Response:
    """Go on to another page, by GET."""
    response = Response(status=303)
    response.headers["Location"] = path
    return response


def _set_cookie(response: Response, name: str, value: str, seconds: int | None = None) -> None:
    response.set_cookie(
        _cookie(name), value, max_age=seconds, secure=_is_tls(), httponly=True, samesite="Lax"
    )


def _drop_cookie(response: Response, name: str) -> None:
    response.delete_cookie(_cookie(name), secure=_is_tls(), httponly=True, samesite="Lax")


def _cookie(name: str) -> str:
    # With this prefix, browsers take it from this very host and over TLS alone.
    return f"__Host-receiver-{name}" if _is_tls() else f"receiver-{name}"


def _is_tls() -> bool:
    """Whether the browser speaks TLS to us, or to a proxy that does not say so."""
    public = services().settings.public_url or ""
    if request.is_secure or not public.startswith("https:"):
        return request.is_secure
    return not is_loopback(urlsplit(f"//{request.host}").hostname or "")
