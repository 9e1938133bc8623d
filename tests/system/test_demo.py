"""`receiver demo` prints what the README shows of it, and leaves nothing running."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import takewhile

import httpx
import pytest
from pages import pattern
from processes import own_environment
from serving import DEADLINE, ROOT, eventually

DEMO = (sys.executable, "-m", "receiver", "demo")
SHOWN = re.search(
    r"^```text\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)[1]


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path):
    done = subprocess.run(
        DEMO, env=own_environment(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(pattern(SHOWN), done.stdout), done.stdout
    assert len(done.stdout.splitlines()) < 60


@pytest.mark.slow
def test_what_is_left_running_can_be_signed_in_to_and_ends_at_an_interrupt(tmp_path):
    command = [*DEMO, "--keep"]
    environment = own_environment(PYTHONUNBUFFERED="1")
    with subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            last = "Both servers run until Ctrl-C.\n"
            printed = "".join(takewhile(lambda line: line != last, process.stdout))
            url = re.search(r"^Dashboard: +(\S+)$", printed, re.MULTILINE)[1]
            token = re.search(r"^Token: +(\S+)$", printed, re.MULTILINE)[1]
            with httpx.Client(base_url=url, trust_env=False, follow_redirects=True) as browser:
                assert "freshbooks" in browser.post("/sign-in", data={"token": token}).text
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(DEADLINE) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def is_gone() -> bool:
        try:
            httpx.get(url, trust_env=False)
        except httpx.TransportError:
            return True
        return False

    eventually(is_gone, "the end of the receiver")
