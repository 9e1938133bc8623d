"""Rows looked up by a key, past SQLAlchemy's reading of parameters and results.

Whose token it is and which job, every request of the API asks: that takes a database some 10 µs,
and SQLAlchemy 90 to 110 around it. The connections, the pool and the statements are its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Dialect, Engine, Select
from sqlalchemy.exc import DBAPIError


class LookUp:
    """A statement whose rows come as the driver has them: SQLite's booleans are numbers."""

    def __init__(self, statement: Select[*tuple[Any, ...]]) -> None:
        self._statement = statement
        self._compiled: dict[str, Any] = {}  # by the dialect's name

    def fetch(
        self, engine: Engine, values: Mapping[str, Any], info: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Return the rows. info -- for the connection's record, first. Raises DBAPIError."""
        pooled, driver = engine.raw_connection(), engine.dialect.loaded_dbapi
        if getattr(pooled.driver_connection, "is_pooled", False):  # and is set up by BEGIN
            pooled.close()  # or each reader would hold one connection and wait for a second
            with engine.connect() as connection:
                return connection.execute(self._statement, values).all()
        try:
            pooled.info.update(info)
            cursor = pooled.cursor()
            cursor.execute(*self._call(engine.dialect, values))
            return cursor.fetchall()
        except driver.Error as error:
            is_gone = engine.dialect.is_disconnect(error, pooled.driver_connection, None)
            if is_gone:
                pooled.invalidate(error)
            raise DBAPIError.instance(
                None, None, error, driver.Error, connection_invalidated=is_gone
            ) from error
        finally:
            pooled.close()

    def _call(self, dialect: Dialect, values: Mapping[str, Any]) -> tuple[str, Any]:
        """Return the text and the parameters, as the driver takes them."""
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = self._statement.compile(dialect=dialect)
        if compiled.positiontup is None:
            return compiled.string, values
        return compiled.string, [values[name] for name in compiled.positiontup]
