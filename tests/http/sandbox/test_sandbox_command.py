import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

import receiver
from receiver.cli.demo import sandbox
from receiver.openconnectors.sandbox.faults import Answer, Faults, Options

CALL = "from receiver.cli.demo import sandbox; sandbox()"


@pytest.fixture
def chosen(monkeypatch):
    """The options that `sandbox` was started with, or the text of its refusal."""

    def choose(*arguments: str) -> Options | str:
        served = []
        monkeypatch.setattr("receiver.openconnectors.sandbox.server.serve", served.append)
        result = CliRunner().invoke(sandbox, arguments)
        return served[0] if served else result.output

    return choose


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_listens_until_it_is_told_to_stop(stop):
    arguments = [sys.executable, "-c", CALL, "--bind", "127.0.0.1:0"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=os.environ) as child:
        api = child.stderr.readline().split()[-1]
        headers = {"Authorization": "Element t, User u"}
        assert httpx.get(f"{api}/objects", headers=headers).json()[1] == "contact"
        child.send_signal(stop)
        _, rest = child.communicate(timeout=60)
    assert (child.returncode, rest) == (0, "")


def test_its_defaults_are_those_of_the_interface(chosen):
    assert chosen() == Options(bind=("127.0.0.1", 9000))


def test_every_option_reaches_the_sandbox(chosen):
    assert chosen(
        "--bind=[::1]:0",
        "--first-job=5000",
        "--job-seconds=0",
        "--retry-seconds=0.5",
        "--shape=list",
        "--callback-url=http://127.0.0.1:8000/callbacks/default",
        "--total-counts",
        "--allow-remote",
        *("--faults", '{"slow": 0.5, "answer": {"status": 502, "times": 3}, "html": 1}'),
    ) == Options(
        bind=("::1", 0),
        first_job=5000,
        job_seconds=0,
        retry_seconds=0.5,
        shape="list",
        callback_url="http://127.0.0.1:8000/callbacks/default",
        total_counts=True,
        allow_remote=True,
        faults=Faults(slow=0.5, answer=Answer(502, 3), html=1),
    )


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"k", b"k"),
        (b"k\n", b"k"),
        (b"k\r\n", b"k"),
        (b"k\n\n", b"k\n"),
        (b"k\r", b"k\r"),
        (b" k ", b" k "),
    ],
)
def test_one_final_line_end_of_the_key_is_dropped(chosen, tmp_path, content, secret):
    file = tmp_path / "key"
    file.write_bytes(content)
    assert chosen("--signature-key-file", str(file)).signature_key.secret == secret


def test_the_key_is_in_no_repr(chosen, tmp_path):
    file = tmp_path / "key"
    file.write_bytes(b"top-secret")
    assert "top-secret" not in repr(chosen("--signature-key-file", str(file)))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--bind", "9000", "HOST:PORT"),
        ("--bind", "localhost:x", "HOST:PORT"),
        ("--bind", "localhost:70000", "HOST:PORT"),
        ("--callback-url", "ftp://a", "http or https"),
        ("--job-seconds", "-1", "--job-seconds"),
        ("--shape", "v4", "--shape"),
        ("--faults", '{"answer":{"status":200,"times":1}}', "answer.status"),
        ("--faults", '{"redirect":{"to":"nowhere","times":1}}', "redirect.to"),
        ("--faults", "html", "--faults"),
        ("--faults", '{"nothing":1}', "nothing"),
    ],
)
def test_a_wrong_option_is_named(chosen, option, value, said):
    assert said in chosen(option, value)


def test_an_empty_key_is_refused(chosen, tmp_path):
    file = tmp_path / "key"
    file.write_bytes(b"\n")
    assert "empty" in chosen("--signature-key-file", str(file))


def test_the_help_and_the_page_name_every_fault():
    page = (Path(receiver.__file__).parents[1] / "docs/sandbox.md").read_text()
    shown = CliRunner().invoke(sandbox, ["--help"]).output
    for name in Faults.__struct_fields__:
        assert name in shown
        assert f"`{name}`" in page
