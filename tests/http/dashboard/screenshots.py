"""`make screenshots`: the main pages, light and dark, wide and narrow, into docs/screenshots/.

What they show was made through the receiver and the vendor's stand-in, as `showcase.py` tells.
Needs Debian's chromium; with Debian's pngquant, the files are a third of the size.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from conftest import ARGUMENTS, CHROMIUM  # noqa: E402 - after the path
from playwright.sync_api import Browser, sync_playwright  # noqa: E402
from showcase import Showcase  # noqa: E402
from visiting import ALARMS, PHONE, WIDE, Dashboard, eventually, served  # noqa: E402

from receiver.openconnectors.sandbox.faults import Options  # noqa: E402
from receiver.openconnectors.sandbox.server import running  # noqa: E402

FOLDER = Path(__file__).parents[3] / "docs/screenshots"
CONTACTS = "email,first_name,last_name\n"
GOOD = "".join(f"p{number}@example.com,Pat,Example {number}\n" for number in range(250))
BAD = "not-an-address,Mal,Formed\n,No,Address\np1@example.com,Pat,Again\n"


def main() -> None:
    """Make them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory() as folder,
        made(Path(folder)) as dashboard,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for scheme in ("light", "dark"):
            for screen in (WIDE, PHONE):
                take(browser, dashboard, scheme, screen)
        browser.close()
    if shutil.which("pngquant"):
        files = map(str, sorted(FOLDER.glob("*.png")))
        subprocess.run(["pngquant", "--force", "--ext", ".png", "--strip", *files], check=True)
    total = sum(file.stat().st_size for file in FOLDER.glob("*.png"))
    sys.stdout.write(f"{FOLDER}: {total // 1024} KiB\n")


@contextmanager
def made(folder: Path) -> Iterator[Dashboard]:
    """A receiver with two weeks behind it, and two uploads of just now."""
    url = f"sqlite:///{folder / 'receiver.db'}"
    showcase = Showcase(url, time.time_ns() // 1_000_000)
    tokens = showcase.tell()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = Options(signature_key=showcase.keys["gooddata"], job_seconds=0)
    with running(options) as sandbox:
        own = {
            "RECEIVER_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "OPEN_CONNECTORS_URL": sandbox.api,
        }
        with served(url, folder, port=port, **own) as address:
            for rows in (GOOD, GOOD + BAD):
                upload(address, tokens["operate"], (CONTACTS + rows).encode())
            eventually(lambda: ended(address, tokens["read"]))
    public = {"RECEIVER_PUBLIC_URL": "https://hooks.example.com"}
    with served(url, folder, **public, **ALARMS) as address:
        yield Dashboard(address, showcase, **tokens)
    showcase.close()


def ended(address: str, token: str) -> bool:
    """Whether the newest two jobs have ended, by a callback."""
    headers = {"Authorization": f"Bearer {token}"}
    found = httpx.get(f"{address}/api/v1/jobs?limit=2", headers=headers).json()["jobs"]
    return all(job["learnt_by"] == "callback" for job in found)


def upload(address: str, token: str, content: bytes) -> None:
    """Upload a file through the receiver."""
    answer = httpx.post(
        f"{address}/elements/api-v2/hubs/marketing/bulk/contact?path=/contacts.csv",
        headers={"Authorization": f"Element gooddata, User {token}"},
        files={"file": ("contacts.csv", content, "text/csv")},
    )
    answer.raise_for_status()


def take(browser: Browser, dashboard: Dashboard, scheme: str, screen: dict[str, int]) -> None:
    """Take the pages on one screen."""
    context = browser.new_context(color_scheme=scheme, viewport=screen, locale="en-GB")
    page = context.new_page()
    page.goto(dashboard.url)
    page.get_by_label("Token").fill(dashboard.operate)
    page.get_by_role("button", name="Sign in").click()
    width = "wide" if screen == WIDE else "narrow"
    for name, path in {
        "overview": "/?period=30d",
        "jobs": "/jobs",
        "job": f"/jobs/{dashboard.showcase.story}",
        "alarms": "/alarms",
        "rejected": "/rejections",
        "instance": "/instances/hubspot-eu",
        "subscriptions": "/subscriptions",
    }.items():
        page.goto(dashboard.url + path)
        file = FOLDER / f"{name}-{scheme}-{width}.png"
        page.screenshot(path=file, full_page=name in ("overview", "job", "instance"))
    context.close()


if __name__ == "__main__":
    main()
