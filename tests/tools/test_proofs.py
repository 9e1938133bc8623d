"""docs/SECURITY.md and docs/goals.md name what proves each of their lines; the proofs are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PAGES = {"SECURITY.md": 25, "goals.md": 14}  # and how many lines their tables have at least
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
COMMAND = re.compile(r"`make ([\w-]+)")


def lines_of(page: str) -> list[str]:
    """The lines of a page's table, without its head; each ends in what proves it."""
    lines = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line[:1] == "|"]
    return lines[2:]


def collected_from(file: str) -> set[str]:
    """What pytest collects from a file: its functions of that name, at the top."""
    tree = ast.parse((TESTS / file).read_text())
    return {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_each_line_names_a_test_or_a_command_that_exists(page):
    lines = lines_of(page)
    assert len(lines) >= PAGES[page]
    assert [line for line in lines if not NAMED.search(line) and not COMMAND.search(line)] == []
    text = "\n".join(lines)
    named = set(NAMED.findall(text))
    assert {(file, name) for file, name in named if name not in collected_from(file)} == set()
    assert {Path(file).name[:5] for file, _ in named} == {"test_"}  # or pytest would pass over it
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(COMMAND.findall(text)) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_no_test_is_named_without_its_file(page):
    text = (ROOT / "docs" / page).read_text()
    assert re.findall(r"`test_\w+`", text) == []
