"""What all pages share: the blueprint, who asks, rendering, headers, and how errors look."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar
from urllib.parse import urlencode

from flask import Blueprint, Flask, Response, g, render_template, request
from flask.blueprints import BlueprintSetupState
from msgspec import Struct

from receiver import __version__
from receiver.errors import StoreError
from receiver.instances.tokens import Bearer
from receiver.web import services
from receiver.web.http import parameters
from receiver.web.problems import read_error

Q = TypeVar("Q", bound=Struct)

blueprint = Blueprint(
    "dashboard",
    __name__,
    template_folder="templates",
    static_folder="static",
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


def filled_parameters() -> list[tuple[str, str]]:
    """Return the parameters of this request but those that a form left empty."""
    return [(name, value) for name, value in request.args.items(multi=True) if value]


def read_query(model: type[Q], **more: str) -> Q:
    """Read what a form filled in. more -- parameters beside those. Raises BadParameter."""
    return parameters(urlencode([*filled_parameters(), *more.items()]), model)


def url_with(path: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a path with these parameters."""
    return f"{path}?{urlencode(pairs)}" if pairs else path


class Links(NamedTuple):
    """The URLs of a list's other pages. is_filtered -- whether anything but a page is asked for."""

    newest: str | None
    older: str | None
    is_filtered: bool


def page_links(following: str | None) -> Links:
    """Return the links of this list. following -- the cursor of the next page, if there is one."""
    filters = [pair for pair in filled_parameters() if pair[0] != "cursor"]
    return Links(
        url_with(request.path, filters) if "cursor" in request.args else None,
        url_with(request.path, [*filters, ("cursor", following)]) if following else None,
        bool(filters),
    )


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
