"""Reading what is asked for most: one statement outside any transaction, without the ORM.

What it saves over a Session is measured: opening one costs more than a look-up by key, and on
PostgreSQL BEGIN, ROLLBACK and the ping before them are three journeys more.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import URL, Boolean, Engine, String, create_engine, event, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import SelectBase
from sqlalchemy.sql.functions import FunctionElement

from receiver.database.sqlite_file import SQLiteFile
from receiver.errors import TooSlow

PATIENCE_SECONDS = 3.0
# For a server that hangs and so does not end a statement itself. A question is asked at most twice,
# with a connection made in between, and whoever asks shall have an answer within 10 s.
HUNG_SECONDS = PATIENCE_SECONDS + 0.4
# Statements are written for the index that they shall follow. The planner is kept from better
# ideas: a plan made for any value would rather read the list in its order, past all other rows,
# because neighbours share pages. So rows count here and not pages. And since the plan is the same
# for all values, it is made once: left to itself PostgreSQL makes some plans anew each time, which
# takes three times as long as to follow them.
_SESSION = {
    "statement_timeout": f"{PATIENCE_SECONDS * 1000:.0f}",
    "random_page_cost": "0",
    "seq_page_cost": "0",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
_TOO_SLOW = ("57014", "SQLITE_INTERRUPT")
_STEPS = 10_000  # of SQLite's machine between two looks at the clock; some 0.2 ms


class Statement:
    """A SELECT that is compiled once. many -- whether it may give more than a few rows.

    SQLite hands Python's lock over for each row: with other threads at work, a page of 50 rows
    waits 50 times for its turn. So it packs many rows into one, as JSON; they hold no bytes then.
    """

    def __init__(self, asked: SelectBase, *, many: bool = False) -> None:
        self.packed = many
        whole = select(func.json_group_array(func.json_array(*asked.subquery().c)))
        sqlite = sqlite_dialect(paramstyle="named")
        self.sqlite = str((whole if many else asked).compile(dialect=sqlite))
        psycopg = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
        self.postgresql = str(asked.compile(dialect=psycopg))


class Contains(FunctionElement[bool]):
    """Whether a text holds another, as it stands; on SQLite LIKE would take `a` for `A`."""

    inherit_cache = True
    type = Boolean()


class Hex(FunctionElement[str]):
    """Bytes as text; JSON holds none."""

    inherit_cache = True
    type = String()


@compiles(Contains)
def _contains(element: Any, compiler: Any, **how: Any) -> str:  # noqa: ANN401 - SQLAlchemy's
    name = "instr" if compiler.dialect.name == "sqlite" else "strpos"
    return f"{name}({compiler.process(element.clauses, **how)}) > 0"


@compiles(Hex)
def _hex(element: Any, compiler: Any, **how: Any) -> str:  # noqa: ANN401 - SQLAlchemy's
    value = compiler.process(element.clauses, **how)
    return (
        f"lower(hex({value}))" if compiler.dialect.name == "sqlite" else f"encode({value}, 'hex')"
    )


Rows: TypeAlias = Callable[[Statement, Mapping[str, Any]], Sequence[Sequence[Any]]]


class Reader:
    """Connections that only read, in autocommit; threads share them.

    connect_args -- for PostgreSQL's driver. file -- that SQLite is to read.
    """

    def __init__(
        self,
        url: URL,
        connections: int,
        connect_args: Mapping[str, Any],
        file: SQLiteFile | None = None,
    ) -> None:
        self._sqlite = url.get_backend_name() == "sqlite"
        told = [f"-c {name}={value}" for name, value in _SESSION.items()]
        options = " ".join([connect_args.get("options", ""), *told])
        theirs = {**connect_args, "options": options, "autocommit": True}
        self._engine: Engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=3,
            pool_use_lifo=True,  # few connections, whose statements are prepared already
            pool_reset_on_return=None,  # there is no transaction to end
            hide_parameters=True,
            connect_args={"isolation_level": None} if self._sqlite else theirs,
        )
        if file:
            event.listen(self._engine, "do_connect", file.before_connect)
            event.listen(self._engine, "connect", _prepare_sqlite)
        else:
            from receiver.database.driver import make_impatient

            make_impatient(self._engine, HUNG_SECONDS)

    def rows(self, statement: Statement, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Give all rows. Raises TooSlow after PATIENCE_SECONDS, or SQLAlchemy's errors."""
        try:
            return self._rows(statement, values)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            self._engine.dispose()  # those that lay idle are most likely broken too
        return self._rows(statement, values)

    def _rows(self, statement: Statement, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        fault = self._engine.dialect.loaded_dbapi.Error
        try:
            connection = self._engine.raw_connection()
        except fault as error:
            raise DBAPIError.instance(None, None, error, fault) from error
        try:
            ask = self._ask_sqlite if self._sqlite else self._ask_postgresql
            return ask(connection.driver_connection, statement, values)
        except fault as error:
            told = DBAPIError.instance(None, None, error, fault)
            code = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None)
            if code in _TOO_SLOW:
                raise TooSlow("the answer takes too long: narrow the question") from told
            if getattr(connection.driver_connection, "broken", False):
                connection.invalidate()
                told.connection_invalidated = True
            raise told from error
        except BaseException:
            if not self._sqlite:  # where closing may checkpoint, and a statement starts afresh
                connection.invalidate()
            raise
        finally:
            connection.close()

    @staticmethod
    def _ask_sqlite(
        connection: Any,  # noqa: ANN401 - sqlite3's
        statement: Statement,
        values: Mapping[str, Any],
    ) -> Sequence[Sequence[Any]]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        connection.set_progress_handler(partial(_is_past, deadline), _STEPS)
        rows: Sequence[Sequence[Any]] = connection.execute(statement.sqlite, values).fetchall()
        if not statement.packed:
            return rows
        return msgspec.json.decode(rows[0][0], type=list[list[Any]])

    @staticmethod
    def _ask_postgresql(
        connection: Any,  # noqa: ANN401 - psycopg's
        statement: Statement,
        values: Mapping[str, Any],
    ) -> Sequence[Sequence[Any]]:
        with connection.cursor(binary=True) as cursor:
            rows: Sequence[Sequence[Any]] = cursor.execute(statement.postgresql, values).fetchall()
        return rows

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._engine.dispose()


def _is_past(deadline: float) -> bool:
    return time.monotonic() > deadline


def _prepare_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - sqlite3's
    for pragma in ("query_only=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}").close()
