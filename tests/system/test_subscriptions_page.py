"""docs/subscriptions.md: its blocks are typed as they stand, and its endpoint verifies."""

import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from duty import Duty
from processes import free_port
from serving import ROOT, eventually
from test_walkthrough_page import Terminal

PAGE = (ROOT / "docs" / "subscriptions.md").read_text()


def blocks() -> dict[str, str]:
    return dict(re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.slow
def test_a_new_user_has_a_verified_outcome_at_their_endpoint(tmp_path: Path):
    with ExitStack() as stack:
        duty = Duty(tmp_path, "", stack)
        ports = {8000: duty.port, 9000: free_port(), 9100: free_port()}
        places = {f"127.0.0.1:{page}": f"127.0.0.1:{real}" for page, real in ports.items()}
        terminal = Terminal(duty, {**places, "python3": sys.executable})
        stack.callback(terminal.close)
        endpoint = blocks()["python"].replace("9100", str(ports[9100]))
        (terminal.folder / "endpoint.py").write_text(endpoint)
        terminal.type(blocks()["sh"])
        outcomes = terminal.folder / "outcomes"
        assert eventually(outcomes.read_text, "an outcome") == blocks()["text"]
        assert "delivered" in terminal.type("receiver deliveries")


def test_ten_commands_are_enough():
    lines = blocks()["sh"].replace("\\\n", "").splitlines()
    assert len([line for line in lines if not line.startswith("export ")]) <= 10
