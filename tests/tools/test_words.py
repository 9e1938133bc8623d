"""What people read is in the field's common words: no message has one of the old phrases."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import receiver
from receiver.cli.commands import receiver as commands
from receiver.web.api import _document

ROOT = Path(receiver.__file__).parent
# As the product said it once, and what it says now.
PHRASES = {
    r"\bfates?\b": "unknown result",
    r"\bunder way\b": "in progress",
    r"\blately\b": "recently",
    r"\btold\b": "reported, notified",
    r"\blearnt\b": "detected, discovered",
    r"\brefus(?:e|es|ed|al|als|ing)\b": "rejected",
    r"\bnobody (?:watches|is told|knows)\b": "not running, not configured, unknown",
    r"\bwould try again\b|\bthis is not stored\b": "will retry",
    r"\bdid not do it\b|\bcannot be done now\b": "rejected the request, not possible",
    r"\btake one of the filters back\b|\bwhat to set\b": "try removing a filter, name an option",
    r"\bmend(?:ed|s)?\b|\bstand-in\b|\ba line end too many\b": "fix, simulator, newline",
    r"\bthese are no faults\b|\bis written down with\b": "unknown fault, is recorded",
    r"\balso acts\b": "can also make changes",
}
OLD = re.compile("|".join(PHRASES), re.IGNORECASE)
# What only the database itself reads.
LEFT = {"versions": "refuse"}


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of several words in a module, but for docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        text = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and " " in text and id(node) not in docstrings:
            yield node.lineno, text


def is_left(path: Path, text: str) -> bool:
    return any(place in path.parts and words in text for place, words in LEFT.items())


def test_no_message_has_a_phrase_of_before():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in sorted(ROOT.rglob("*.py"))
        for line, text in messages(path)
        if OLD.search(text) and not is_left(path, text)
    ]
    assert found == []


def test_no_page_has_a_phrase_of_before():
    templates = sorted(ROOT.rglob("*.html"))
    assert len(templates) > 8
    texts = {
        path: re.sub(r"\{[%{#].*?[%}#]\}|<[^>]*>", " ", path.read_text()) for path in templates
    }
    assert {path.name: OLD.findall(text) for path, text in texts.items() if OLD.search(text)} == {}


def test_no_document_has_a_phrase_of_before():
    pages = [ROOT.parent / "README.md", *ROOT.parent.glob("docs/*.md")]
    quoted = re.compile(r"^```.*?^```|`[^`]*`", re.MULTILINE | re.DOTALL)
    found = {page.name: OLD.findall(quoted.sub("", page.read_text())) for page in pages}
    assert {page: words for page, words in found.items() if words} == {}


def helps(command: click.Command, context: click.Context) -> Iterator[str]:
    yield command.get_help(context)
    for name in getattr(command, "list_commands", lambda _: [])(context):
        yield from helps(command.get_command(context, name), context)


def test_no_help_and_no_description_of_the_api_has_a_phrase_of_before():
    found = [
        OLD.findall(text)
        for text in helps(commands, click.Context(commands, **commands.context_settings))
    ]
    assert [each for each in found if each] == []
    assert OLD.findall(str(_document())) == []


@pytest.mark.parametrize(
    "phrase", ["Fate unknown", "jobs under way", "it refuses", "Nobody watches"]
)
def test_a_phrase_would_be_found(phrase):
    assert OLD.search(phrase)
