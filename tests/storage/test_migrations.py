"""The schema: migrations and models agree, and bringing a database up to date is safe."""

import gc
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from builders import take_schema_away
from sqlalchemy import Column, Integer, MetaData, Table, inspect, text

from receiver.app import APP_LOAD_ERROR, create_app
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.database.models import Base
from receiver.errors import SettingsError
from receiver.settings import Settings

KINDS = ("sqlite", "postgresql18", "postgresql15")
POSTGRESQL = KINDS[1:]
DEADLINE = 60  # seconds; only a hanging migration needs them


@pytest.fixture
def make_empty(make_database: Callable[[str], str]) -> Callable[[str], str]:
    """Make a database without any table; give its URL."""

    def make(kind: str) -> str:
        url = make_database(kind)
        if kind == "sqlite":
            Path(url.removeprefix("sqlite:///")).unlink()
            return url
        with opened(url) as database, database.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        return url

    return make


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, make_empty: Callable[[str], str]) -> str:
    return make_empty(request.param)


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def differences(database: Database, metadata: MetaData = Base.metadata) -> list[Any]:
    """What alembic would write into the next migration."""
    options = {"compare_type": True, "compare_server_default": True}
    with database.engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


def shape(database: Database) -> dict[str, Any]:
    """All that the database itself tells of its tables."""
    seen = inspect(database.engine)
    return {
        table: {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"])
                for column in sorted(seen.get_columns(table), key=lambda found: found["name"])
            ],
            "key": seen.get_pk_constraint(table)["constrained_columns"],
            "unique": sorted(each["column_names"] for each in seen.get_unique_constraints(table)),
            "indexes": sorted(
                (each["name"], each["column_names"], bool(each["unique"]))
                for each in seen.get_indexes(table)
                if not each.get("duplicates_constraint")
            ),
            "foreign": [
                (each["constrained_columns"], each["referred_table"], each["options"])
                for each in seen.get_foreign_keys(table)
            ],
        }
        for table in seen.get_table_names()
        if table != "alembic_version"
    }


def key_versions(database: Database) -> list[tuple[int, int]]:
    with database.read() as session:
        rows = session.execute(text("SELECT id, version FROM key_version"))
        return [(row.id, row.version) for row in rows]


def test_models_and_migrations_agree(empty_url):
    with opened(empty_url) as database:
        migrations.upgrade(database)
        assert differences(database) == []


def test_a_disagreement_would_be_seen(empty_url):
    with opened(empty_url) as database:
        migrations.upgrade(database)
        other = MetaData()
        for table in Base.metadata.tables.values():
            table.to_metadata(other)
        Table("jobs", other, Column("forgotten", Integer), extend_existing=True)
        Table("forgotten", other, Column("id", Integer, primary_key=True))
        with database.engine.begin() as connection:
            connection.execute(text("DROP INDEX events_identity"))
        found = {difference[0] for difference in differences(database, other)}
        assert found == {"add_column", "add_table", "add_index"}


def test_migrations_make_the_very_tables_that_the_models_would(empty_url, make_empty):
    kind = "sqlite" if empty_url.startswith("sqlite") else None
    with opened(empty_url) as database:
        Base.metadata.create_all(database.engine)
        expected = shape(database)
        Base.metadata.drop_all(database.engine)
        migrations.upgrade(database)
        assert shape(database) == expected
        assert set(expected) == set(Base.metadata.tables), kind


def test_bringing_up_to_date_twice_changes_nothing(empty_url):
    with opened(empty_url) as database:
        assert migrations.current(database) is None
        migrations.upgrade(database)
        with database.write() as session:
            session.execute(text("UPDATE key_version SET version = 7"))
        before = shape(database)
        migrations.upgrade(database)
        assert migrations.current(database) == migrations.newest()
        assert (shape(database), key_versions(database)) == (before, [(1, 7)])


def test_down_to_nothing_and_up_again(empty_url):
    with opened(empty_url) as database:
        migrations.upgrade(database)
        before = shape(database)
        take_schema_away(database)
        assert inspect(database.engine).get_table_names() == ["alembic_version"]
        assert migrations.current(database) != migrations.newest()
        migrations.upgrade(database)
        assert (shape(database), differences(database)) == (before, [])
        assert key_versions(database) == [(1, 0)]


def test_four_threads_may_bring_it_up_to_date_at_once(empty_url):
    errors: list[Exception] = []
    start = threading.Barrier(4)

    def run() -> None:
        with opened(empty_url) as database:
            start.wait(DEADLINE)
            try:
                migrations.upgrade(database)
            except Exception as error:  # noqa: BLE001 - compared below
                errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    with opened(empty_url) as database:
        assert (errors, key_versions(database)) == ([], [(1, 0)])
        assert differences(database) == []


STARTED_TOGETHER = """
import sys
from receiver.database import migrations
from receiver.database.engine import Database

print("imported", flush=True)
sys.stdin.readline()
url, way = sys.argv[1:]
if way == "upgrade":
    database = Database(url)
    migrations.upgrade(database)
else:
    database = migrations.open_database(url)
print(migrations.current(database) == migrations.newest())
database.close()
"""


def start_together(url: str, way: str) -> list[tuple[int | None, str, str]]:
    """Have four processes open a database at the same moment; give (exit code, output, errors)."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTED_TOGETHER, url, way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "imported\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        ended = [process.communicate(timeout=DEADLINE) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    return [(code, out, err) for code, (out, err) in zip(codes, ended, strict=True)]


@pytest.mark.slow
def test_four_processes_may_bring_it_up_to_date_at_once(empty_url):
    assert start_together(empty_url, "upgrade") == [(0, "True\n", "")] * 4
    with opened(empty_url) as database:
        assert (key_versions(database), differences(database)) == ([(1, 0)], [])


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(4))
def test_four_receivers_may_start_on_an_empty_sqlite_at_once(make_empty, attempt):
    url = make_empty("sqlite")
    assert start_together(url, "opened") == [(0, "True\n", "")] * 4
    with opened(url) as database:
        assert (key_versions(database), differences(database)) == ([(1, 0)], [])


# A refused start leaks its connection: that has a test of its own below.
LEAK = "ignore::pytest.PytestUnraisableExceptionWarning"


@pytest.mark.filterwarnings(LEAK)
@pytest.mark.parametrize("kind", POSTGRESQL)
def test_on_an_empty_postgresql_a_receiver_refuses_to_start_and_names_the_command(kind, make_empty):
    with pytest.raises(SettingsError, match="receiver db upgrade"):
        create_app(Settings(database_url=make_empty(kind)))
    gc.collect()


def test_a_refused_start_leaves_no_connection_behind(make_empty):
    url = make_empty("postgresql18")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(SettingsError):
            create_app(Settings(database_url=url))
        gc.collect()
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.slow
def test_on_an_old_postgresql_serve_ends_with_one_line_until_the_command_was_run(make_empty):
    url = make_empty("postgresql18")
    with opened(url) as database:
        migrations.upgrade(database)
        take_schema_away(database)
    refused = receiver(url, "serve", "--bind", "127.0.0.1:0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch("receiver: [^\n]*`receiver db upgrade`[^\n]*\n", refused.stderr)
    assert receiver(url, "db", "current").returncode != 0
    assert receiver(url, "db", "upgrade").returncode == 0
    assert receiver(url, "db", "current").returncode == 0
    create_app(Settings(database_url=url)).extensions["receiver"].database.close()


@pytest.mark.filterwarnings(LEAK)
def test_a_worker_on_an_old_postgresql_ends_with_one_line(make_empty, monkeypatch, capsys):
    monkeypatch.setenv("RECEIVER_DATABASE_URL", make_empty("postgresql18"))
    with pytest.raises(SystemExit) as end:
        create_app()
    assert end.value.code == APP_LOAD_ERROR
    assert re.fullmatch("receiver: [^\n]*`receiver db upgrade`[^\n]*\n", capsys.readouterr().err)
    gc.collect()


@pytest.mark.parametrize("revision", [None, "base"])
def test_sqlite_is_brought_up_to_date_by_a_receiver(revision, make_empty):
    url = make_empty("sqlite")
    if revision:
        with opened(url) as database:
            migrations.upgrade(database)
            take_schema_away(database)
    app = create_app(Settings(database_url=url))
    database = app.extensions["receiver"].database
    assert migrations.current(database) == migrations.newest()
    assert app.test_client().get("/readyz").status_code == 200
    database.close()


def test_a_sqlite_that_cannot_be_made_stops_the_start_and_names_the_setting(tmp_path):
    with pytest.raises(SettingsError, match=r"^RECEIVER_DATABASE_URL cannot be used: [^\n]*$"):
        create_app(Settings(database_url=f"sqlite:///{tmp_path}/no/such/folder/receiver.db"))


def test_a_file_that_is_no_database_stops_the_start_and_stays_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database, but something of mine\n" * 100)
    before = path.read_bytes()
    with pytest.raises(SettingsError, match=r"^RECEIVER_DATABASE_URL"):
        create_app(Settings(database_url=f"sqlite:///{path}"))
    assert path.read_bytes() == before


@pytest.mark.filterwarnings(LEAK)
@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_nobody_knows_stops_the_start_with_one_line(kind, make_empty):
    url = make_empty(kind)
    with opened(url) as database:
        migrations.upgrade(database)
        with database.write() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'of a fork'"))
        before = shape(database)
        with pytest.raises(SettingsError, match=r"^[^\n]*'of a fork'[^\n]*$"):
            create_app(Settings(database_url=url))
        with pytest.raises(SettingsError, match=r"^[^\n]*'of a fork'[^\n]*$"):
            migrations.upgrade(database)
        gc.collect()
        assert shape(database) == before


def test_a_receiver_whose_schema_was_taken_away_answers_503_and_recovers(make_receiver, empty_url):
    with opened(empty_url) as database:
        migrations.upgrade(database)
        receiver_ = make_receiver(empty_url)
        assert receiver_.call_back(b"before").status_code == 200
        take_schema_away(database)
        answers = [receiver_.call_back(b"during"), receiver_.client.get("/readyz")]
        assert [answer.status_code for answer in answers] == [503, 503]
        assert all("Retry-After" in answer.headers for answer in answers)
        assert receiver_.client.get("/healthz").status_code == 200
        migrations.upgrade(database)
        assert receiver_.client.get("/readyz").status_code == 200
        assert receiver_.call_back(b"during").json["duplicate"] is False


def receiver(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RECEIVER_DATABASE_URL": url}
    return subprocess.run(
        [sys.executable, "-m", "receiver", *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env=environment,
        cwd=Path("/"),
    )


def test_a_new_sqlite_file_is_for_its_owner_alone(tmp_path):
    """Whatever opens it first."""
    url, before = f"sqlite:///{tmp_path}/r.db", os.umask(0o022)
    try:
        with opened(url) as looked_at:
            assert migrations.current(looked_at) is None
        migrations.open_database(url).close()
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        path.name: "0o600" for path in tmp_path.iterdir()
    }


def test_opening_a_file_again_takes_no_lock_from_who_has_it_open(tmp_path):
    """Or another process that ends would take the log away from under him."""
    url = f"sqlite:///{tmp_path}/r.db"
    command = [sys.executable, "-m", "receiver", "tokens"]
    environment = {**os.environ, "RECEIVER_DATABASE_URL": url}

    def run(*words: str) -> str:
        return subprocess.run(
            [*command, *words], env=environment, check=True, capture_output=True, text=True
        ).stdout

    with opened(url) as first:
        migrations.upgrade(first)
        first.check_writable()
        migrations.open_database(url).close()
        run("list")
        with first.write() as session:
            session.execute(text("INSERT INTO nodes VALUES ('seven', 0, 0, 0, '')"))
        look = (
            "import sqlite3, sys; file = sqlite3.connect(sys.argv[1]);"
            " print(file.execute('SELECT name FROM nodes').fetchall())"
        )
        told = subprocess.run(
            [sys.executable, "-c", look, str(tmp_path / "r.db")], check=True, capture_output=True
        )
    assert told.stdout == b"[('seven',)]\n"
