"""`receiver submit`, `download` and `job --failed-rows` against the sandbox, through a receiver."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import run
from fakes import BAD_ROWS, ROWS, Between, between

Command = Callable[..., subprocess.CompletedProcess[str]]


def command_of(relay: Between, folder: Path) -> Command:
    """Run a command that asks the receiver."""
    (folder / "token").write_text(relay.token)
    asking = {"RECEIVER_URL": relay.url, "RECEIVER_TOKEN_FILE": "token", "NO_PROXY": "*"}
    return lambda *words: run(words, folder, {**os.environ, **asking})


@pytest.fixture
def receiver(relay: Between, tmp_path: Path) -> Command:
    return command_of(relay, tmp_path)


TO = ("--object", "contact", "--instance", "gooddata")


@pytest.mark.parametrize("format_", ["csv", "json", "jsonl"])
def test_a_download_is_made_waited_for_and_saved(relay, receiver, tmp_path, format_):
    relay.ended(relay.uploaded())
    done = receiver("download", *TO, "--format", format_, "--output", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "succeeded"
    saved = (tmp_path / "out").read_text()
    first = {"csv": "email,name", "json": '[{"email"', "jsonl": '{"email"'}[format_]
    assert saved.startswith(first)
    assert not (tmp_path / "out.part").exists()


def test_a_download_by_query_goes_to_standard_output_too(relay, receiver):
    relay.ended(relay.uploaded())
    done = receiver("download", *TO, "--query", "select email from contact", "--output", "-")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "email,name")


def test_a_download_into_a_pipe_is_written_there_and_the_pipe_stays(relay, receiver, tmp_path):
    relay.ended(relay.uploaded())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        content = pool.submit(pipe.read_bytes)
        done = receiver("download", *TO, "--output", "pipe")
        assert done.returncode == 0, done.stderr
        assert content.result(60).startswith(b"email,name")
    assert pipe.is_fifo()


def test_a_download_that_takes_too_long_tells_how_to_resume(make_database, tmp_path):
    with between(make_database("sqlite"), job_seconds=3) as relay:
        receiver = command_of(relay, tmp_path)
        first = receiver("download", *TO, "--output", "out", "--wait", "0")
        assert first.returncode == 4
        resume = first.stderr.strip().rpartition("resume with: receiver ")[2].split()
        job = resume[resume.index("--job") + 1]
        relay.ended(job)
        second = receiver(*resume, "--wait", "30")
        assert second.returncode == 0, second.stderr
        assert (tmp_path / "out").exists()


def test_a_failed_download_saves_nothing(relay, receiver, tmp_path):
    relay.faults(final_status="ERROR")
    assert receiver("download", *TO, "--output", "out").returncode == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", ["v3", "list"])
def test_what_the_vendor_answers_an_upload_is_read_in_any_shape(make_database, tmp_path, shape):
    with between(make_database("sqlite"), shape=shape) as relay:
        (tmp_path / "a.csv").write_bytes(ROWS)
        done = command_of(relay, tmp_path)("submit", "a.csv", *TO, "--wait", "30")
        assert done.returncode == 0, done.stderr


def test_a_pipe_and_an_odd_name_can_be_submitted(relay, receiver, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff.csv")
    odd.write_bytes(ROWS)
    done = receiver("submit", os.fsdecode(b"\xff.csv"), *TO, "--wait", "30", "--json")
    assert done.returncode == 0, done.stderr
    given = ("submit", "/dev/stdin", *TO, "--wait", "30")
    asking = {"RECEIVER_URL": relay.url, "RECEIVER_TOKEN_FILE": "token", "NO_PROXY": "*"}
    piped = subprocess.run(
        [sys.executable, "-m", "receiver", *given],
        input=ROWS,
        env={**os.environ, **asking},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert piped.returncode == 0, piped.stderr


def test_failed_rows_come_out_of_a_semicolon_file_as_they_went_in(relay, receiver, tmp_path):
    rows = BAD_ROWS.replace(b",", b";")
    (tmp_path / "a.csv").write_bytes(b"sep=;\r\n" + rows)
    done = receiver("submit", "a.csv", *TO, "--wait", "30", "--json")
    assert done.returncode == 3, done.stderr
    relay.reconciler().fetch_errors()
    job = json.loads(done.stdout)["id"]
    words = ("job", job, "--instance", "gooddata", "--failed-rows", "out", "--upload", "a.csv")
    assert receiver(*words).returncode == 3
    assert (tmp_path / "out").read_bytes() == b"sep=;\r\nemail;name\nnot-an-address;C\n;D\n"
