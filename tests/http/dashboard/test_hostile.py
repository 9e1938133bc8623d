"""Whatever strangers and vendors send is shown as text: nothing runs, and the layout holds."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from showcase import Showcase
from visiting import PHONE, WIDE, Dashboard, served

from receiver.alarms import watcher as alarms
from receiver.instances import tokens
from receiver.jobs.failed_records import replace_failed_records
from receiver.reconcile import claims
from receiver.reconcile.claims import Claim
from receiver.reconcile.submissions import begin_submission, end_submission
from receiver.web.dashboard.formatting import shown

pytestmark = pytest.mark.slow

BIDI = "\u202e\u2066\u200f\u061c\u2028"
HOSTILE = (
    "<script>window.ran = 1</script>",
    "\"'><img src=x onerror='window.ran = 1'><svg onload=window.ran=1>",
    "javascript:window.ran=1//",
    "{{ 7 * 7 }}{% raw %}</textarea></title></script><script>window.ran = 1</script>",
    "</code></pre></bdi><style>body{display:none}</style><base href=//evil.example>",
    f"a{BIDI}b{BIDI}" * 20,
    "W" * 10_000,
    "\N{GRINNING FACE}" * 3_000 + "\0\x1b[31m\x07",
)
DONE = {"status": "COMPLETED", "recordsCount": 2**62, "recordsFailedCount": 2**62}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A receiver in which every field that can hold text holds hostile text."""
    folder = tmp_path_factory.mktemp("hostile")
    url = f"sqlite:///{folder / 'receiver.db'}"
    showcase = Showcase(url, 1_790_000_000_000)
    with showcase.services.database.write() as session:
        showcase.add_instance(session, "gooddata")
        showcase.add_instance(session, "i" * 64, hub=HOSTILE[1])
        token = tokens.create_token(session, HOSTILE[1][:100], "operate", 1)
    for number, text in enumerate(HOSTILE):
        _tell(showcase, str(1000 + number), text.replace("\0", ""))
    _tell(showcase, "9" * 200, HOSTILE[0])
    with showcase.services.database.write() as session:
        for number, text in enumerate(HOSTILE):
            row = alarms.make_alarm(("failed", text[:32])[number % 2], text[:64], number, text)
            row.examples, row.count = json.dumps([text, "9" * 200]), 2**62
            row.cleared_at = (None, number)[number % 3 == 0]
            session.add(row)
    with served(url, folder) as address:
        yield Dashboard(address, showcase, token, token)
    showcase.close()


def _tell(showcase: Showcase, job: str, text: str) -> None:
    for status in ("RUNNING", text, "COMPLETED"):
        told = {
            **DONE,
            "id": job,
            "status": status,
            "objectName": text,
            "jobDirection": text,
            "error": text,
            "callback-payload": {text: [text, {"deep": text}]},
        }
        if status == text:
            told["status"] = text[:1000]
        for instance in ("gooddata", "i" * 64):
            showcase.call(showcase.now, instance, told, **{"Elements-Webhook-Id": _header(text)})
    showcase.call(showcase.now, "gooddata", json.dumps(told).encode(), _header(text))
    with showcase.services.database.write() as session:
        claims.end_errors(session, Claim("gooddata", job, -1))
        records = [(json.dumps({text: text}), text)] * 3
        replace_failed_records(session, "gooddata", job, records)
        values = {"instance": "gooddata", "at": 1, "object": text, "file": text, "submitted": 1}
        submission = begin_submission(session, {**values, "submitted_by": text})
        end_submission(session, submission, "unclear")


def _header(text: str) -> str:
    return (
        text.encode("ascii", "replace")
        .decode()[:3000]
        .replace("\n", " ")
        .replace("\x1b", "")
        .replace("\x07", "")
    )


def pages(dashboard: Dashboard) -> list[str]:
    jobs = [*(str(1000 + number) for number in range(len(HOSTILE))), "9" * 200]
    with dashboard.showcase.services.database.read() as session:
        run = session.connection().exec_driver_sql
        events = [f"{row[0]:016x}" for row in run("SELECT min(n) FROM events GROUP BY job")]
        rejections = [row[0] for row in run("SELECT id FROM rejections")]
    return [
        "/",
        "/jobs",
        "/jobs?limit=1000&object=" + "W" * 500,
        "/jobs?q=%3Cscript%3Ewindow.ran%3D1%3C/script%3E&status=%22%3E%3Csvg+onload%3Dwindow.ran%3D1%3E",
        "/events",
        "/alarms",
        "/rejections",
        "/instances",
        "/instances/" + "i" * 64,
        "/instances/gooddata/keys/add",
        *(f"/jobs/{job}?instance=gooddata" for job in jobs),
        *(f"/jobs/{job}" for job in jobs[-1:]),
        *(f"/jobs/{job}/errors?instance=gooddata" for job in jobs),
        *(f"/jobs/{job}/ask?instance=gooddata" for job in jobs[-1:]),
        *(f"/events/{event}" for event in events),
        *(f"/rejections/{rejection}" for rejection in rejections),
    ]


def test_nothing_runs_and_the_layout_holds(hostile, visit):
    visitor = visit(hostile).sign_in()
    for path in pages(hostile):
        page = visitor.open(path)
        visitor.faults[:] = [fault for fault in visitor.faults if "status of 4" not in fault]
        assert visitor.faults == [], path
        assert page.evaluate("window.ran") is None, path
        for screen in (PHONE, WIDE):
            page.set_viewport_size(screen)
            assert visitor.overflow <= 0, (path, screen)
            assert page.locator("main h1").is_visible(), (path, screen)
        assert page.locator("script:not([src]), style, base, iframe, object, embed").count() == 0
        odd = page.evaluate(
            "[...document.querySelectorAll('[href], [src], [action]')]"
            ".map(e => e.getAttribute('href') || e.getAttribute('src') || e.getAttribute('action'))"
            ".filter(u => !/^(\\/|#)[^\\/]*/.test(u) || u.startsWith('//'))"
        )
        assert odd == [], path


def test_what_turns_or_hides_text_is_shown_and_turns_nothing(hostile, visit):
    page = visit(hostile).sign_in().open("/jobs/1005?instance=gooddata")
    text = page.locator("body").inner_text()
    assert not re.search(f"[{BIDI}]", text)
    assert "U+202E" in text


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "\N{TAG SPACE}", "\x85"])
def test_text_is_cut_and_holds_nothing_unseen(text):
    assert len(shown(text, 50)) <= 50 * 9 + 1
    assert shown(text, 50).isprintable()


def test_no_template_turns_escaping_off():
    templates = Path(__file__).parents[3] / "receiver/web/dashboard/templates"
    found = [
        (each.name, line.strip())
        for each in sorted(templates.glob("*.html"))
        for line in each.read_text().splitlines()
        if re.search(r"\|\s*safe|autoescape|Markup", line)
    ]
    assert found == []
