"""The audit: whoever acts is written down, nodes keep one order, and changing it shows."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import commands
import pytest
from click.testing import CliRunner
from cryptography.fernet import Fernet
from fakes import Between, between
from sqlalchemy import text

from receiver.cli.commands import receiver as command
from receiver.database import audit, migrations
from receiver.database.engine import Database
from receiver.database.models import AuditEntry
from receiver.errors import StatementRefused, StoreError
from receiver.lib import logs
from receiver.lib.clock import now_ms
from receiver.openconnectors.client import Call
from receiver.reconcile.pacing import PacedVendor


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with opened(database_url) as database:
        yield database


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = migrations.open_database(url)
    yield database
    database.close()


def note(database: Database, subject: str, **given: str) -> None:
    with database.write() as session:
        told = {"actor": "someone", "action": "token.create", **given}
        audit.record(session, at=1, subject=subject, **told)


def entries(database: Database) -> list[AuditEntry]:
    """All entries, oldest first."""
    with database.read() as session:
        return list(audit.list_entries(session, 1000))[::-1]


def told(database: Database) -> list[tuple[str, str, str]]:
    return [(entry.actor, entry.action, entry.subject) for entry in entries(database)]


def faults(database: Database) -> list[str]:
    with database.read() as session:
        return list(audit.find_faults(session))


def tamper(database: Database, *statements: str) -> None:
    """Do what only who owns the tables can: drop the triggers, then change what they held."""
    with database.write() as session:
        for table in ("audit", "audit_head"):
            if not database.is_sqlite:
                session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        if database.is_sqlite:
            names = session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))
            for name in list(names):
                session.execute(text(f"DROP TRIGGER {name}"))
        for statement in statements:
            session.execute(text(statement))


def test_a_chain_nobody_touched_has_no_faults(database):
    assert faults(database) == []
    for number in range(5):
        note(database, str(number))
    assert faults(database) == []
    assert [entry.id for entry in entries(database)] == [1, 2, 3, 4, 5]


def test_the_databases_clock_is_taken_where_it_has_one(database):
    note(database, "x")
    (entry,) = entries(database)
    assert (entry.at == 1) if database.is_sqlite else (abs(entry.at - now_ms()) < 60_000)


def test_what_is_rolled_back_is_not_noted(database):
    def fail() -> None:
        with database.write() as session:
            audit.record(session, at=1, actor="a", action="b", subject="c")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    note(database, "kept")
    assert [(entry.id, entry.subject) for entry in entries(database)] == [(1, "kept")]
    assert faults(database) == []


def test_text_that_no_database_stores_is_noted_all_the_same(database):
    note(database, "a\0b\ud800", detail="x" * 10_000)
    (entry,) = entries(database)
    assert (entry.subject, len(entry.detail)) == ("a\ufffdb\ufffd", audit.MAX_TEXT)
    assert faults(database) == []


def test_nodes_that_note_at_once_make_one_chain(database_url):
    start = threading.Barrier(4)

    def node(name: str) -> None:
        with opened(database_url) as database:
            start.wait()
            for number in range(10):
                note(database, f"{name} {number}")

    nodes = [threading.Thread(target=node, args=(str(number),)) for number in range(4)]
    for each in nodes:
        each.start()
    for each in nodes:
        each.join()
    with opened(database_url) as database:
        assert [entry.id for entry in entries(database)] == list(range(1, 41))
        assert len({entry.subject for entry in entries(database)}) == 40
        assert faults(database) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 2",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET entries = 1",
        "UPDATE audit_head SET hash = hash",
        "INSERT INTO audit SELECT 2, at, 'x', action, subject, detail, request, hash FROM audit",
    ],
)
def test_the_database_refuses_to_change_what_was_noted(database, statement):
    for number in range(3):
        note(database, str(number))
    with pytest.raises(StatementRefused), database.write() as session:
        session.execute(text(statement))
    assert len(entries(database)) == 3


def test_nothing_is_replaced_or_emptied_either(make_database):
    for kind, statement in (
        ("sqlite", "REPLACE INTO audit SELECT * FROM audit WHERE id = 1"),
        ("postgresql18", "TRUNCATE audit"),
        ("postgresql18", "TRUNCATE audit_head"),
    ):
        with opened(make_database(kind)) as database:
            note(database, "x")
            with pytest.raises(StoreError), database.write() as session:
                session.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        *(
            (f"UPDATE audit SET {change} WHERE id = 3", "entry 3 or the one before it")
            for change in ("at = at + 1", "actor = ''", "action = ''", "subject = ''")
        ),
        ("UPDATE audit SET detail = 'x' WHERE id = 1", "entry 1 or the one before it"),
        ("UPDATE audit SET request = 'x' WHERE id = 1", "entry 1 or the one before it"),
        ("UPDATE audit SET hash = substr(hash, 2) WHERE id = 2", "entry 2 or the one before it"),
        ("DELETE FROM audit WHERE id IN (2, 3)", "2 entries are missing before entry 4"),
        ("DELETE FROM audit WHERE id = 1", "1 entries are missing before entry 2"),
        ("DELETE FROM audit WHERE id = 5", "the chain ends at entry 4, but 5 were written"),
        ("DELETE FROM audit", "the chain ends at entry 0, but 5 were written"),
        ("DELETE FROM audit_head", "the end of the chain was deleted"),
        ("INSERT INTO audit VALUES (6, 1, '', '', '', '', '', '')", "entry 6 or the one before it"),
    ],
)
def test_tampering_is_found_and_located(database, statement, expected):
    for number in range(5):
        note(database, str(number))
    tamper(database, statement)
    assert expected in faults(database)[0]


def test_an_entry_rewritten_with_its_hash_breaks_the_next(database):
    for number in range(3):
        note(database, str(number))
    forged, last = entries(database)[1], entries(database)[2]
    forged.actor = "nobody"
    new = audit._hash(entries(database)[0].hash, forged).hex()
    literal = f"x'{new}'" if database.is_sqlite else f"'\\x{new}'"
    tamper(database, f"UPDATE audit SET actor = 'nobody', hash = {literal} WHERE id = 2")
    assert faults(database) == [f"entry {last.id} or the one before it was changed"]
    tamper(database, "DELETE FROM audit WHERE id = 3", "UPDATE audit_head SET entries = 2")
    assert faults(database) == ["entry 2 is not the one that was written last"]


# --- the command line


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("RECEIVER_DATABASE_URL", database_url)
    monkeypatch.setenv("RECEIVER_ENCRYPTION_KEYS", Fernet.generate_key().decode())
    logs.configure()  # a test before may have left a stream that is closed by now

    def invoke(*words: str, code: int = 0, given: str | None = None) -> str:
        result = CliRunner().invoke(command, words, input=given, standalone_mode=False)
        raised = getattr(result.exception, "code", result.exception)
        assert (raised or 0) == code, result.output
        return result.stdout

    return invoke


def test_each_act_on_the_command_line_is_noted_with_its_user(run, database_url, tmp_path):
    secrets = {name: tmp_path / name for name in ("one", "two")}
    for name, file in secrets.items():
        file.write_text(f"a secret that nobody may read {name}")
    run("instances", "add", "gooddata", "--signature-key-file", str(secrets["one"]))
    added = run("keys", "add", "gooddata", "--file", str(secrets["two"])).strip()
    token = run("tokens", "create", "loader", "--scope", "read", "--instance", "gooddata").strip()
    run("keys", "retire", added)
    run("tokens", "revoke", "loader")
    run("instances", "remove", "gooddata", "--yes")
    run("prune", "--older-than", "999999999d")
    shown = run("audit", "--json")
    noted = json.loads(shown)["entries"][::-1]
    assert [entry["action"] for entry in noted] == [
        "instance.add",
        "key.add",
        "key.add",
        "token.create",
        "key.retire",
        "token.revoke",
        "instance.remove",
        "prune",
    ]
    [actor] = {entry["actor"] for entry in noted}
    assert actor.startswith("cli:")
    assert noted[2]["subject"] == f"gooddata/{added}"
    assert noted[3]["detail"] == "read; gooddata; until revoked"
    assert not any(
        secret in shown for secret in (token, token[-20:], "a secret that nobody may read")
    )
    assert len(json.loads(run("audit", "--json", "--limit", "2"))["entries"]) == 2
    assert "instance.remove" in run("audit")


def test_what_failed_is_not_noted(run, database_url):
    for words in (
        ["tokens", "revoke", "x"],
        ["keys", "retire", "x"],
        ["instances", "remove", "x", "--yes"],
    ):
        with pytest.raises(AssertionError):
            run(*words)
    assert json.loads(run("audit", "--json"))["entries"] == []


def test_verify_says_yes_or_names_what_was_changed(run, database_url):
    run("tokens", "create", "one", "--scope", "read")
    run("tokens", "create", "two", "--scope", "read")
    checked = json.loads(run("audit", "--verify", "--json"))
    newest = json.loads(run("audit", "--json"))["entries"][0]
    assert checked == {"valid": True, "faults": [], "entries": 2, "hash": newest["hash"]}
    assert newest["hash"] in run("audit", "--verify")
    with opened(database_url) as database:
        tamper(database, "UPDATE audit SET actor = 'nobody' WHERE id = 1")
    assert "entry 1 or the one before it was changed" in run("audit", "--verify", code=1)
    assert json.loads(run("audit", "--verify", "--json", code=1))["valid"] is False


def test_no_token_can_be_called_like_a_user_of_the_command_line(run):
    with pytest.raises(AssertionError):
        run("tokens", "create", "cli:root", "--scope", "read")


# --- the relay


@pytest.fixture
def relay(make_database: Callable[[str], str]) -> Iterator[Between]:
    with between(make_database("sqlite"), job_seconds=60) as made:
        yield made


def test_uploads_downloads_and_cancels_are_noted_with_the_tokens_name(relay):
    job = relay.uploaded()
    relay.vendors("PUT", f"/bulk/{job}/cancel")
    relay.vendors("POST", "/bulk/query", params={"q": "select * from contact"})
    relay.vendors("POST", "/bulk/download", json={"objectName": "contact"})
    assert told(relay.services.database) == [
        ("test", "upload", "gooddata/contact"),
        ("test", "cancel", f"gooddata/{job}"),
        ("test", "download", "gooddata/contact"),
        ("test", "download", "gooddata/contact"),
    ]
    # No file's name, which nobody could erase.
    assert not any("sample" in entry.detail for entry in entries(relay.services.database))
    assert entries(relay.services.database)[0].detail.startswith("submission ")


def test_what_is_only_read_is_not_noted(relay):
    relay.vendors("GET", "/objects")
    relay.vendors("GET", "/bulk/jobs")
    assert told(relay.services.database) == []


def test_redeliveries_are_noted_before_the_vendor_is_asked_for_them(relay, monkeypatch):
    database = relay.services.database
    noted_before = []

    def queue(_vendor: object, call: Call):
        noted_before.append((call.method == "PUT", told(database)))
        return type("Answer", (), {"body": b"[{}, {}]"})

    monkeypatch.setattr(PacedVendor, "_ask_queue", queue)
    relay.reconciler(actor="cli:me").one_pass(redeliver=True)
    noted = told(database)
    assert sorted(noted) == [
        ("cli:me", "redeliver", "freshbooks"),
        ("cli:me", "redeliver", "gooddata"),
    ]
    assert all(seen for resend, seen in noted_before if resend)
    assert entries(database)[0].detail == "2 deliveries"


@pytest.mark.usefixtures("run")
def test_a_token_that_comes_or_goes_is_logged_with_who_did_it_and_without_the_token():
    lines = (("tokens", "create", "loader", "--scope", "read"), ("tokens", "revoke", "loader"))
    made, gone = (commands.run(words, Path.cwd(), dict(os.environ)) for words in lines)
    created, revoked = json.loads(made.stderr), json.loads(gone.stderr)
    assert (created["event"], created["name"]) == ("a token was created", "loader")
    assert (revoked["event"], revoked["token"]) == ("a token was revoked", "loader")
    assert created["by"].startswith("cli:")
    assert revoked["by"] == created["by"]
    assert made.stdout.strip() not in made.stderr + gone.stderr
