"""Who may see a page, and act: sign-in with an API token, sign-out, requests from other sites."""

import re
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import wraps
from typing import Concatenate, ParamSpec, TypeAlias
from urllib.parse import urlsplit

import structlog
from flask import Response, g, request, url_for
from werkzeug.exceptions import Forbidden, HTTPException

from receiver.alarms.channels import has_channel
from receiver.alarms.watcher import PERIOD_SECONDS
from receiver.errors import ReceiverError, StoreError
from receiver.instances import sessions
from receiver.instances.tokens import Scope
from receiver.openconnectors.shapes import BASE, is_loopback
from receiver.settings import DEFAULT_INSTANCE
from receiver.web import Services, problems, services
from receiver.web.auth import require_scope
from receiver.web.dashboard.pages import (
    STATIC,
    Caller,
    add_headers,
    blueprint,
    page,
    respond_to_error,
)

log = structlog.get_logger()
P = ParamSpec("P")
PageView: TypeAlias = Callable[Concatenate[Services, Caller, P], Response]

MAX_FORM_BYTES = 64 * 1024
MAX_WAIT_MS = 5_000  # for an action's turn to ask the vendor; it holds a thread
TOUCH_SECONDS = 0.2  # to note that a session is in use is not worth a longer wait

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
        return origin == f"{'https' if _is_tls() else 'http'}://{request.host}"
    # No browser: those that send neither send no cookie of ours from elsewhere. Without a session
    # there is nothing that a forged request could use.
    return request.endpoint == "dashboard.sign_in" and not request.cookies.get(_cookie())


def require_session(view: PageView[P], scope: Scope = "read") -> Callable[P, Response]:
    """Pass a view the services and who is signed in; send strangers to the sign-in page.

    scope -- what their token needs: without it, Forbidden is raised.
    """

    @wraps(view)
    def admitted(*args: P.args, **kwargs: P.kwargs) -> Response:
        caller = _caller()
        if caller is None:
            if request.endpoint == "dashboard.home":
                return sign_in_page()
            wanted = request.full_path.rstrip("?") if request.method == "GET" else None
            return redirect_to(url_for("dashboard.home", next=wanted))
        services().limits.check_token(caller.bearer.name)
        g.caller = caller  # for the top of the page, of errors' pages too
        require_scope(caller.bearer, scope)
        return view(services(), caller, *args, **kwargs)

    return admitted


def page_at(
    rule: str, *methods: str, scope: Scope = "read"
) -> Callable[[PageView[P]], PageView[P]]:
    """Have a view answer at a path who `require_session` admits; if no method is named, GET."""

    def decorate(view: PageView[P]) -> PageView[P]:
        admitted = require_session(view, scope)
        blueprint.add_url_rule(rule, view_func=admitted, methods=methods or ["GET"])
        return view

    return decorate


class Action:
    """What is confirmed first. url -- of the page it belongs to. effects -- what will happen."""

    def __init__(
        self, title: str, button: str, url: str, *effects: str, is_danger: bool = False
    ) -> None:
        self.title, self.button, self.url = title, button, url
        self.effects, self.is_danger = effects, is_danger


Steps: TypeAlias = Generator[Action, None, str | Response]
ActionView: TypeAlias = Callable[Concatenate[Services, Caller, P], Steps]


def action_page(rule: str) -> Callable[[ActionView[P]], ActionView[P]]:
    """Make pages of an action: GET says what POST will do.

    It yields what is to be confirmed, goes on once that was done, and returns the notice to show
    on its page then, or another response.
    """

    def decorate(act: ActionView[P]) -> ActionView[P]:
        @page_at(rule, "GET", "POST", scope="operate")
        @wraps(act)
        def view(
            services: Services, caller: Caller, /, *args: P.args, **kwargs: P.kwargs
        ) -> Response:
            steps = act(services, caller, *args, **kwargs)
            action, result = next(steps), None
            if request.method == "GET":
                return page("confirm.html", action=action)
            try:
                next(steps)
            except StopIteration as done:
                result = done.value
            if isinstance(result, Response):
                return result
            flash(services, caller, str(result))
            return redirect_to(action.url)

        return act

    return decorate


@blueprint.app_errorhandler(404)
def respond_to_unknown_path(error: HTTPException) -> Response:
    """Answer whoever asks for a path that is not there: a browser with a page."""
    if request.blueprint == blueprint.name:
        return respond_to_error(error)
    if not _wants_page():
        return problems.respond(error)
    with suppress(ReceiverError):
        g.caller = _caller()
    return add_headers(respond_to_error(error))


def _wants_page() -> bool:
    """Whether a browser asks, and not for something of the API's or the vendor's."""
    accepted = request.accept_mimetypes
    others = ("/api/", "/callbacks/", f"{BASE}/")
    return accepted["text/html"] > accepted["application/json"] and not request.path.startswith(
        others
    )


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
        if previous := request.cookies.get(_cookie()):
            sessions.sign_out(session, previous)
        session_id = sessions.sign_in(session, token, now) if token else None
    if session_id is None:
        limits.note_failure(peer)
        log.warning("sign-in rejected", peer=peer)
        return sign_in_page(401, "This token is unknown, expired or revoked.")
    response = redirect_to(local_path(request.form.get("next")) or url_for("dashboard.home"))
    response.set_cookie(
        _cookie(),
        session_id,
        sessions.MAX_AGE_MS // 1000,
        secure=_is_tls(),
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
    response.delete_cookie(_cookie(), secure=_is_tls(), httponly=True, samesite="Strict")
    return response


def redirect_to(path: str) -> Response:
    """Go on to another page, by GET."""
    response = Response(status=303)
    response.headers["Location"] = path
    return response


def flash(services: Services, caller: Caller, notice: str) -> None:
    """Show a notice on the next page to whoever is signed in."""
    with services.database.write() as session:
        sessions.set_notice(session, caller.session_id, notice)


@blueprint.app_template_global()
def take_notice(caller: Caller) -> str | None:
    """Return the notice to be shown, and forget it."""
    if caller.notice is not None:
        with suppress(StoreError), services().database.write(TOUCH_SECONDS) as session:
            sessions.set_notice(session, caller.session_id, None)
    return caller.notice


def local_path(path: str | None) -> str | None:
    """Return a path if it leads to our own pages alone; else None."""
    if path is None or not _LOCAL.fullmatch(path) or len(path) > 4000:
        return None
    parts = urlsplit(path)
    return None if parts.scheme or parts.netloc else path


def _caller() -> Caller | None:
    session_id, now = request.cookies.get(_cookie()), services().clock()
    if not session_id:
        return None
    signed_in = sessions.find_session(services().database, session_id, now)
    if signed_in is None:
        return None
    if signed_in.stale:
        with suppress(StoreError), services().database.write(TOUCH_SECONDS) as session:
            sessions.touch(session, session_id, now)
    names = {DEFAULT_INSTANCE} if services().settings.default_keys else set[str]()
    seen = sorted(
        name for name in names.union(signed_in.instances) if signed_in.bearer.may_see(name)
    )
    # Who checked and died is followed within a period after the end of the lease.
    is_checked = signed_in.watched_until > now - 2000 * PERIOD_SECONDS
    is_notified = has_channel(services().settings) or signed_in.alarm_subscriptions > 0
    return Caller(signed_in.bearer, session_id, seen, signed_in.notice, is_checked, is_notified)


def _cookie() -> str:
    # With this prefix, browsers take it from this very host and over TLS alone.
    return "__Host-receiver-session" if _is_tls() else "receiver-session"


def _is_tls() -> bool:
    """Whether the browser speaks TLS to us, or to a proxy that does not say so."""
    public = services().settings.public_url or ""
    if request.is_secure or not public.startswith("https:"):
        return request.is_secure
    return not is_loopback(urlsplit(f"//{request.host}").hostname or "")
