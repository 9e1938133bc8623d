"""Commands typed in this process, in a folder of their own."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from receiver.cli.commands import run


@pytest.fixture
def type_line(monkeypatch, capfd, tmp_path: Path) -> Callable[..., str]:
    """Run a command, which must exit with `code`; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def type_line(line: str, code: int | None = 0) -> str:
        capfd.readouterr()
        ended = run(shlex.split(line))
        out, err = capfd.readouterr()
        assert code in (ended, None), out + err
        return out or err

    return type_line
