"""What a database's URL may name besides a plain PostgreSQL: a pooler, options, an encoding."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import debian
import psycopg
import pytest
from builders import bulk
from cryptography.fernet import Fernet
from nodes import DEADLINE, eventually
from processes import free_port
from sqlalchemy import make_url, text

from receiver.cli.commands import run
from receiver.database.engine import Database
from receiver.jobs.queries import find_jobs

SERVERS = 4
CONFIGURATION = """
[databases]
* = host={host} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {servers}
server_login_retry = 1
"""
READ = ("/jobs", "/jobs?q=1&limit=1", "/jobs/1", "/jobs/1/events", "/jobs/1/errors", "/events")
READ += ("/events?kind=bulk_job&job=1", "/rejections", "/submissions", "/summary")


@pytest.fixture
def pooled(make_database, database_folder: Path) -> Iterator[str]:
    """The URL of Debian's PgBouncer before a database, which gives out servers by transaction."""
    url, port = make_url(make_database("postgresql18")), free_port()
    folder = database_folder / f"pgbouncer-{os.urandom(4).hex()}"
    folder.mkdir()
    owner = Path(str(url.query["host"])).owner()  # nobody else may use the server's socket
    shutil.chown(folder, owner)
    user = url.username or "postgres"
    file = folder / "pgbouncer.ini"
    file.write_text(
        CONFIGURATION.format(host=url.query["host"], user=user, port=port, servers=SERVERS)
    )
    command, as_user = [debian.program("pgbouncer"), str(file)], os.geteuid() == 0
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=debian.environment(),
            stdout=log,
            stderr=log,
            user=owner if as_user else None,
        )
    through = url.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)

    def is_up() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            psycopg.connect(plain(through)).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        eventually(is_up, "an answer of PgBouncer")
        yield through
    finally:
        process.terminate()
        process.wait(DEADLINE)


def plain(url: str) -> str:
    return url.replace("+psycopg", "", 1)


def test_through_a_pooler_of_transactions_all_callbacks_are_stored_and_read(pooled, make_receiver):
    receiver = make_receiver(pooled)
    with ExitStack() as stack:  # at once, so that each of the servers has statements of psycopg's
        for _ in range(SERVERS):
            other = stack.enter_context(psycopg.connect(plain(pooled)))
            for number in range(20):
                other.execute(f"PREPARE _pg3_{number} AS SELECT 1")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda id_: receiver.call_back(bulk(str(id_))), range(200)))
        assert {answer.status_code for answer in answers} == {200}
        for path in READ:
            asked = [pool.submit(receiver.get, path) for _ in range(10)]
            assert {(path, one.result().status_code) for one in asked} == {(path, 200)}
    assert receiver.get("/summary").json["jobs"]["succeeded"] == 200
    assert receiver.get("/events?kind=unreadable").json["events"] == []


def test_through_a_pooler_a_look_up_needs_one_connection(pooled):
    database = Database(pooled, connections=1)
    assert find_jobs(database, "1") == []
    database.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql18", "postgresql15", "pooled"])
@pytest.mark.parametrize("way", ["write", "transaction", "batch"])
def test_of_a_transaction_that_fails_nothing_is_kept(
    way, kind, make_database, make_receiver, request
):
    url = request.getfixturevalue("pooled") if kind == "pooled" else make_database(kind)
    receiver = make_receiver(url)
    database = receiver.services.database
    assert receiver.call_back(bulk("1")).status_code == 200

    def delete_and_fail() -> None:
        with getattr(database, way)() as writing:
            for table in ("events", "jobs", "tokens"):
                writing.execute(text(f"DELETE FROM {table}"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        delete_and_fail()
    assert receiver.get("/jobs/1").json["events"] == 1
    assert len(receiver.get("/events").json["events"]) == 1


def test_through_a_pooler_nothing_stays_set_on_a_server(pooled, make_receiver):
    receiver = make_receiver(pooled)
    for job in range(20):
        receiver.call_back(bulk(str(job)))
        receiver.get(f"/jobs/{job}")
    with psycopg.connect(plain(pooled), autocommit=True) as other:
        sources = "SELECT count(*) FROM pg_settings WHERE source = 'session' AND name LIKE '%time%'"
        (count,) = other.execute(sources).fetchone() or (None,)
        assert count == 0
        assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        advisory = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert other.execute(advisory).fetchone() == (0,)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("db upgrade", "the schema is at"),
        ("doctor", "can be reached and commits"),
        ("instances add gooddata", "gooddata added"),
        ("audit --verify", "nothing was changed"),
        ("prune", "nothing deleted"),
        ("reconcile", "checked 0 jobs"),
        ("watch --once", ""),
    ],
)
def test_commands_work_through_a_pooler(words, says, pooled, monkeypatch, capfd):
    monkeypatch.setenv("RECEIVER_DATABASE_URL", pooled)
    monkeypatch.setenv("RECEIVER_ENCRYPTION_KEYS", Fernet.generate_key().decode())
    assert run(words.split()) in (0, 1)
    out, err = capfd.readouterr()
    assert says in out, err
    assert "cannot" not in err


def own_database(server: str, url: Callable[[str], str], made: str) -> Iterator[str]:
    name = f"own_{os.urandom(6).hex()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {made}")
    yield url(make_url(server).set(database=name).render_as_string(hide_password=False))
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["LATIN1", "SQL_ASCII", "EUC_JP"])
def foreign(request, postgresql18) -> Iterator[tuple[str, str]]:
    """A database in another encoding, and that."""
    made = f"ENCODING {request.param} LOCALE 'C' TEMPLATE template0"
    for url in own_database(postgresql18, lambda url: url, made):
        yield url, request.param


@pytest.mark.parametrize("words", ["db upgrade", "serve", "instances list", "db current"])
def test_a_database_in_another_encoding_is_refused_with_one_line(
    words, foreign, monkeypatch, capfd
):
    url, encoding = foreign
    monkeypatch.setenv("RECEIVER_DATABASE_URL", url)
    assert run(words.split()) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"the database's encoding is {encoding}; UTF8 is needed" in err


def test_a_connection_in_another_encoding_is_refused(make_database, monkeypatch, capfd):
    url = make_url(make_database("postgresql18")).update_query_dict({"client_encoding": "latin1"})
    rendered = url.render_as_string(hide_password=False)
    monkeypatch.setenv("RECEIVER_DATABASE_URL", rendered)
    assert run(["instances", "list"]) == 2
    assert "client_encoding; only UTF8 can be used" in capfd.readouterr().err


def test_what_the_environment_says_of_encodings_changes_no_text(
    make_database, make_receiver, monkeypatch
):
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    receiver = make_receiver(make_database("postgresql18"))
    assert receiver.call_back(bulk("1", objectName="€uro")).status_code == 200
    assert receiver.get("/jobs/1").json["object"] == "€uro"


@pytest.fixture
def optional(postgresql18) -> Iterator[Callable[[str], str]]:
    """Make the URL of an empty database with such `options`."""
    made = own_database(postgresql18, lambda url: url, "")
    url = next(made)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
    yield lambda options: f"{url}{'&' if '?' in url else '?'}options={quote(options)}"
    next(made, None)


def test_the_options_of_a_url_hold(optional, make_receiver, monkeypatch):
    url = optional("-c search_path=other -c statement_timeout=77s -c application_name=ours")
    monkeypatch.setenv("RECEIVER_DATABASE_URL", url)
    assert run(["db", "upgrade"]) == 0
    receiver = make_receiver(url.replace("postgresql:", "postgresql+psycopg:", 1))
    assert receiver.call_back(bulk("1")).status_code == 200
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM other.jobs").fetchone() == (1,)
        assert connection.execute("SELECT to_regclass('public.jobs')").fetchone() == (None,)
    database = receiver.services.database
    for begun in (database.snapshot(), database.transaction()):
        with begun as connection:
            shown = connection.exec_driver_sql("SHOW statement_timeout").scalar()
            assert shown == "77s"
            # What the URL leaves open is ours.
            limit = "SHOW idle_in_transaction_session_timeout"
            assert connection.exec_driver_sql("SHOW application_name").scalar() == "ours"
    with database.transaction() as connection:
        assert connection.exec_driver_sql(limit).scalar() == "5s"


def test_parameters_of_libpq_in_a_url_hold(make_database, make_receiver):
    url = make_url(make_database("postgresql18"))
    set_ = url.update_query_dict({"application_name": "ours", "connect_timeout": "29"})
    receiver = make_receiver(set_.render_as_string(hide_password=False))
    assert receiver.call_back(bulk("1")).status_code == 200
    with receiver.services.database.snapshot() as connection:
        driver = connection.connection.driver_connection
        parameters = driver.info.get_parameters()
        assert parameters["application_name"] == "ours"
        assert parameters["connect_timeout"] == "29"
        assert parameters["keepalives_idle"] == "5"
