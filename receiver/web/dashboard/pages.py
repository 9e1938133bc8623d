"""What all pages share: the blueprint, how a page is rendered, its headers, and how errors look."""

import secrets
from collections.abc import Hashable, Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import structlog
from flask import Blueprint, Response, current_app, g, render_template, request
from flask.blueprints import BlueprintSetupState
from markupsafe import Markup
from werkzeug.exceptions import HTTPException

from receiver import __version__
from receiver.errors import ReceiverError, StoreError, TooManyRequests
from receiver.web import problems, services

log = structlog.get_logger()

_WEB = Path(__file__).parents[1]

blueprint = Blueprint(
    "dashboard",
    __name__,
    template_folder=str(_WEB / "templates"),
    static_folder=str(_WEB / "static"),
    static_url_path="/static",
)

STATIC = "dashboard.static"
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


def page(template: str, status: int = 200, **facts: Any) -> Response:  # noqa: ANN401
    """Answer with a page. facts -- what the template shows."""
    now = services().clock()
    shown = {"now": now, "settings": services().settings, "version": __version__, **facts}
    return Response(render_template(f"dashboard/{template}", **shown), status)


def part(name: str, *facts: object) -> Markup:
    """Render a macro of `_lines.html`: what is worth keeping, since it seldom changes."""
    macros: Any = current_app.jinja_env.get_template("dashboard/_lines.html").module
    rendered: Markup = getattr(macros, name)(*facts)
    return rendered


@lru_cache(maxsize=1024)
def kept(name: str, *facts: Hashable) -> Markup:
    """As `part`, of facts that can be hashed and tell all: what was rendered lately is kept."""
    return part(name, *facts)


def joined(parts: Iterable[Markup]) -> Markup:
    """Put parts together, which are escaped: Markup's own `join` looks at each again."""
    return Markup("".join(parts))  # noqa: S704  # nosec B704


@blueprint.app_template_global()
def top(section: str, name: str, scope: str, form_token: str) -> Markup:
    """Give the top of a page: the ways to go, and who is signed in; to a stranger, neither."""
    return kept("top", section, name, scope, form_token)


@blueprint.app_template_global()
@cache
def icon(name: str) -> Markup:
    """Draw an icon of the sprite; its name is one of ours."""
    use = f'<use href="#i-{name}"></use>'
    return Markup(f'<svg class="icon" aria-hidden="true" focusable="false">{use}</svg>')  # noqa: S704  # nosec B704


@blueprint.record_once
def _prepare(state: BlueprintSetupState) -> None:
    state.app.jinja_env.trim_blocks = state.app.jinja_env.lstrip_blocks = True


@blueprint.after_request
def guarded(response: Response) -> Response:
    """Say what a page may load, and that nobody keeps it."""
    response.headers.update(HEADERS)
    if request.endpoint != STATIC:
        response.headers["Cache-Control"] = "no-store"
        response.headers["Vary"] = "Cookie"
    return response


@blueprint.errorhandler(ReceiverError)
def _ours(error: ReceiverError) -> Response:
    problem = problems.problem_of(error)
    template = "error.html"
    if isinstance(error, StoreError):
        log.warning("a page could not be read or written", path=request.path, error=str(error))
        template = "unavailable.html"
    response = page(template, problem.status, title=problem.title, detail=problem.detail)
    if isinstance(error, TooManyRequests):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


@blueprint.errorhandler(HTTPException)
def faulty(error: HTTPException) -> Response:
    """Tell of an error of Flask's on a page."""
    status = error.code or 500
    response = page("error.html", status, title=error.name, detail=error.description)
    for name, value in error.get_headers():
        if name in ("Allow", "Location", "Retry-After"):
            response.headers[name] = value
    return response


@blueprint.errorhandler(Exception)
def _unforeseen(error: Exception) -> Response:
    number = secrets.token_hex(4)
    # The type alone, as for the API: the text could hold what was sent.
    log.error("unforeseen error", error=type(error).__name__, path=request.path, number=number)
    detail = f"This is a fault of the receiver; its log has it under {number}."
    return page("error.html", 500, title="Internal error", detail=detail)


@blueprint.app_template_global()
def may_operate() -> bool:
    """Whether whoever is signed in may act, not only look."""
    return g.get("bearer") is not None and g.bearer.scope == "operate"
