"""/runbook: docs/runbook.md as a page, with an anchor for each entry and links back from it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flask import Response
from markdown_it import MarkdownIt
from markupsafe import Markup

from receiver.alarms.kinds import KINDS
from receiver.errors import StoreError
from receiver.web import Services
from receiver.web.dashboard.pages import Caller, blueprint, page, require_session

# In a clone a link to the document, in a package a copy. Without either, nothing starts.
_TEXT = (Path(__file__).parent / "runbook.md").read_text(encoding="utf-8")
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_DOCUMENTS = re.compile(r'<a href="[^"]*\.md[^"]*">(.*?)</a>')  # which no page shows
_NAMES = re.compile(r"<(em|code)>([^<]*)</\1>")


@dataclass(frozen=True, slots=True)
class Entry:
    """What to do about one kind of trouble. html -- its text; anchor -- its name in links."""

    title: str
    html: Markup
    anchor: str


@blueprint.get("/runbook")
def runbook() -> Response:
    """Show the runbook; to anybody while the database cannot say who is signed in."""
    try:
        return _show_signed_in()
    except StoreError:
        return _show()


@require_session
def _show_signed_in(_services: Services, _caller: Caller) -> Response:
    return _show()


def _show() -> Response:
    introduction, *entries = _entries()
    return page("runbook.html", introduction=introduction, entries=entries)


@cache
def _entries() -> Sequence[Entry]:
    """Return the introduction, and each entry."""
    parts = [part.partition("\n") for part in re.split("^##? ", _TEXT, flags=re.MULTILINE)[1:]]
    links = {kind.title: "/alarms" for kind in KINDS.values()}
    links |= {title: f"#{_anchor(title)}" for title, _, _ in parts}

    def link(match: re.Match[str]) -> str:
        """Link what is named: an alarm, an entry, or a banner, which the overview has too."""
        tag, name = match.groups()
        to = links.get(name, "/" if tag == "em" else "")
        return f'<a href="{to}">{name}</a>' if to else match[0]

    def html(text: str) -> Markup:
        # The document of this release: nothing of it is a stranger's.
        return Markup(_NAMES.sub(link, _DOCUMENTS.sub(r"\1", _MARKDOWN.render(text))))  # noqa: S704  # nosec B704

    return [Entry(title, html(text), _anchor(title)) for title, _, text in parts]


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")  # as GitHub has it in links to the document
