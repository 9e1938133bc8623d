"""The command line from outside: exit codes, what is printed, and what never is."""

import base64
import hmac
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import commands
import httpx
import pytest
from answering import answering, read_body, reply
from cryptography.fernet import Fernet
from nodes import DEADLINE, eventually
from processes import free_port

from receiver.instances.encryption import SecretBox

COMMAND = Path(sys.executable).with_name("receiver")
SECRET = "a key with späces, and long enough "  # the blank at its end counts
BODY = b'{"id": 1, "status": "COMPLETED"}\n'


def digest(body: bytes = BODY, secret: bytes = SECRET.encode(), name: str = "sha256") -> bytes:
    return hmac.digest(secret, body, name)


def signature(body: bytes, secret: bytes = SECRET.encode()) -> str:
    return f"sha256={base64.b64encode(digest(body, secret)).decode()}"


@dataclass
class Command:
    """`receiver` in a folder and an environment of its own."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *words: str, given: str | None = None, **environment: str):
        return commands.run(words, self.folder, {**self.environment, **environment}, given)

    def file(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return name


def together(command: Command, runs: dict, **environment: str) -> dict:
    """Run commands at the same time; they are known by the keys of runs."""
    with ThreadPoolExecutor(4) as pool:
        asked = {key: pool.submit(command, *words, **environment) for key, words in runs.items()}
    return {key: run.result() for key, run in asked.items()}


def made(folder: Path, **environment: str) -> Command:
    tree = str(Path(__file__).parents[2])  # whatever is installed
    inherited = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": tree}
    url = {"RECEIVER_DATABASE_URL": f"sqlite:///{folder}/receiver.db"}
    return Command(folder, {**inherited, **url, **environment})


@pytest.fixture
def offline(tmp_path) -> Command:
    """Nothing runs; each test has its own database."""
    return made(tmp_path, RECEIVER_ENCRYPTION_KEYS=Fernet.generate_key().decode())


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Command]:
    """A receiver that runs, and a command line that knows it."""
    url = f"http://127.0.0.1:{free_port()}"
    command = made(
        tmp_path_factory.mktemp("served"),
        EVENT_NOTIFICATION_SIGNATURE_KEY=SECRET,
        RECEIVER_ENCRYPTION_KEYS=Fernet.generate_key().decode(),
        RECEIVER_URL=url,
        RECEIVER_TOKEN_FILE="token",
    )
    serve = [COMMAND, "serve", "--bind", url.removeprefix("http://")]
    with (command.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            serve, cwd=command.folder, env=command.environment, stdout=log, stderr=log
        )
    try:
        eventually(lambda: is_ready(url), "readiness")
        token = command("tokens", "create", "test", "--scope", "read")
        command.file("token", token.stdout.encode())
        yield command
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0
    log = (command.folder / "log").read_text()
    assert not [secret for secret in (SECRET, token.stdout.strip()) if secret in log]


def is_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz").status_code == 200
    return False


def call_back(command: Command, instance: str = "default", secret: str = SECRET, **body) -> int:
    raw = json.dumps(body).encode()
    url = f"{command.environment['RECEIVER_URL']}/callbacks/{instance}"
    headers = {"Elements-Webhook-Signature": signature(raw, secret.encode())}
    return httpx.post(url, content=raw, headers=headers).status_code


# Jobs

EXITS = {
    "COMPLETED": ({}, 0),
    "ERROR": ({}, 1),
    "CANCELED": ({}, 1),
    "COMPLETE": ({"recordsCount": 2, "recordsFailedCount": 1}, 3),
    "RUNNING": ({}, 4),
}


def test_the_exit_code_is_the_jobs(served):
    for status, (details, _) in EXITS.items():
        assert call_back(served, id=status, status=status, **details) == 200
    found = together(served, {status: ["job", status, "--json"] for status in EXITS})
    codes = {status: code for status, (_, code) in EXITS.items()}
    assert {status: answer.returncode for status, answer in found.items()} == codes
    assert {json.loads(answer.stdout)["id"] for answer in found.values()} == set(codes)
    plain = served("job", "ERROR")
    assert (plain.returncode, "ERROR" in plain.stdout) == (1, True)


def test_a_wait_that_is_over_tells_how_to_go_on(served):
    assert call_back(served, id="slow", status="RUNNING") == 200
    answer = served("job", "slow", "--wait", "1", "--json")
    assert (answer.returncode, json.loads(answer.stdout)["outcome"]) == (4, "pending")
    assert "receiver job slow" in answer.stderr


def test_a_wait_ends_with_the_job(served):
    words = [COMMAND, "job", "awaited", "--wait", "60", "--json"]
    environment = served.environment
    with subprocess.Popen(
        words, cwd=served.folder, env=environment, stdout=subprocess.PIPE
    ) as process:
        assert call_back(served, id="awaited", status="ERROR") == 200
        out, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, json.loads(out)["outcome"]) == (1, "failed")


def test_control_characters_never_reach_the_terminal(served):
    evil = "\x1b\x07\x9b\u202e\r\n\t\x7f"
    details = {"error": evil, "objectName": f"a{evil}b", "path": evil}
    assert call_back(served, id="evil", status=f"ER{evil}ROR", **details) == 200
    for words in (["jobs"], ["job", "evil", "--timeline"]):
        shown = served(*words).stdout.replace("\n", "")
        assert [character for character in evil if character in shown] == []


def test_listings_are_tables_or_json(served):
    for id_ in ("listed", "listed-too"):
        assert call_back(served, id=id_, status="RUNNING") == 200
    assert call_back(served, secret="another key", id="x", status="RUNNING") == 401
    eventually(lambda: json.loads(served("rejections", "--json").stdout)["rejections"])
    rooms = ("jobs", "events", "rejections")
    tables = together(served, {room: [room] for room in rooms})
    assert {table.stdout.split()[0] for table in tables.values()} == {"ID"}
    found = together(served, {room: [room, "--json"] for room in rooms})
    assert all(json.loads(answer.stdout)[room] for room, answer in found.items())
    page = json.loads(served("jobs", "--limit", "1", "--json").stdout)
    assert (len(page["jobs"]), bool(page["next"])) == (1, True)


# When something is wrong


def test_events_are_searched_for_a_text_and_a_time(served):
    assert call_back(served, id="needle", status="RUNNING") == 200
    found = {"--body needle": 1, "--header elements-webhook": 1, "--file needle": 0}
    found |= {"--received-before 2026-01-31T00:00Z": 0}
    runs = {words: ("events", "--job=needle", *words.split(), "--json") for words in found}
    answers = {words: json.loads(run.stdout) for words, run in together(served, runs).items()}
    assert {words: len(answer["events"]) for words, answer in answers.items()} == found


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """No receiver: it answers with the status and the body that the path names."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        read_body(request)
        _, status, body, *_ = request.path.split("/")
        reply(request, int(status), body.encode())

    with answering(answer) as url:
        yield url


def test_an_answer_of_something_else_is_never_a_failed_job(served, stranger):
    asked = ["jobs /200/<html>", "jobs /404/", "job /200/{}", "job /302/", "trigger /200/[]"]
    runs = {line: line.split() for line in asked}
    runs = {
        line: [command, *["x"][: command == "job"], "--url", stranger + path]
        for line, (command, path) in runs.items()
    }
    codes = {line: answer.returncode for line, answer in together(served, runs).items()}
    assert {line: code for line, code in codes.items() if code not in {2, 6}} == {}


def test_a_wait_says_at_once_that_there_is_no_such_job_and_ctrl_c_ends_it(served):
    program = (
        "import signal; from receiver.cli import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a background job ignores it
        "main()"
    )
    words = [sys.executable, "-c", program, "job", "typo", "--wait", "600"]
    pipes = {"stderr": subprocess.PIPE, "cwd": served.folder, "env": served.environment}
    with subprocess.Popen(words, text=True, **pipes) as process:
        assert process.stderr.readline() == "no job typo yet; waiting\n"
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=DEADLINE)
    assert (process.returncode, rest.strip()) == (130, "receiver: interrupted")


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_said_and_one_that_is_closed_is_not(served):
    def run(redirected: str) -> tuple[int, str]:
        line = f"{COMMAND} -h {redirected}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    full = "receiver: cannot write the output: No space left on device\n"
    assert run("> /dev/full") == (74, full)
    assert run("| true; exit ${PIPESTATUS[0]}") in {(0, ""), (141, "")}
    assert run(">&-") == (0, "")
    assert run("2>&-") == (0, "")  # and not 1, as of a job that failed
    assert run(">&- 2>&-") == (0, "")


# Keys, tokens, instances


def test_a_running_receiver_sees_keys_at_its_next_request(served):
    assert call_back(served, "rotated", "first key, long enough", id="1", status="X") == 401
    first = served.file("first", b"first key, long enough\n")
    served("instances", "add", "rotated", "--signature-key-file", first)
    assert call_back(served, "rotated", "first key, long enough", id="1", status="X") == 200
    second = "second key, long enough\r\n"
    key = served("keys", "add", "rotated", "--file", "-", "--json", given=f"{second}\n")
    assert call_back(served, "rotated", second, id="2", status="X") == 200
    assert call_back(served, "rotated", "first key, long enough", id="2", status="Y") == 200
    assert served("keys", "retire", "rotated", json.loads(key.stdout)["id"]).returncode == 0
    assert call_back(served, "rotated", second, id="3", status="X") == 401
    assert served("instances", "remove", "rotated", "--yes").returncode == 0
    assert call_back(served, "rotated", "first key, long enough", id="4", status="X") == 401
    assert served("job", "1", "--instance", "rotated").returncode == 4


def test_what_is_set_on_an_instance_leaves_its_keys_and_the_rest(offline):
    files = {name: offline.file(name, name.encode()) for name in ("key-of-an-instance", "t", "u")}
    offline("instances", "add", "i", "--signature-key-file", "key-of-an-instance")
    before = offline("keys", "list", "--json").stdout
    again = offline("instances", "add", "i", "--hub", "crm")
    assert (again.returncode, "`receiver instances set`" in again.stderr) == (2, True)
    words = ("--element-token-file", files["t"], "--user-secret-file", files["u"])
    done = offline("instances", "set", "i", *words)
    assert (done.returncode, done.stdout) == (0, "i: element token, user secret set\n")
    assert offline("instances", "set", "i", "--hub", "crm").returncode == 0
    (row,) = json.loads(offline("instances", "list", "--json").stdout)["instances"]
    assert (row["hub"], row["keys"], row["vendor_secrets"]) == ("crm", 1, True)
    assert offline("keys", "list", "--json").stdout == before
    with sqlite3.connect(offline.folder / "receiver.db") as database:
        sealed = database.execute("SELECT element_token FROM instances").fetchone()[0]
    secret_box = SecretBox([offline.environment["RECEIVER_ENCRYPTION_KEYS"]])
    assert secret_box.decrypt(("i", "element token"), sealed) == b"t"
    assert "element token, user secret" in offline("audit").stdout


def test_one_vendor_secret_without_the_other_is_warned_of(offline):
    for name in ("key", "t", "u"):
        offline.file(name, f"{name}, which is long enough".encode())
    half = "i has only one of element token and user secret"
    added = offline("instances", "add", "i", "--element-token-file", "t")
    again = offline("instances", "set", "i", "--element-token-file", "t")
    assert [done.returncode for done in (added, again)] == [0, 0]
    assert half in added.stderr
    assert half in again.stderr
    assert offline("instances", "set", "i", "--hub", "crm").stderr == ""
    assert offline("instances", "set", "i", "--user-secret-file", "u").stderr == ""


def test_who_retires_the_last_key_is_warned(offline):
    for name in ("one", "two"):
        offline.file(name, f"{name} key, long enough".encode())
    offline("instances", "add", "i", "--signature-key-file", "one")
    offline("keys", "add", "i", "--file", "two")
    rows = json.loads(offline("keys", "list", "--json").stdout)["keys"]
    first, last = (offline("keys", "retire", row["id"]) for row in rows)
    assert (first.returncode, first.stderr) == (0, "")
    warning = "warning: i has no signature key: its callbacks are rejected until "
    assert (last.returncode, last.stderr.startswith(warning)) == (0, True)


def test_nothing_or_an_empty_secret_is_not_set(offline):
    offline("instances", "add", "i")
    empty = offline.file("empty", b"\n")
    runs = {
        "nothing": ["instances", "set", "i"],
        "empty": ["instances", "set", "i", "--user-secret-file", empty],
        "unknown": ["instances", "set", "j", "--hub", "crm"],
        "added": ["instances", "add", "k", "--element-token-file", empty],
    }
    answers = together(offline, runs)
    assert {name: answer.returncode for name, answer in answers.items()} == dict.fromkeys(runs, 2)
    assert "instance.set" not in offline("audit").stdout


def test_an_unusable_key_is_refused_and_not_printed(offline):
    offline("instances", "add", "i")
    contents = {"empty": b"", "lf": b"\n", "crlf": b"\r\n", "nul": b"hidden\0"}
    files = {name: offline.file(name, content) for name, content in contents.items()}
    runs = {name: ["keys", "add", "i", "--file", file] for name, file in files.items()}
    answers = together(offline, runs)
    assert {name: answer.returncode for name, answer in answers.items()} == dict.fromkeys(files, 2)
    assert "hidden" not in answers["nul"].stderr
    assert json.loads(offline("keys", "list", "--json").stdout)["keys"] == []


def test_a_token_is_printed_alone_and_once(offline):
    token = offline("tokens", "create", "t", "--scope", "read", "--expires", "90d")
    assert len(token.stdout.split()) == 1
    listed = offline("tokens", "list", "--json").stdout
    assert [row["name"] for row in json.loads(listed)["tokens"]] == ["t"]
    assert token.stdout.strip() not in listed + offline("tokens", "list").stdout
    assert token.stdout.strip().encode() not in (offline.folder / "receiver.db").read_bytes()


def test_a_revoked_token_is_no_credential(served):
    token = served("tokens", "create", "short", "--scope", "read").stdout
    assert served("jobs", "--token-file", "-", given=token).returncode == 0
    assert served("tokens", "revoke", "short").returncode == 0
    assert served("jobs", "--token-file", "-", given=token).returncode == 5


def test_a_token_of_an_instance_sees_no_other(served):
    token = served("tokens", "create", "l", "--scope", "operate", "--instance", "elsewhere").stdout
    call_back(served, id="hidden", status="RUNNING")
    page = served("jobs", "--json", "--token-file", "-", given=token)
    assert json.loads(page.stdout)["jobs"] == []
    assert served("job", "hidden", "--token-file", "-", given=token).returncode == 2
    words = ["jobs", "--instance", "default", "--token-file", "-"]
    assert served(*words, given=token).returncode == 5


def test_a_wrong_duration_is_usage_and_makes_no_token(offline):
    offline("db", "upgrade")
    wrong = ["", "0d", "-1d", "90", "4000000d"]
    words = ["tokens", "create", "t", "--scope", "read", "--expires"]
    answers = together(offline, {duration: [*words, duration] for duration in wrong})
    codes = {duration: answer.returncode for duration, answer in answers.items()}
    listed = offline("tokens", "list", "--json")
    assert codes == dict.fromkeys(wrong, 2)
    assert json.loads(listed.stdout)["tokens"] == []


# Verify


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


EXPLAINED = {
    "hex": (f"sha256={digest().hex()}", "hex"),
    "sha1": (f"sha1={encoded(digest(name='sha1'))}", "sha1"),
    "bare": (encoded(digest()), "sha256="),
    "unpadded": (signature(BODY).rstrip("="), "="),
    "another key": (signature(BODY, b"another"), "key"),
    "key with its line end": (signature(BODY, f"{SECRET}\n".encode()), "key"),
    "body without its line end": (signature(BODY.rstrip()), "body"),
    "body written anew": (signature(b'{"id":1,"status":"COMPLETED"}'), "body"),
    "missing": ("", "no signature"),
}


def verified(offline: Command, headers: dict[str, str]) -> dict:
    files = ["--body", offline.file("b", BODY), "--key-file", offline.file("k", SECRET.encode())]
    runs = {case: ["verify", *files, "--signature", header] for case, header in headers.items()}
    answers = together(offline, runs)
    assert not [answer for answer in answers.values() if SECRET in answer.stdout + answer.stderr]
    return answers


def test_verify_tells_what_is_wrong(offline):
    answers = verified(offline, {case: header for case, (header, _) in EXPLAINED.items()})
    assert {answer.returncode for answer in answers.values()} == {5}
    silent = [case for case, (_, word) in EXPLAINED.items() if word not in answers[case].stdout]
    assert silent == []


def test_verify_does_not_blame_the_body_for_a_blank_after_the_signature(offline):
    answers = verified(offline, {end: f"{signature(BODY)}{end}" for end in ("\n", " ")})
    assert not [end for end, answer in answers.items() if "body was changed" in answer.stdout]


def test_one_line_end_of_a_key_file_is_dropped(offline):
    words = ["verify", "--body", offline.file("b", BODY), "--signature", signature(BODY), "--json"]
    ends = {"none": b"", "lf": b"\n", "crlf": b"\r\n", "two": b"\n\n"}
    files = {name: offline.file(name, SECRET.encode() + end) for name, end in ends.items()}
    answers = together(
        offline, {name: [*words, "--key-file", file] for name, file in files.items()}
    )
    valid = {name: json.loads(answer.stdout)["valid"] for name, answer in answers.items()}
    assert valid == {"none": True, "lf": True, "crlf": True, "two": False}


# Trigger


def test_a_test_callback_is_marked_and_touches_no_job(served):
    before = served("jobs", "--json").stdout
    answer = served("trigger", "--url", served.environment["RECEIVER_URL"], "--json")
    assert answer.returncode == 0
    assert served("jobs", "--json").stdout == before
    newest = json.loads(served("events", "--limit", "1", "--json").stdout)["events"][0]
    assert (newest["id"], newest["kind"]) == (json.loads(answer.stdout)["event"], "other")
