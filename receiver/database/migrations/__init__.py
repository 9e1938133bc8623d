"""The schema's history, and bringing a database up to date; configured here, without a file.

Alembic is imported where it is needed: it is large, and a worker only looks at the revision.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, inspect, text
from sqlalchemy.orm import Session

from receiver.database.engine import Database
from receiver.errors import SettingsError, StoreUnavailable

log = structlog.get_logger()

_LOCK = 0x4255_4C4B  # any number, the same on all nodes


def opened(url: str, *, must_answer: bool = False) -> Database:
    """Open the database with its schema up to date.

    SQLite is brought up to date; on PostgreSQL a SettingsError names the command for it. A database
    that cannot be reached now is no error: the receiver starts, is not ready, and recovers; unless
    it `must_answer`.
    """
    database = Database(url)
    try:
        _bring_up(database)
    except SettingsError:
        database.close()
        raise
    except StoreUnavailable as error:
        if database.is_sqlite:
            raise SettingsError(f"RECEIVER_DATABASE_URL cannot be used: {error}") from None
        if must_answer:
            database.close()
            raise
        log.warning("the database cannot be reached", error=str(error))
    return database


def _bring_up(database: Database) -> None:
    database.prepare()
    found = current(database)
    if _is_ahead(found) or found == newest():
        return
    if not database.is_sqlite:
        raise SettingsError("the database's schema is old: run `receiver db upgrade`")
    upgrade(database)


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema up to `revision`; one node at a time, the others wait.

    That of a later release stays as it is. Raises SettingsError for one that nobody knows.
    """
    from alembic.command import upgrade as alembic_upgrade

    database.prepare()
    with database.write() as session, ExitStack() as stack:
        connection = session.connection()
        if connection.dialect.name == "postgresql":
            from receiver.database.driver import unhurried

            stack.enter_context(unhurried(connection))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if not _is_ahead(_found(session)):
            alembic_upgrade(_config(connection), revision)


def _is_ahead(found: str | None) -> bool:
    """Whether the schema is of a later release. Raises SettingsError if it is of none."""
    if not is_newer(found):
        return False
    if not serves(found):
        raise SettingsError(f"the database's schema, {found!r}, is not one of the receiver's")
    log.warning("the schema is of a newer release", schema=found, needed=newest())
    return True


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to `revision`; what the newer tables held is lost."""
    from alembic.command import downgrade as alembic_downgrade

    with database.write() as session:
        alembic_downgrade(_config(session.connection()), revision)


def is_current(database: Database) -> bool:
    """Whether this release can work with the schema."""
    return serves(current(database))


def serves(revision: str | None) -> bool:
    """Whether this release works with a schema of that revision: its own, or a later one.

    A step only ever adds; what is taken away goes when no release that uses it is left. So nodes
    may be replaced one by one after `receiver db upgrade`, and the release before be brought back.
    """
    return revision is not None and revision.isdigit() and revision >= newest()


def current(database: Database) -> str | None:
    """The revision a database is at; None if it was never upgraded."""
    with database.read() as session:
        return _found(session)


def _found(session: Session) -> str | None:
    if not inspect(session.connection()).has_table("alembic_version"):
        return None
    found: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def is_newer(revision: str | None) -> bool:
    """Whether a database at this revision was upgraded for a release that came later."""
    return revision is not None and revision not in _known()


def newest() -> str:
    """The revision this release was written for."""
    return max(_known())


def _known() -> set[str]:
    return {path.name[:4] for path in (_HERE / "versions").glob("[0-9]*.py")}


_HERE = Path(__file__).parent


def _config(connection: Connection) -> Any:  # noqa: ANN401 - Alembic's
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
