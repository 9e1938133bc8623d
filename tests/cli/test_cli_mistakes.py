"""What is typed wrong, or is wrong where it is typed: one line that says what to do, and a code.

In this process, so that all of them take seconds; `{url}` is a receiver's that runs.
"""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from builders import KEY, Receiver
from fakes import listening
from nodes import own_environment

from receiver.app import create_app
from receiver.cli.commands import MODULES, receiver, run
from receiver.instances import tokens
from receiver.settings import Settings

# Of another program, of Python or of a machine: nothing that a message may hold.
FOREIGN = re.compile(
    r"Traceback|Errno|[a-z]Error\b|Exception|sqlalchemy|psycopg|httpx|sqlite3|\$\.|`\$|object at 0x"
)
KEY_NAME = "EVENT_NOTIFICATION_SIGNATURE_KEY"
NOWHERE = "http://127.0.0.1:1"
PG = "RECEIVER_DATABASE_URL=postgresql://clerk:hidden@127.0.0.1:1/books"
REMOTE = "--url {url} --token-file token"
DOWNLOAD = "download --object o --instance gooddata --output out"
DURATION = "must be a whole number and s, m, h or d, like 15m"
BIND = "must be HOST:PORT, like 127.0.0.1:8000, with a port up to 65535"
MISSING = "there is no database at {folder}/receiver.db: set RECEIVER_DATABASE_URL, or make one"
THERE = "there is no instance nope; the instances are: default, gooddata"
YES = "Without a terminal, add --yes"

# What is typed, after what is set; the exit code; what the line says.
MISTAKES = [
    ("serv", 2, "no such command 'serv'. Did you mean 'serve'? See `receiver --help`"),
    ("jbos", 2, "no such command 'jbos'. Did you mean 'jobs'? See `receiver --help`"),
    ("keys retier k", 2, "no such command 'retier'. Did you mean 'retire'?"),
    ("nothing-like-it", 2, "no such command 'nothing-like-it'; see `receiver --help`"),
    ("--jsno", 2, "no such option '--jsno'"),
    ("jobs --jsno", 2, "Did you mean '--json'? See `receiver jobs --help`"),
    ("job", 2, "missing argument 'ID'; see `receiver job --help`"),
    ("job 1 2", 2, "got unexpected extra argument (2)"),
    ("tokens create x", 2, "missing option '--scope'. Choose from: read, operate"),
    ("tokens create x --scope write", 2, "--scope: 'write' is not one of 'read', 'operate'"),
    ("jobs --outcome partail", 2, "--outcome: 'partail' is not one of 'pending', 'succeeded',"),
    ("events --kind job", 2, "--kind: 'job' is not one of 'bulk_job', 'async_request',"),
    ("rejections --reason hex", 2, "--reason: 'hex' is not one of 'missing', 'malformed',"),
    ("jobs --limit 0", 2, "--limit: 0 is not in the range 1<=x<=1000"),
    ("job x --wait -1", 2, "--wait: -1 is not in the range x>=0"),
    ("job x --wait soon", 2, "--wait: 'soon' is not a number"),
    ("serve --workers 0", 2, "--workers: 0 is not in the range 1<=x<=64"),
    ("serve --bind 8000", 2, f"--bind 8000: {BIND}"),
    ("serve --bind 127.0.0.1:99999", 2, f"--bind 127.0.0.1:99999: {BIND}"),
    ("serve --bind {taken}", 2, "--bind {taken}: address already in use; choose another one"),
    ("sandbox --bind {taken}", 2, "--bind {taken}: address already in use; choose another one"),
    ("serve --bind unix:nodir/s", 2, "--bind unix:nodir/s: there is no folder {folder}/nodir"),
    ("serve --bind 192.0.2.1:80", 2, "--bind 192.0.2.1:80: cannot assign requested address"),
    # asking a running receiver
    ("jobs", 2, "--token-file is missing (or RECEIVER_TOKEN_FILE): `receiver tokens create`"),
    ("jobs --token-file token --limit ten", 2, "--limit: 'ten' is not a number"),
    ("jobs --token-file token --url http://u:hidden@h", 2, "must have no user name and no passw"),
    (
        f"download --object o --instance i --output nodir/f {REMOTE}",
        2,
        "there is no folder {folder}",
    ),
    ("sandbox --faults {{", 2, "--faults: {{: is no JSON"),
    ('sandbox --faults {{"slow":-1}}', 2, "--faults: slow: expected float >= 0.0"),
    (
        "{made} instances set gooddata --hub ../x",
        2,
        "--hub: ../x: a hub is a name such as marketing",
    ),
    ("jobs --token-file nofile", 2, "nofile: No such file or directory"),
    ("jobs --token-file .", 2, ": File '.' is a directory"),
    ("jobs --token-file empty", 2, "--token-file empty: the file is empty"),
    ("jobs --token-file binary", 2, "--token-file binary: there is no token in it"),
    ("RECEIVER_TOKEN_FILE=empty jobs", 2, "--token-file empty: the file is empty"),
    ("jobs --token-file wrong --url {url}", 5, "revoked; `receiver tokens create` makes a token"),
    (f"jobs --token-file token --url {NOWHERE}", 6, f"no answer from {NOWHERE}: connection ref"),
    (
        "jobs --token-file token --url ftp://x",
        2,
        "--url (env var: RECEIVER_URL): ftp://x: must be http",
    ),
    (
        "jobs --token-file token --url http://[",
        2,
        "(env var: RECEIVER_URL): http://[: is not a URL",
    ),
    ("jobs --token-file token --url {url}/api/v1", 2, "leave /api/v1 out, {url} is enough"),
    (
        "jobs --token-file token --url https://{taken}",
        6,
        "TLS failed; is it http instead of https?\n",
    ),
    ("jobs --token-file token --url {url}/nowhere", 6, "404 Not Found: is it a receiver?"),
    (f"jobs {REMOTE} --cursor nonsense", 2, "cursor"),
    (f"job 1234 {REMOTE}", 2, "there is no job 1234: `receiver jobs` lists them"),
    (f"job 1234 --instance default {REMOTE}", 2, "there is no job 1234 of default"),
    (f"job 1234 --instance nope {REMOTE}", 2, THERE),
    (f"job 1234 --instance nope --wait 600 {REMOTE}", 2, THERE),
    (f"job 1234 --instance nope --close {REMOTE}", 2, THERE),
    (f"jobs --instance nope {REMOTE}", 2, THERE),
    (f"jobs --instance default --instance nope {REMOTE}", 2, THERE),
    (f"events --instance nope {REMOTE}", 2, THERE),
    (f"rejections --instance nope {REMOTE}", 2, THERE),
    (f"rejections --instance nope --verify-again {REMOTE}", 2, THERE),
    (f"submissions --instance nope {REMOTE}", 2, THERE),
    (f"objects --instance nope {REMOTE}", 2, THERE),
    (f"objects --instance gooddata {REMOTE}", 2, "gooddata has no vendor secrets: `receiver inst"),
    (f"submit token --object '' --instance nope {REMOTE}", 2, "--object: is empty"),
    # a variable of a script that was not set
    (f"job '' {REMOTE}", 2, "ID: is empty"),
    (f"job 1 --failed-rows '' {REMOTE}", 2, "--failed-rows: is empty"),
    (f"submit --retry-failed '' --upload token {REMOTE}", 2, "--retry-failed: is empty"),
    *(
        (f"{DOWNLOAD} --{name} '' {REMOTE}", 2, f"--{name}: is empty")
        for name in ("job", "output", "query", "where")
    ),
    ("{made} deliveries --subscription typo", 2, "there is no subscription typo"),
    (f"job 1 --upload nofile {REMOTE}", 2, "--upload: File 'nofile' does not exist"),
    (f"rejections --verify-again --reason missing {REMOTE}", 2, "goes with --instance alone"),
    (f"submit nofile --object o --instance i {REMOTE}", 2, "[FILE]: File 'nofile' does not exist"),
    (f"submit {REMOTE}", 2, "name FILE, or --retry-failed with --upload"),
    (f"submit --retry-failed 1 {REMOTE}", 2, "--retry-failed and --upload go together"),
    ("listen", 2, "--token-file is missing (or RECEIVER_TOKEN_FILE)"),
    ("listen --token-file wrong --url {url}", 5, "A valid token is needed"),
    (f"listen --token-file token --url {NOWHERE}", 6, f"no answer from {NOWHERE}: connection ref"),
    (f"listen --instance nope {REMOTE}", 2, THERE),
    (
        "listen --instance gooddata --token-file limited --url {url}",
        2,
        "there is no instance gooddata; the instances are: default",
    ),
    (f"listen --forward-to ftp://x {REMOTE}", 2, "--forward-to: ftp://x: must be a URL like"),
    (f"listen --after x {REMOTE}", 2, "--after: x: must be the id of an event"),
    (f"listen --after 8000000000000000 {REMOTE}", 2, "--after: 8000000000000000: must be the id"),
    # the database
    ("alarms", 2, MISSING),
    ("schedules list", 2, MISSING),
    ("subscriptions list", 2, MISSING),
    ("deliveries", 2, MISSING),
    ("replay --job 1234", 2, MISSING),
    ("keys remove key-0 --yes", 2, MISSING),
    ("alarms ack", 2, "missing argument 'ID'; see `receiver alarms ack --help`"),
    ("alarms ak 1", 2, "no such command 'ak'. Did you mean 'ack'?"),
    ("{made} alarms ack 99999999999999999999", 2, "there is no open alarm 99999999999999999999"),
    ("{made} alarms snooze 1 --for soon", 2, f"--for soon: {DURATION}"),
    ("{made} schedules show nope", 2, "there is no schedule nope"),
    ("{made} schedules remove nope", 2, "there is no schedule nope"),
    ("{made} subscriptions test nope", 2, "there is no subscription nope"),
    ("{made} subscriptions remove nope", 2, "there is no subscription nope"),
    ("{made} deliveries retry 5", 2, "there is no delivery 5"),
    ("{made} deliveries retry five", 2, "[DELIVERY]: 'five' is not a number"),
    ("{made} deliveries retry 99999999999999999999", 2, "99999999999999999999 is not in the range"),
    (
        "{made} deliveries retry --failed --since 1d --subscription nope",
        2,
        "there is no subscription nope",
    ),
    ("{made} replay --job 1234", 2, "there is no job 1234: `receiver jobs` lists them"),
    ("{made} replay --job 1234 --instance gooddata", 2, "there is no job 1234 of gooddata"),
    ("{made} replay --job 1234 --instance nope", 2, THERE.replace("default, ", "")),
    ("{made} replay --instance nope --since 1h", 2, THERE.replace("default, ", "")),
    ("{made} replay --instance gooddata --since ''", 2, f"--since : {DURATION}"),
    ("{made} keys remove key-0", 2, "there is no retired key key-0: `receiver keys list` lists"),
    ("{made} keys remove key-0 --yes", 2, "there is no retired key key-0"),
    ("tokens list", 2, MISSING),
    ("prune", 2, MISSING),
    ("db current", 2, MISSING),
    ("trigger --url {url} --instance nope", 2, MISSING),
    (f"{PG} tokens list", 6, "cannot connect to 127.0.0.1:1/books as clerk: Connection refused"),
    (f"{PG} db upgrade", 6, "cannot connect to 127.0.0.1:1/books as clerk: Connection refused"),
    *(
        (f"{PG}?{parameter} tokens list", 6, f"cannot connect to 127.0.0.1:1/books as clerk: {why}")
        for parameter, why in {
            "sslmode=zz": 'invalid sslmode value: "zz"',
            "service=zz": 'definition of service "zz" not found',
            "port=99999": 'invalid port number: "99999"',
            "sslmod=require": 'invalid connection option "sslmod"',
            "connect_timeout=x": "bad value for connect_timeout: 'x'",
        }.items()
    ),
    ("RECEIVER_DATABASE_URL=mysql://u:hidden@h/d tokens list", 2, "RECEIVER_DATABASE_URL must be"),
    ("RECEIVER_DATABASE_URL=sqlite:////nodir/x db upgrade", 2, "there is no folder /nodir for"),
    ("RECEIVER_DATABASE_URL=sqlite:///{folder} tokens list", 2, "URL: {folder} is not a file"),
    ("RECEIVER_OVERDUE_AFTER=15 serve", 2, f"RECEIVER_OVERDUE_AFTER {DURATION}"),
    ("RECEIVER_ENCRYPTION_KEYS=hidden serve", 2, "RECEIVER_ENCRYPTION_KEYS must be Fernet keys"),
    (
        "RECEIVER_ENCRYPTION_KEYS=hidden serve",
        2,
        "as `head -c 32 /dev/urandom | base64 | tr +/ -_`",
    ),
    ("RECEIVER_PUBLIC_URL=hooks.example.com serve", 2, "RECEIVER_PUBLIC_URL must be a URL like"),
    ("RECEIVER_MAX_BODY_BYTES=1k serve", 2, "RECEIVER_MAX_BODY_BYTES must be a whole number"),
    ("OPEN_CONNECTORS_URL=https://example.com serve", 2, "OPEN_CONNECTORS_URL must end in /elem"),
    (f"{KEY_NAME}_PREVIOUS=hidden serve", 2, f"{KEY_NAME}_PREVIOUS is set, but {KEY_NAME} is not"),
    (f"{KEY_NAME}_FILE=nofile serve", 2, f"{KEY_NAME}_FILE cannot be read: No such file or"),
    (f"{KEY_NAME}= serve", 2, f"{KEY_NAME} is set but empty: unset it or give it a value"),
    ("{made} instances remove nope", 2, "there is no instance nope"),
    ("{made} instances remove gooddata", 2, f"its callbacks are rejected then. {YES}"),
    ("{made} instances set gooddata", 2, "nothing to set: name an option, such as --hub"),
    ("{made} instances add a/b", 2, "a/b: a name is 1 to 64 of A-Z, a-z, 0-9, _ and -"),
    ("{made} instances add gooddata", 2, "there is an instance gooddata already"),
    ("{made} instances add b --user-secret-file empty", 2, "empty: the file is empty, there is"),
    ("{made} keys list nope", 2, "there is no instance nope; the instances are: gooddata"),
    ("{made} trigger --url {url} --instance nope", 2, THERE.replace("default, ", "")),
    ("{made} trigger --url {url}/api/v1 --instance nope", 2, "leave /api/v1 out, {url} is enough"),
    ("{made} erase --job 1234 --instance nope", 2, "there is no job 1234 of nope"),
    ("{made} keys add nope --file token", 2, "no instance nope; the instances are: gooddata"),
    ("{made} instances set nope --hub h", 2, "no instance nope; the instances are: gooddata"),
    ("{made} keys add gooddata --file empty", 2, "--file empty: the file is empty, there is no"),
    ("{made} keys retire key-0", 2, "no key key-0 in use: `receiver keys list` lists them"),
    ("{made} tokens revoke nope", 2, "no token nope in use: `receiver tokens list` lists"),
    ("{made} tokens create t --scope read --expires 90", 2, f"--expires 90: {DURATION}"),
    ("{made} prune --older-than soon", 2, f"--older-than soon: {DURATION}"),
    ("{made} prune --older-than 5m", 2, f"Delete what is older than 5m? {YES}"),
    ("{made} erase --job 1234", 2, "there is no job 1234"),
    ("{made} reconcile --fetch-results nodir", 2, "--fetch-results: Directory 'nodir' does not"),
    # nothing
    ("verify --body nofile --signature x --key-file token", 2, "--body: File 'nofile' does not"),
    ("verify --body token --signature x --key-file nofile", 2, "nofile: No such file or directory"),
    (
        "verify --body /proc/self/mem --signature x --key-file token",
        2,
        "/proc/self/mem: Input/output error",
    ),
    *(
        (line, 2, "/dev/zero: it holds more than 64 KiB; is it the right file?")
        for line in (
            "jobs --token-file /dev/zero",
            "verify --body token --signature x --key-file /dev/zero",
            "{made} keys add gooddata --file /dev/zero",
            "sandbox --signature-key-file /dev/zero",
            "{made} instances set gooddata --user-secret-file /dev/zero",
        )
    ),
    (
        "verify --body /dev/zero --signature x --key-file token",
        2,
        "/dev/zero: it holds more than 65536",
    ),
    (
        f"{KEY_NAME}_FILE=/dev/zero serve",
        2,
        f"{KEY_NAME}_FILE cannot be read: it holds more than 64 KiB",
    ),
    ("jobs --token-file /proc/self/mem --url {url}", 2, "/proc/self/mem: Input/output error"),
    (f"trigger --url {NOWHERE} --key-file token", 6, f"no answer from {NOWHERE}: connection ref"),
    ("trigger --url {url} --key-file wrong", 5, "rejected it (401); the receiver there has"),
    ("trigger --url https://{taken} --key-file wrong", 6, "TLS failed; is it http instead of"),
    ("sandbox --bind 9000", 2, f"--bind 9000: {BIND}"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A receiver that runs, a database with an instance, and a folder of odd files."""
    folder = tmp_path_factory.mktemp("mistakes")
    made = f"sqlite:///{folder}/made.db"
    app = create_app(Settings(database_url=made, default_keys=(KEY,)))
    with app.extensions["receiver"].database.write() as session:
        token = tokens.create_token(session, "test", "operate", 1)
        limited = tokens.create_token(session, "limited", "read", 1, only=("default",))
    contents = {
        "token": token,
        "limited": limited,
        "wrong": "not the right one",
        "empty": "",
        "binary": "\x01\x02",
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    with listening() as (url, answer_with), pytest.MonkeyPatch.context() as patch:
        answer_with(app)
        patch.setenv("RECEIVER_DATABASE_URL", made)
        assert run(["instances", "add", "gooddata"]) == 0
        taken = url.removeprefix("http://")
        yield {
            "folder": str(folder),
            "url": url,
            "taken": taken,
            "made": f"RECEIVER_DATABASE_URL={made}",
        }
    Receiver(app, token).close()


@pytest.fixture
def typed(places, monkeypatch, capfd):
    """Run a line as if typed in that folder; give its code and both outputs."""
    monkeypatch.chdir(places["folder"])
    for name in os.environ:
        if name.startswith(("RECEIVER_", "EVENT_", "OPEN_")):
            monkeypatch.delenv(name)

    def run_line(line: str, **instead: str) -> tuple[int, str, str]:
        words = [word.strip("'").format(**places) for word in line.split()]
        words = [instead.get(word, word) for word in words]
        while words and re.match("[A-Z_]+=", words[0]):
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        capfd.readouterr()
        code = run(words)
        return code, *capfd.readouterr()

    return run_line


@pytest.mark.parametrize(("line", "code", "says"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_one_line_that_says_what_to_do(line, code, says, typed, places):
    ended, out, err = typed(line)
    assert (ended, out) == (code, ""), err
    assert says.format(**places) in err
    assert re.fullmatch("receiver: [^\n]+\n", err), err
    assert not FOREIGN.search(err)
    assert "hidden" not in err
    assert not Path("receiver.db").exists()


def test_who_answers_no_has_interrupted_nothing(places):
    terminal, inside = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "receiver", "instances", "remove", "gooddata"],
        env=own_environment(RECEIVER_DATABASE_URL=places["made"].partition("=")[2]),
        **dict.fromkeys(("stdin", "stdout", "stderr"), inside),
    )
    os.write(terminal, b"n\n")
    assert child.wait(60) == 2
    assert os.read(terminal, 9999).endswith(b"receiver: nothing was done\r\n")
    os.close(inside)
    os.close(terminal)


@pytest.mark.parametrize(
    "line",
    [
        "{made} schedules show ODD",
        "{made} alarms ack ODD",
        "{made} keys remove ODD --yes",
        "{made} subscriptions test ODD",
        f"listen --instance ODD {REMOTE}",
        f"listen --after ODD {REMOTE}",
        f"listen --forward-to ODD {REMOTE}",
    ],
)
@pytest.mark.parametrize(
    "odd",
    ["x" * 10_000, "a\nb", "a\u202eb", "a\udcffb"],
    ids=["long", "two lines", "right to left", "no UTF-8"],
)
def test_what_is_typed_can_neither_flood_a_terminal_nor_steer_it(line, odd, typed):
    code, out, err = typed(line, ODD=odd)
    assert (code, out) == (2, ""), err
    assert re.fullmatch("receiver: [^\n]{1,600}\n", err), err
    assert err[:-1].isprintable()
    assert "fault of the program" not in err


def test_with_json_a_mistake_is_json(typed):
    code, out, err = typed("jobs --json --limit 0")
    assert (code, err) == (2, "")
    assert json.loads(out)["error"] == {
        "code": "usage",
        "detail": "--limit: 0 is not in the range 1<=x<=1000; see `receiver jobs --help`",
    }


def test_help_is_short_for_h_and_comes_once(typed):
    for line in ("-h", "jobs -h", "keys add -h"):
        code, out, err = typed(line)
        assert (code, out.count("Usage:"), err) == (0, 1, "")
    for line in ("", "keys"):
        code, out, err = typed(line)
        assert (code, out, err.count("Usage:")) == (2, "", 1)


def test_commands_are_grouped_by_what_they_talk_to_and_none_is_cut(typed):
    _, out, _ = typed("--help")
    sections = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert sections[1:] == [
        "Ask a running receiver (RECEIVER_URL, RECEIVER_TOKEN_FILE):",
        "Work on the database (RECEIVER_DATABASE_URL):",
        "Need neither:",
    ]
    assert "..." not in out.partition("Ask a running")[2]
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in MODULES)


def test_every_option_has_help_and_names_its_variable():
    def options(command: click.Command, path: str) -> Iterator[tuple[str, click.Option]]:
        for param in command.params:
            if isinstance(param, click.Option):
                yield f"{path} {param.opts[0]}", param
        for name in getattr(command, "list_commands", lambda _: [])(context):
            yield from options(command.get_command(context, name), f"{path} {name}")

    context = click.Context(receiver)
    found = dict(options(receiver, "receiver"))
    assert len(found) > 80
    assert [name for name, option in found.items() if not option.help] == []
    assert [name for name, it in found.items() if it.envvar and not it.show_envvar] == []
