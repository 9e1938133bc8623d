"""Whatever a database refuses, a callback is answered 200 only with its job, or 503 and not kept.

But for what a row holds, where the database would say no for ever: that is kept byte for byte.
"""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from builders import bulk
from sqlalchemy import Engine, event

CONTENT = ("22001", "22003", "22021", "22P05", "54000", "SQLITE_TOOBIG")
# All that PostgreSQL has but success and warnings; some that come from poolers in its name.
SQLSTATES = [
    *sorted(
        state
        for error in vars(psycopg.errors).values()
        if (state := str(getattr(error, "sqlstate", None) or "00")) and state[:2] > "02"
    ),
    *("08P02", "26001", "99999"),
]
SQLITE_CODES = [
    *("SQLITE_TOOBIG", "SQLITE_MISMATCH", "SQLITE_RANGE", "SQLITE_ERROR", "SQLITE_SCHEMA"),
    *("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_CHECK", "SQLITE_CONSTRAINT_NOTNULL"),
    *("SQLITE_CONSTRAINT_TRIGGER", "SQLITE_CONSTRAINT_FOREIGNKEY", "SQLITE_CONSTRAINT_PRIMARYKEY"),
    *("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_READONLY"),
    *("SQLITE_READONLY_DBMOVED", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CANTOPEN"),
    *("SQLITE_NOMEM", "SQLITE_PERM", "SQLITE_AUTH", "SQLITE_PROTOCOL", "SQLITE_INTERNAL"),
]
FAULTY = """
CREATE TABLE fault (code text);
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM fault) THEN
        RAISE EXCEPTION USING ERRCODE = (SELECT code FROM fault);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.id LIKE 'bad%')
EXECUTE FUNCTION fail();
"""

Fail = Callable[[str | None], None]  # with that code at each new job called bad...; None: no more


def sqlite_error(code: str) -> sqlite3.Error:
    kinds = {"SQLITE_TOOBIG": sqlite3.DataError, "SQLITE_RANGE": sqlite3.InterfaceError}
    integrity = code.startswith(("SQLITE_CONSTRAINT", "SQLITE_MISMATCH"))
    kind = sqlite3.IntegrityError if integrity else kinds.get(code, sqlite3.OperationalError)
    error = kind("injected")
    error.sqlite_errorname = code
    return error


@contextmanager
def failing_sqlite() -> Iterator[Fail]:
    """SQLite's own answers cannot be chosen, so its driver gives them."""
    codes: list[str | None] = [None]

    class Cursor(sqlite3.Cursor):
        def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
            bad = any(str(value).startswith("bad") for row in rows for value in row)
            if codes[-1] and "INTO jobs" in statement and bad:
                raise sqlite_error(codes[-1])
            return super().executemany(statement, rows)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> sqlite3.Cursor:
            return super().cursor(factory)

    def injected(_dialect: Any, _record: Any, _words: Any, named: dict[str, Any]) -> None:
        named["factory"] = Connection

    event.listen(Engine, "do_connect", injected)
    yield codes.append
    event.remove(Engine, "do_connect", injected)


@contextmanager
def failing_postgresql(url: str) -> Iterator[Fail]:
    with psycopg.connect(url.replace("+psycopg:", ":", 1), autocommit=True) as connection:
        connection.execute(FAULTY)

        def fail(code: str | None) -> None:
            connection.execute("DELETE FROM fault")
            if code is not None:
                connection.execute("INSERT INTO fault VALUES (%s)", [code])

        yield fail


@pytest.fixture(params=["sqlite", "postgresql18", "postgresql15"])
def faulty(request, make_receiver, make_database) -> Iterator[tuple[Any, Fail, list[str]]]:
    url = make_database(request.param)
    is_sqlite = request.param == "sqlite"
    with failing_sqlite() if is_sqlite else failing_postgresql(url) as fail:
        yield make_receiver(url), fail, SQLITE_CODES if is_sqlite else SQLSTATES


def events(receiver) -> list[dict[str, Any]]:
    return receiver.get("/events?limit=1000").json["events"]


def test_a_fault_of_ours_is_503_and_nothing_is_kept_until_the_same_body_comes_again(faulty):
    receiver, fail, codes = faulty
    ours = [code for code in codes if code not in CONTENT]
    for code in ours:
        fail(code)
        answer = receiver.call_back(bulk("bad"))
        assert (code, answer.status_code) == (code, 503)
        assert int(answer.headers["Retry-After"]) > 0
        assert (code, events(receiver)) == (code, [])
    fail(None)
    assert receiver.call_back(bulk("bad")).json["duplicate"] is False
    assert receiver.get("/jobs/bad").json["outcome"] == "succeeded"


def test_content_that_the_database_will_never_take_is_kept_byte_for_byte(faulty):
    receiver, fail, codes = faulty
    for code in sorted(set(codes) & set(CONTENT)):
        fail(code)
        answer = receiver.call_back(bulk(f"bad-{code}"))
        assert (code, answer.status_code) == (code, 200)
        kept = f"/events/{answer.json['event']}"
        assert receiver.get(kept).json["kind"] == "unreadable"
        assert receiver.get(f"{kept}/body").data == bulk(f"bad-{code}")


@pytest.mark.parametrize(
    "codes", [("22021", "SQLITE_TOOBIG"), ("42P05", "SQLITE_CONSTRAINT_CHECK")]
)
def test_a_refused_callback_fails_none_of_its_neighbours(faulty, codes):
    receiver, fail, known = faulty
    (code,) = set(codes) & set(known)
    fail(code)
    ids = [f"{'bad' if number % 10 == 0 else 'good'}-{number}" for number in range(60)]
    with ThreadPoolExecutor(16) as threads:  # so that they share batches
        answers = list(threads.map(lambda id_: receiver.call_back(bulk(id_)).status_code, ids))
    for id_, status in zip(ids, answers, strict=True):
        assert (id_, status) == (id_, 503 if id_ < "c" and code not in CONTENT else 200)
    jobs = {job["id"] for job in receiver.get("/jobs?limit=100").json["jobs"]}
    assert jobs == {id_ for id_ in ids if id_ > "c"}
