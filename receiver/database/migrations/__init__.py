"""The schema's history, and bringing a database up to date; configured here, without a file.

Alembic is imported where it is needed: it is large, and a worker only looks at the revision.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, false, inspect, select, text, update
from sqlalchemy.orm import Session

from receiver.database.engine import Database, affected
from receiver.database.models import Event, JobRow, KeyVersion
from receiver.errors import SettingsError, StoreUnavailable

if TYPE_CHECKING:
    from alembic.config import Config


_LOCK = 0x4255_4C4B  # any number, the same on all nodes


def open_database(url: str, *, must_answer: bool = False) -> Database:
    """Open the database with its schema up to date.

    SQLite is brought up to date; on PostgreSQL a SettingsError names the command for it. A database
    that cannot be reached now is no error: the receiver starts, is not ready, and recovers; unless
    it `must_answer`.
    """
    database = Database(url)
    try:
        _bring_up_to_date(database)
    except SettingsError:
        database.close()
        raise
    except StoreUnavailable as error:
        if database.is_sqlite:
            raise SettingsError(f"RECEIVER_DATABASE_URL cannot be used: {error}") from None
        if must_answer:
            database.close()
            raise
    return database


def _bring_up_to_date(database: Database) -> None:
    database.prepare()
    revision = current(database)
    if revision == newest():
        return
    _require_known(revision)
    if not database.is_sqlite:
        raise SettingsError("the database's schema is old: run `receiver db upgrade`")
    upgrade(database)


def upgrade(database: Database) -> None:
    """Bring the schema up to date; one node at a time, the others wait.

    Raises SettingsError if the schema is of no release up to this one.
    """
    from alembic.command import upgrade as alembic_upgrade

    database.prepare()
    with database.write() as session, ExitStack() as stack:
        connection = session.connection()
        if connection.dialect.name == "postgresql":
            from receiver.database.postgresql import deadline

            stack.enter_context(deadline(connection.connection.driver_connection, None))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        _require_known(_revision(session))
        alembic_upgrade(_config(connection), "head")


def _require_known(revision: str | None) -> None:
    if not is_known(revision):
        raise SettingsError(
            f"the database's schema, {revision!r}, is not one of this receiver's: look at"
            " RECEIVER_DATABASE_URL, or install a later release"
        )


def check_ready(database: Database, timeout: float) -> None:
    """Commit a write that changes nothing, in one trip where the schema is current.

    Of the tables of callbacks nothing is read, but one that is locked or gone fails it.
    timeout -- as in `Database.write`. Raises StoreError.
    """
    nothing = update(KeyVersion).values(version=KeyVersion.version).where(*_NO_ROWS)
    with database.write(timeout) as session:
        if not affected(session, nothing.where(_AT_REVISION.bindparams(revision=newest()))):
            raise StoreUnavailable("the schema is not the one of this release")


def current(database: Database) -> str | None:
    """The revision a database is at; None if it was never upgraded."""
    with database.read() as session:
        return _revision(session)


def _revision(session: Session) -> str | None:
    if not inspect(session.connection()).has_table("alembic_version"):
        return None
    revision: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def is_known(revision: str | None) -> bool:
    """Whether this release has a migration to that revision; None is an empty database."""
    return revision is None or revision in _revisions()


def newest() -> str:
    """The revision this release was written for."""
    return max(_revisions())


def _revisions() -> set[str]:
    return {path.name[:4] for path in (_HERE / "versions").glob("[0-9]*.py")}


_HERE = Path(__file__).parent
_AT_REVISION = text("EXISTS (SELECT 1 FROM alembic_version WHERE version_num = :revision)")
_NO_ROWS = [~select(table.instance).where(false()).exists() for table in (Event, JobRow)]


def _config(connection: Connection) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
