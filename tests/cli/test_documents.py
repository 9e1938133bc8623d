"""Whatever `receiver` command a document names is one that exists, with those options."""

import re
import shlex
from pathlib import Path

import click
import pytest

from receiver.alarms.kinds import KINDS
from receiver.cli.commands import receiver

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(receiver [^`\n]+)`")


def commands(page: str) -> list[list[str]]:
    """The words of each command of ours, without what a shell does with its output."""
    found = INLINE.findall(page)
    for block in BLOCK.findall(page):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line.partition("  #")[0] for line in lines if re.match(r"\s*receiver ", line)]
    return [shlex.split(re.split(r"[;|>&]| 2>", command)[0]) for command in found]


def parse(words: list[str]) -> None:
    """Read a command as the command line does, without running it. Raises click.UsageError."""
    command: click.Command = receiver
    context = click.Context(receiver, info_name=words[0], **receiver.context_settings)
    rest = words[1:]
    while isinstance(command, click.Group) and not rest[0].startswith("-"):
        name, found, rest = command.resolve_command(context, rest)
        assert name is not None
        assert found is not None
        command, context = found, click.Context(found, parent=context, info_name=name)
        if not rest:
            return  # the page speaks of the command, not of a use of it
    if rest not in (["-h"], ["--help"]):
        command.make_parser(context).parse_args(list(rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists_with_its_options(page):
    wrong = []
    for words in commands(page.read_text()):
        try:
            parse(words)
        except click.UsageError as error:
            wrong.append((" ".join(words), error.format_message()))
    assert wrong == []


def test_every_command_that_an_alarm_names_exists_with_its_options():
    for kind in KINDS.values():
        for words in commands(kind.advice("NAME")):
            parse(words)


def test_every_link_to_a_file_or_a_heading_leads_there():
    broken = []
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            text = target.read_text() if target.suffix == ".md" and target.exists() else ""
            heads = [head.lower() for head in re.findall("^#+ (.*)$", text, re.MULTILINE)]
            anchors = {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in heads}
            if not target.exists() or (anchor and anchor not in anchors):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_a_command_or_an_option_that_does_not_exist_is_noticed():
    for words in ("receiver erase-it", "receiver job 1 --colour", "receiver keys retired a"):
        with pytest.raises(click.UsageError):
            parse(words.split())


def test_the_pages_name_many_commands():
    assert sum(len(commands(page.read_text())) for page in PAGES) > 60
