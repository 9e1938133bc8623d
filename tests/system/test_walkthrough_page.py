"""docs/walkthrough.md prints what it says: its blocks are typed as they stand, ports apart."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from duty import Duty
from pages import pattern
from processes import free_port
from serving import ROOT, eventually

PAGE = (ROOT / "docs" / "walkthrough.md").read_text()
END = "end of block"


class Section(NamedTuple):
    """A part of the page: what is typed, and what is printed then."""

    name: str
    typed: str
    printed: str


def sections() -> list[Section]:
    found = []
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", part, re.MULTILINE | re.DOTALL))
        assert set(blocks) <= {"sh", "text"}
        found.append(Section(part.partition("\n")[0], blocks["sh"], blocks.get("text", "")))
    return found


class Terminal:
    """One shell for the whole page, as its reader has it open."""

    def __init__(self, duty: Duty, ports: dict[str, str]) -> None:
        self._ports = ports
        self.folder = duty.folder / "empty"
        self.folder.mkdir()
        self.errors = duty.folder / "standard-error"
        with self.errors.open("w") as errors:
            self.shell = subprocess.Popen(
                ["bash"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=duty.bare,
                cwd=self.folder,
                text=True,
            )

    def type(self, commands: str) -> str:
        """Type a block; give what it prints to standard output."""
        for written, real in self._ports.items():
            commands = commands.replace(written, real)
        self.shell.stdin.write(f"{commands}\necho '{END}'\n")
        self.shell.stdin.flush()
        printed = ""
        while (line := self.shell.stdout.readline()) != f"{END}\n":
            assert line, f"the shell ended after: {printed}{self.errors.read_text()}"
            printed += line
        for written, real in self._ports.items():
            printed = printed.replace(real, written)
        return printed

    def close(self) -> None:
        """End the shell, and what it has started if the page did not come to that."""
        with self.shell:
            self.shell.stdin.write("kill $(jobs -p)\nwait\n")


@pytest.fixture
def duty(tmp_path: Path) -> Iterator[Duty]:
    with ExitStack() as stack:
        yield Duty(tmp_path, "", stack)


@pytest.mark.slow
def test_the_walk_prints_what_the_page_says(duty):
    receiver, sandbox = f"127.0.0.1:{duty.port}", f"127.0.0.1:{free_port()}"
    terminal = Terminal(duty, {"127.0.0.1:8000": receiver, "127.0.0.1:9000": sandbox})
    duty.stack.callback(terminal.close)
    for section in sections():
        printed = terminal.type(section.typed)
        said = re.fullmatch(pattern(section.printed), printed)
        assert said, f"{section.name}\n{printed}\n{terminal.errors.read_text()}"
        if "In the browser" in PAGE.partition(f"## {section.name}")[2].partition("\n## ")[0]:
            look_at(f"http://{receiver}", (terminal.folder / "token").read_text().strip())
    for url in (receiver, sandbox):
        eventually(lambda url=url: is_gone(f"http://{url}"), "the end of what was started")


def look_at(url: str, token: str) -> None:
    """Do what the page says of the browser: sign in, choose Partial, choose the job."""
    with httpx.Client(base_url=url, trust_env=False, follow_redirects=True, timeout=60) as browser:
        front = browser.post("/sign-in", data={"token": token}).text
        assert 'href="/jobs?outcome=partial&amp;' in front
        assert 'href="/jobs/1235?instance=gooddata"' in browser.get("/jobs?outcome=partial").text
        job = browser.get("/jobs/1235?instance=gooddata").text
        assert "The e-mail address is malformed." in job
        assert "not-an-address" in job


def is_gone(url: str) -> bool:
    try:
        httpx.get(url, trust_env=False)
    except httpx.TransportError:
        return True
    return False


def test_every_command_of_the_page_belongs_to_a_section():
    assert PAGE.count("```") == 2 * sum(1 + bool(section.printed) for section in sections())
