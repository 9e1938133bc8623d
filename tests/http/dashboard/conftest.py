"""A served receiver with two weeks behind it, and a browser: Debian's Chromium."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import Receiver
from nodes import DEADLINE
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from showcase import Showcase
from visiting import WIDE, Dashboard, Guest, Visitor, served

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Path:
    """Debian's Chromium; installed by apt where we may, else the tests that need it say so."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of the test processes installs it
        if not CHROMIUM.exists() and os.geteuid() == 0:
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
                command = ["apt-get", "-qq", *words]
                subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    if not CHROMIUM.exists():
        missing = "Debian's chromium is not installed: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return CHROMIUM


@pytest.fixture(scope="session")
def browser(chromium: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=DEADLINE * 1000)
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def showcase(tmp_path_factory: pytest.TempPathFactory) -> tuple[Showcase, dict[str, str]]:
    """What an operator finds in the morning, and their tokens: a file that each test copies."""
    folder = tmp_path_factory.mktemp("showcase")
    made = Showcase(f"sqlite:///{folder / 'receiver.db'}", time.time_ns() // 1_000_000)
    tokens = made.tell()
    made.close()
    return made, tokens


@pytest.fixture(scope="session")
def dashboard(showcase: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A receiver with all that; tests that change it make their own."""
    yield from _copied(*showcase, tmp_path_factory.mktemp("dashboard"))


@pytest.fixture
def own_dashboard(showcase: Any, tmp_path: Path) -> Iterator[Dashboard]:
    """The same for one test alone, which may change it."""
    yield from _copied(*showcase, tmp_path)


def _copied(made: Showcase, tokens: dict[str, str], folder: Path) -> Iterator[Dashboard]:
    file = folder / "receiver.db"
    shutil.copy(made.database_url.removeprefix("sqlite:///"), file)
    showcase = replace(made, database_url=f"sqlite:///{file}")
    showcase.keys, showcase.story = made.keys, made.story
    with served(showcase.database_url, folder) as address:
        yield Dashboard(address, showcase, **tokens)
    showcase.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Bring someone to a dashboard; at the end, nothing may have gone wrong in their browser."""
    contexts: list[BrowserContext] = []
    visitors: list[Visitor] = []

    def come(dashboard: Dashboard, **options: Any) -> Visitor:
        context = browser.new_context(**{"viewport": WIDE, **options})
        context.set_default_timeout(DEADLINE * 1000)
        contexts.append(context)
        visitors.append(Visitor(dashboard, context))
        return visitors[-1]

    yield come
    faults = [fault for visitor in visitors for fault in visitor.faults]
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def guest(receiver: Receiver) -> Guest:
    """A signed-in client of a receiver on SQLite."""
    guest = Guest(receiver)
    assert guest.sign_in().status_code == 303
    return guest
