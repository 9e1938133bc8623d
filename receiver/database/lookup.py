"""Statements that read, past SQLAlchemy's reading of parameters and results.

A database takes 10 to 500 µs for what the API asks, and SQLAlchemy 90 to 300 around each statement,
the more the more values it has. The connections, the pool and the statements are its own.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from receiver.database.page import Selection

NO_VALUES: Mapping[str, Any] = {}


class LookUp:
    """A statement whose rows come as the driver has them: SQLite's booleans are numbers.

    Lists among its values are arrays on PostgreSQL, and JSON on SQLite.
    """

    def __init__(self, statement: Selection) -> None:
        self._statement = statement
        self._compiled: dict[str, Any] = {}  # by the dialect's name

    def fetch(
        self, connection: Connection, values: Mapping[str, Any] = NO_VALUES
    ) -> Sequence[Sequence[Any]]:
        """Return the rows as the connection's transaction sees them. Raises DBAPIError."""
        return self._fetch(connection.connection, connection.dialect, values)

    def fetch_alone(self, engine: Engine, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Return the rows, of a connection of the pool. Raises DBAPIError."""
        pooled = engine.raw_connection()  # half of what an SQLAlchemy Connection takes
        try:
            if not getattr(pooled.driver_connection, "is_pooled", False):
                return self._fetch(pooled, engine.dialect, values)
        finally:
            pooled.close()  # or each reader would hold one connection and wait for a second
        with engine.connect() as connection, connection.begin():  # which sets up a pooler's
            return self.fetch(connection, values)

    def _fetch(
        self, pooled: PoolProxiedConnection, dialect: Dialect, values: Mapping[str, Any]
    ) -> Sequence[Sequence[Any]]:
        if set_deadline := pooled.info.get("set_deadline"):
            set_deadline()
        driver, cursor = dialect.loaded_dbapi, pooled.cursor()
        try:
            cursor.execute(*self._call(dialect, values))
            return cursor.fetchall()
        except driver.Error as error:
            is_gone = dialect.is_disconnect(error, pooled.driver_connection, None)
            if is_gone:
                pooled.invalidate(error)
            raise DBAPIError.instance(
                None, None, error, driver.Error, connection_invalidated=is_gone
            ) from error

    def _call(self, dialect: Dialect, values: Mapping[str, Any]) -> tuple[str, Any]:
        """Return the text and the parameters, as the driver takes them."""
        if dialect.name not in self._compiled:
            # Constants in a list become parameters of their own.
            options = {"render_postcompile": True}
            compiled = self._statement.compile(dialect=dialect, compile_kwargs=options)
            self._compiled[dialect.name] = compiled.string, compiled.params, compiled.positiontup
        text, constants, order = self._compiled[dialect.name]
        named = {**constants, **values}
        if order is None:
            return text, named
        return text, [_for_sqlite(named[name]) for name in order]


def _for_sqlite(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value
