"""What makes a page, or an action, of a view: who is signed in, rendering, headers, errors."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeAlias, TypeVar
from urllib.parse import urlencode, urlsplit

from flask import Blueprint, Flask, Response, g, render_template, request, url_for
from flask.blueprints import BlueprintSetupState
from msgspec import Struct
from werkzeug.exceptions import HTTPException

from receiver import __version__
from receiver.alarms.channels import has_channel
from receiver.alarms.watcher import PERIOD_SECONDS
from receiver.errors import ReceiverError, StoreError
from receiver.instances import sessions
from receiver.instances.tokens import Bearer, Scope
from receiver.openconnectors.shapes import BASE, is_loopback
from receiver.settings import DEFAULT_INSTANCE
from receiver.web import Services, problems, services
from receiver.web.auth import require_scope
from receiver.web.http import parameters
from receiver.web.problems import read_error

P = ParamSpec("P")
Q = TypeVar("Q", bound=Struct)

blueprint = Blueprint(
    "dashboard",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/static",
)

STATIC = "dashboard.static"
MAX_WAIT_MS = 5_000  # for an action's turn to ask the vendor; it holds a thread
TOUCH_SECONDS = 0.2  # to note that a session is in use is not worth a longer wait
HEADERS = {
    # No inline code, nothing from elsewhere, in no frame.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is signed in. instances -- those they see, by name. notice -- to be shown once.

    are_alarms_checked -- whether anybody checked for alarms lately. are_alarms_sent -- whether
    anybody is notified of them.
    """

    bearer: Bearer
    session_id: str
    instances: Sequence[str]
    notice: str | None
    are_alarms_checked: bool
    are_alarms_sent: bool

    @property
    def may_operate(self) -> bool:
        """Whether they may make changes."""
        return self.bearer.scope == "operate"


def find_caller() -> Caller | None:
    """Return who is signed in; None if nobody is."""
    session_id, now = request.cookies.get(session_cookie()), services().clock()
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


def session_cookie() -> str:
    """Return the name of the cookie that holds a session's id."""
    # With this prefix, browsers take it from this very host and over TLS alone.
    return "__Host-receiver-session" if is_tls() else "receiver-session"


def is_tls() -> bool:
    """Whether the browser speaks TLS to us, or to a proxy that does not say so."""
    public = services().settings.public_url or ""
    if request.is_secure or not public.startswith("https:"):
        return request.is_secure
    return not is_loopback(urlsplit(f"//{request.host}").hostname or "")


PageView: TypeAlias = Callable[Concatenate[Services, Caller, P], Response]


def _to_sign_in() -> Response:
    wanted = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect_to(url_for("dashboard.home", next=wanted))


def require_session(
    view: PageView[P], scope: Scope = "read", stranger: Callable[[], Response] = _to_sign_in
) -> Callable[P, Response]:
    """Pass a view the services and who is signed in. stranger -- answers whoever is not.

    scope -- what their token needs: without it, Forbidden is raised.
    """

    @wraps(view)
    def admitted(*args: P.args, **kwargs: P.kwargs) -> Response:
        caller = find_caller()
        if caller is None:
            return stranger()
        services().limits.check_token(caller.bearer.name)
        g.caller = caller  # for the top of the page, of errors' pages too
        require_scope(caller.bearer, scope)
        return view(services(), caller, *args, **kwargs)

    return admitted


def page_at(
    rule: str,
    *methods: str,
    scope: Scope = "read",
    stranger: Callable[[], Response] = _to_sign_in,
) -> Callable[[PageView[P]], PageView[P]]:
    """Have a view answer at a path who `require_session` admits; if no method is named, GET."""

    def decorate(view: PageView[P]) -> PageView[P]:
        admitted = require_session(view, scope, stranger)
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


def redirect_to(path: str) -> Response:
    """Go on to another page, by GET."""
    response = Response(status=303)
    response.headers["Location"] = path
    return response


def page(template: str, status: int = 200, **facts: object) -> Response:
    """Answer with a page. facts -- what the template shows."""
    shared = {
        "now": services().clock(),
        "settings": services().settings,
        "version": __version__,
        "caller": g.get("caller"),
        "trouble": services().health.trouble,
    }
    return Response(render_template(template, **shared, **facts), status)


def download(
    body: bytes | Iterable[str] | Iterable[bytes],
    name: str,
    mimetype: str = "application/octet-stream",
) -> Response:
    """Answer with a file, which no browser shows as a page. body -- bytes, or parts."""
    response = Response(body, mimetype=mimetype)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _filled() -> list[tuple[str, str]]:
    """Return the parameters of this request but those that a form left empty."""
    return [(name, value) for name, value in request.args.items(multi=True) if value]


def read_query(model: type[Q], **more: str) -> Q:
    """Read what a form filled in. more -- parameters beside those. Raises BadParameter."""
    return parameters(urlencode([*_filled(), *more.items()]), model)


@blueprint.app_template_global()
def filters() -> list[tuple[str, str]]:
    """Return the parameters of this list but which page of it is asked for."""
    return [pair for pair in _filled() if pair[0] not in ("cursor", "newer")]


@blueprint.app_template_global()
def list_url(path: str | None = None, drop: tuple[str, str] | None = None, **more: str) -> str:
    """Return the URL of this list, or of a path, with its filters.

    drop -- one to leave out. more -- parameters beside those.
    """
    pairs = [*(pair for pair in filters() if pair != drop), *more.items()]
    path = path or request.path
    return f"{path}?{urlencode(pairs)}" if pairs else path


@blueprint.record_once
def _trim_blocks(state: BlueprintSetupState) -> None:
    state.app.jinja_env.trim_blocks = state.app.jinja_env.lstrip_blocks = True


def compile_templates(app: Flask) -> None:
    """Compile the templates of `/`, so that the first visitor after a start need not wait for it.

    The rest is compiled at its first use: all of it would make each start a fifth longer.
    """
    for name in ("base", "_parts", "_problems", "_chart", "home", "sign_in"):
        app.jinja_env.get_template(f"{name}.html")


@blueprint.after_request
def add_headers(response: Response) -> Response:
    """Say what a page may load, and that nobody keeps it."""
    response.headers.update(HEADERS)
    if request.endpoint != STATIC:
        response.headers["Cache-Control"] = "no-store"
        response.headers["Vary"] = "Cookie"
    return response


@blueprint.errorhandler(Exception)
def respond_to_error(error: Exception) -> Response:
    """Answer an error with a page."""
    problem, headers = read_error(error, request.path)
    template = "unavailable.html" if isinstance(error, StoreError) else "error.html"
    detail = problem.detail
    if problem.code == "internal":
        detail += f" Its log has the details under {g.request_id}."
    response = page(template, problem.status, title=problem.title, detail=detail)
    response.headers.update(headers)
    return response


@blueprint.app_errorhandler(404)
def respond_to_unknown_path(error: HTTPException) -> Response:
    """Answer whoever asks for a path that is not there: a browser with a page."""
    if request.blueprint == blueprint.name:
        return respond_to_error(error)
    if not _wants_page():
        return problems.respond(error)
    with suppress(ReceiverError):
        g.caller = find_caller()
    return add_headers(respond_to_error(error))


def _wants_page() -> bool:
    """Whether a browser asks, and not for something of the API's or the vendor's."""
    accepted = request.accept_mimetypes
    others = ("/api/", "/callbacks/", f"{BASE}/")
    return accepted["text/html"] > accepted["application/json"] and not request.path.startswith(
        others
    )
