"""Those who come to a dashboard: people at a browser, and clients in this process."""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders import Receiver
from nodes import DEADLINE, SERVE, eventually
from playwright.sync_api import BrowserContext, Page
from processes import own_environment
from showcase import ENCRYPTION_KEY, Showcase

WIDE = {"width": 1280, "height": 900}
ALARMS = {
    "RECEIVER_ALARM_URL": "https://alarms.example.com/",
    "RECEIVER_ALARM_SECRET": "whsec_" + "A" * 43 + "=",
}
PHONE = {"width": 360, "height": 740}


@dataclass
class Dashboard:
    """A served receiver, tokens for it, and the way to bring more callbacks."""

    url: str
    showcase: Showcase
    operate: str
    read: str


@contextmanager
def served(
    database_url: str,
    folder: Path,
    *,
    port: int = 0,
    inside: Sequence[str] = (),
    **environment: str,
) -> Iterator[str]:
    """Run `receiver serve` on a database; give its URL. inside -- what runs the command."""
    variables = own_environment(
        PYTHONUNBUFFERED="1",
        RECEIVER_DATABASE_URL=database_url,
        RECEIVER_ENCRYPTION_KEYS=ENCRYPTION_KEY,
        **environment,
    )
    log = folder / f"served-{os.urandom(4).hex()}.log"
    command = [*inside, *SERVE, "--bind", f"127.0.0.1:{port}", "--workers", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables, cwd=folder)
    try:
        found = eventually(
            lambda: re.search(r"http://127\.0\.0\.1:([0-9]+)", log.read_text(errors="replace"))
        )
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        process.terminate()
        process.wait(DEADLINE)
    written = log.read_text(errors="replace")
    assert "Traceback" not in written, written


class Visitor:
    """Someone at a browser who notices whatever goes wrong in it."""

    def __init__(self, dashboard: Dashboard, context: BrowserContext) -> None:
        self.dashboard, self.context = dashboard, context
        self.page: Page = context.new_page()
        self.faults: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", self._dialog)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def sign_in(self, token: str | None = None) -> "Visitor":
        self.open("/")
        self.page.get_by_label("Token").fill(token or self.dashboard.operate)
        self.page.get_by_role("button", name="Sign in").click()
        return self

    def open(self, path: str) -> Page:
        self.page.goto(self.dashboard.url + path)
        return self.page

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the screen."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@dataclass
class Guest:
    """A signed-in client in this process, without a browser."""

    receiver: Receiver

    def __post_init__(self) -> None:
        self.client = self.receiver.app.test_client()

    def sign_in(self, token: str | None = None, **fields: str) -> Any:
        return self.post("/sign-in", **{"token": token or self.receiver.token, **fields})

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, buffered=True, **options)

    def post(self, path: str, **fields: str) -> Any:
        """POST a form as a browser does from one of our pages."""
        return self.client.post(path, data=fields, headers={"Sec-Fetch-Site": "same-origin"})
