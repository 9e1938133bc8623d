"""Each block of commands in README.md and docs/ is typed as it stands, here or by a page's test."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from duty import ROWS, Duty
from processes import free_port
from serving import ROOT, eventually
from test_walkthrough_page import Terminal

HERE = (
    "README.md",
    *(f"docs/{name}.md" for name in ("alarms", "querying", "operating", "sandbox", "schedules")),
    "docs/stream.md",
)
ELSEWHERE = ("docs/walkthrough.md", "docs/subscriptions.md", "docs/runbook.md")
BLOCK = re.compile(r"^```sh[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENDLESS = re.compile("receiver listen|--every")


def lines(page: str) -> list[str]:
    found = "".join(BLOCK.findall((ROOT / page).read_text())).splitlines()
    return [line for line in found if not line.startswith("make ")]


def test_each_page_with_commands_is_typed():
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    typed = {str(page.relative_to(ROOT)) for page in pages if BLOCK.search(page.read_text())}
    assert typed == {*HERE, *ELSEWHERE}


@pytest.mark.slow
def test_every_command_does_what_it_is_there_for(tmp_path: Path):
    with ExitStack() as stack:
        duty = Duty(tmp_path, "", stack)
        sandbox = f"127.0.0.1:{free_port()}"
        terminal = Terminal(
            duty,
            {
                "https://hooks.example.com": duty.url,
                "127.0.0.1:8000": f"127.0.0.1:{duty.port}",
                "127.0.0.1:9000": sandbox,
                "localhost:3000": "127.0.0.1:9",
                **{f"{act} 17": f"{act} 1" for act in ("ack", "snooze")},
                "key-1a2b3c4d": "$(receiver keys list gooddata | awk 'NR == 2 { print $1 }')",
            },
        )
        stack.callback(terminal.close)
        for name in ("element-token", "user-secret", "next-key"):
            (terminal.folder / name).write_text(f"{name}-of-sixteen-bytes-or-more")
        (terminal.folder / "contacts.csv").write_bytes(ROWS + b"not-an-address,B\n")
        terminal.type(f"export OPEN_CONNECTORS_URL=http://{sandbox}/elements/api-v2")
        codes = {}
        for line in (line for page in HERE for line in lines(page)):
            command = f"{line.partition('  #')[0]} &" if ENDLESS.search(line) else line
            codes[line] = int(terminal.type(f'{command}\necho " $?"').split()[-1])
            if "signature-key  " in line:
                key = "--signature-key-file signature-key"
                terminal.type(f"receiver sandbox --bind {sandbox} {key} 2> sandbox.log &")
            if "receiver alarms" in line:
                terminal.type("receiver watch --once")
            if "receiver serve" in line:
                eventually(lambda: duty.readiness() == 200, "readiness")
        wrong = {line: code for line, code in codes.items() if code}
        ended = {line for line in codes if re.match("receiver (job |submit contacts)", line)}
        assert wrong == dict.fromkeys(ended, 3), terminal.errors.read_text()
