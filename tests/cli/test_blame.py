"""A command names what is at fault: our token, the vendor's credentials, a file, a signature."""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import KEY, bulk
from fakes import BAD_ROWS, Between, between
from nodes import eventually
from sqlalchemy import update

from receiver.cli.commands import run
from receiver.database import engine
from receiver.database.engine import Database
from receiver.database.models import Instance, Pace
from receiver.openconnectors.signatures import SignatureKey

Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    with between(f"sqlite:///{tmp_path_factory.mktemp('relay')}/receiver.db") as made:
        yield made


@pytest.fixture
def command(relay: Between, monkeypatch, capfd, tmp_path: Path) -> Command:
    (tmp_path / "token").write_text(relay.token)
    (tmp_path / "wrong").write_text("not the right one")
    (tmp_path / "rows.csv").write_bytes(BAD_ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECEIVER_URL", relay.url)

    def run_line(line: str, token: str = "token", *, errors: bool = True) -> tuple[int, str]:
        monkeypatch.setenv("RECEIVER_TOKEN_FILE", token)
        capfd.readouterr()
        code = run(line.split())
        out, err = capfd.readouterr()
        return code, out if code in (0, 1, 3) or not errors else err.splitlines()[-1]

    return run_line


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("line", ["objects", "submit rows.csv --object contact"])
def test_the_vendors_credentials_are_not_taken_for_our_token(line, status, command, relay):
    relay.faults(answer={"status": status, "times": 1})
    code, said = command(f"{line} --instance gooddata")
    assert (code, said.partition(":")[0]) == (6, "receiver")
    assert said.startswith(f"receiver: the vendor answered {status}: ")
    relay.faults()
    code, said = command(f"{line} --instance gooddata", "wrong")
    assert (code, said.startswith("receiver: A valid token is needed")) == (5, True)


def test_a_search_that_takes_too_long_says_which_option_narrows_it(command, relay, monkeypatch):
    monkeypatch.setattr(engine, "READ_SECONDS", -1)
    monkeypatch.setattr(engine, "_PROGRESS_STEPS", 1)
    database = relay.services.database
    hurried = Database(relay.services.settings.database_url)
    monkeypatch.setattr(database, "snapshot", hurried.snapshot)
    code, said = command("jobs --file x")
    assert said == (
        "receiver: This question takes too long: narrow it by another filter, or by a time:"
        " updated_after, or of events received_after"
    )
    assert code == 6
    monkeypatch.undo()
    hurried.close()


def test_an_upload_without_our_public_url_says_what_to_set(command, relay, tmp_path, monkeypatch):
    with between(f"sqlite:///{tmp_path}/other.db", public_url=None) as bare:
        (tmp_path / "bare").write_text(bare.token)
        monkeypatch.setenv("RECEIVER_URL", bare.url)
        code, said = command("submit rows.csv --object contact --instance gooddata", "bare")
    assert (code, "RECEIVER_PUBLIC_URL is not set" in said) == (2, True)


def test_rejections_say_why(command, relay):
    hex_digest = "sha256=" + "0" * 64
    relay.client.post(
        "/callbacks/gooddata", data=bulk(), headers={"Elements-Webhook-Signature": hex_digest}
    )
    relay.call_back(bulk(), "gooddata", SignatureKey("bom", b"\xef\xbb\xbf" + KEY.secret))
    eventually(lambda: "byte order mark" in command("rejections")[1])
    said = command("rejections")[1]
    assert "The digest is written in hex; the vendor writes base64" in said
    assert "with a byte order mark before this key" in said


def test_a_vendor_that_takes_no_more_requests_now_is_named_and_until_when(command, relay):
    relay.faults(answer={"status": 429, "times": 1, "retry_after": "77"})
    code, said = command("submit rows.csv --object contact --instance gooddata")
    assert (code, said.partition(":")[0]) == (6, "receiver")
    assert said.startswith("receiver: the vendor answered 429: ")
    assert said.endswith("; try again in 77 s")


def test_a_file_that_cannot_be_read_to_its_end_is_named(command):
    code, said = command("submit /proc/self/mem --object contact --instance gooddata")
    assert (code, said) == (2, "receiver: /proc/self/mem: Input/output error")


def test_a_file_that_cannot_be_written_is_named(command, relay):
    job = relay.uploaded(BAD_ROWS)
    relay.ended(job)
    relay.reconciler().one_pass()  # which fetches the failed records
    line = f"job {job} --instance gooddata --errors --upload rows.csv --failed-rows"
    assert command(f"{line} /dev/full") == (2, "receiver: /dev/full: No space left on device")
    assert Path("/dev/full").is_char_device()
    assert command(f"{line} nodir/x") == (2, "receiver: nodir/x: No such file or directory")


def test_failed_rows_are_sent_again_once_unless_it_is_said_and_leave_a_trace(command, relay):
    job = relay.uploaded(BAD_ROWS)
    relay.ended(job)
    relay.reconciler().one_pass()
    errors = f"job {job} --instance gooddata --errors --json"
    assert json.loads(command(errors)[1])["retries"] == []
    retry = f"submit --instance gooddata --json --upload rows.csv --retry-failed {job}"
    ids = [json.loads(command(retry)[1])["id"]]
    assert relay.ended(ids[0])["file"] == f"/retry-of-{job}/rows.csv"
    # That loaded none, so that one more doubles nothing.
    Path("rows.csv").write_bytes(BAD_ROWS.replace(b"\n,D", b"\nd@x.de,D"))
    ids.append(json.loads(command(retry)[1])["id"])
    before = relay.asked("POST /bulk/{objectName}")
    for outcome in ("pending", "partial"):
        if outcome == "partial":
            assert relay.ended(ids[1])["records"]["loaded"] == 1
        code, said = command(retry.replace("--json ", ""))
        assert (code, f"sent again already, as job {ids[1]} (" in said, "--again" in said) == (
            2,
            True,
            True,
        )
    assert relay.asked("POST /bulk/{objectName}") == before
    ids.append(json.loads(command(f"{retry} --again")[1])["id"])
    relay.ended(ids[2])
    assert sorted(json.loads(command(errors)[1])["retries"]) == sorted(ids)
    assert f"sent again as job {ids[2]}\n" in command(errors.replace(" --json", ""))[1]


def test_of_a_job_without_failed_records_nothing_else_is_said(command, relay, tmp_path):
    (tmp_path / "good.csv").write_text("email\na@example.com\n")
    code, said = command("submit good.csv --object contact --instance gooddata --wait 30 --json")
    assert code == 0
    assert command(f"job {json.loads(said)['id']} --errors")[1].endswith("\n\nno record failed\n")


def test_a_file_of_failed_rows_is_replaced_only_if_it_is_said(command, relay):
    job = relay.uploaded(BAD_ROWS)
    relay.ended(job)
    relay.reconciler().one_pass()
    line = f"job {job} --instance gooddata --upload rows.csv --failed-rows out.csv"
    assert command(line)[0] == 3
    rows = Path("out.csv").read_bytes()
    Path("out.csv").write_text("corrected by hand")
    assert command(line) == (
        2,
        "receiver: --failed-rows out.csv: the file is there already; --force replaces it",
    )
    assert Path("out.csv").read_text() == "corrected by hand"
    assert command(f"{line} --force")[0] == 3
    assert Path("out.csv").read_bytes() == rows
    Path("out.csv").write_bytes(b"")  # as `mktemp` leaves it
    assert command(line)[0] == 3
    assert Path("out.csv").read_bytes() == rows


def test_what_failed_twice_is_sent_a_third_time_as_the_message_says(command, relay):
    first = relay.uploaded(BAD_ROWS)
    relay.ended(first)
    relay.reconciler().one_pass()
    retry = "submit --instance gooddata --json --retry-failed"
    code, said = command(f"{retry} {first} --upload rows.csv")
    assert code == 0
    second = json.loads(said)["id"]
    relay.ended(second)
    relay.reconciler().one_pass()
    code, said = command(f"{retry.replace('--json ', '')} {second} --upload rows.csv")
    assert (code, "name the file that was uploaded. If the job was itself" in said) == (2, True)
    advice = re.search("`receiver (.*?)` writes it, then (.*)", said)
    command(advice[1].replace("FIRST", first) + " --instance gooddata --errors")
    assert command(f"{retry} {second} {advice[2]}")[0] == 0


def test_a_download_takes_no_device_or_link_away(command, relay, tmp_path):
    line = "download --object contact --instance gooddata --output"
    (tmp_path / "link").symlink_to("target")
    assert command(f"{line} link")[0] == 0
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "target").is_file()) == (True, True)
    os.mkfifo(tmp_path / "device")
    reader = threading.Thread(target=(tmp_path / "device").read_bytes)
    reader.start()
    assert command(f"{line} device")[0] == 0
    reader.join()
    assert (tmp_path / "device").is_fifo()


def test_reconcile_says_why_an_instance_was_not_asked_and_what_to_do(command, relay, monkeypatch):
    settings = relay.services.settings
    monkeypatch.setenv("RECEIVER_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("RECEIVER_ENCRYPTION_KEYS", *settings.encryption_keys)
    monkeypatch.setenv("OPEN_CONNECTORS_URL", settings.vendor_url)
    monkeypatch.setenv("OPEN_CONNECTORS_RATE", "1000")
    relay.call_back(bulk("9001", status="RUNNING"), "freshbooks")
    relay.faults(answer={"status": 401, "times": 9})
    for _ in range(2):  # the second time nobody asks, and the reason is the same
        code, said = command("reconcile --all", errors=False)
        assert code == 6
        assert re.search(
            "freshbooks: the vendor answered 401: .*not asked again for this instance before 20",
            said,
        )
    relay.faults()
    monkeypatch.setenv("OPEN_CONNECTORS_URL", "http://127.0.0.1:1/elements/api-v2")
    change = update(Pace).values(blocked_until=0)
    with relay.services.database.write() as session:
        session.execute(change)
    said = command("reconcile --all", errors=False)[1]
    cause = "freshbooks: the vendor cannot be reached: connection refused"
    assert f"{cause}; not asked again for this inst" in said
    for secret, expected in (
        (b"garbage", "freshbooks: a secret was encrypted with a key that is not in RECEIVER_"),
        (None, "not asked: freshbooks: jobs to ask for: 1; no vendor secrets; `receiver instance"),
    ):
        change = update(Instance).where(Instance.name == "freshbooks").values(user_secret=secret)
        with relay.services.database.write() as session:
            session.execute(change)
        assert expected in command("reconcile --all", errors=False)[1]
