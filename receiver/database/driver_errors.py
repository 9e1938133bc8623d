"""What an error of a database means: a row it will never take, a fault of ours, or an outage.

Decided by exact code, never by class: 22 holds faults of a pooler (22P03), 42 the statements that
it lost (42P05) and permissions, and psycopg says OperationalError, the class of passing faults, of
values that PostgreSQL will never take. What is not listed as the content's fault is not.
"""

import re

# Nothing of class 23: of all constraints none says what a row may hold but keys that we make.
CONTENT = {
    "22001": "a text is longer than its column",
    "22003": "a number is larger than its column",
    "22021": "a text holds NUL, or bytes that are no text",
    "22P05": "the database's encoding does not have a character",
    "54000": "a text is longer than an entry of its index may be",
    "SQLITE_TOOBIG": "a text or the row is longer than SQLite can hold",
}
CAUSES = {
    **dict.fromkeys(("53100", "SQLITE_FULL"), "the disk is full"),
    **dict.fromkeys(("25006", "SQLITE_READONLY"), "it is read-only"),
    **dict.fromkeys(("SQLITE_BUSY", "SQLITE_LOCKED"), "another process holds its lock"),
    "SQLITE_NOTADB": "its file is not SQLite's",
    "SQLITE_CANTOPEN": "its file cannot be opened",
    "53300": "all its connections are taken",
}
_NOT_CONNECTED = re.compile(
    "connection timeout|failed to resolve"
    # what the URL says
    "|invalid connection option|bad value for"
)
_BAD = "connection is bad: "
_ERRNO = re.compile(r"\[Errno -?[0-9]{1,9}\] ")
# Where the same statement would fail again, for one row at least: data, integrity, SQL, limits.
_STATEMENT = ("22", "23", "42", "54")
_SQLITE_STATEMENT = ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_RANGE")


def is_content(error: BaseException, data_error: type[Exception]) -> bool:
    """Whether what a row holds caused a driver's error. data_error -- the driver's own of it."""
    if _sent_code(error) is None:
        return isinstance(error, data_error)  # psycopg itself takes no NUL
    return _sent_code(error) in CONTENT


def is_statement(error: BaseException) -> bool:
    """Whether the database is there and refused a statement, so that other rows may pass."""
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_STATEMENT)
    return code(error).startswith(_SQLITE_STATEMENT)


def connection_failure(error: BaseException) -> str | None:
    """Return why no connection could be made, in libpq's words; None if it is another error."""
    if _sent_code(error) is not None:
        return None
    lines = str(error).strip().splitlines() or [""]
    if lines[0].startswith("Multiple connection attempts failed"):
        lines = lines[-1:]
    _, failed, reason = lines[0].rpartition(" failed: ")
    if failed:
        return reason.removeprefix("FATAL:").strip().rstrip(".")
    if lines[0].startswith(_BAD):
        return lines[0].removeprefix(_BAD)
    return _ERRNO.sub("", lines[0]) if _NOT_CONNECTED.match(lines[0]) else None


def code(error: BaseException) -> str:
    """Name an error in messages; the driver's own text could hold what was sent."""
    return _sent_code(error) or f"{type(error).__name__}, no answer"


def cause(error: BaseException) -> str:
    """Say why a database can do nothing now: in words, where the code has a common meaning."""
    name = code(error)
    return f"{CAUSES[name]} ({name})" if name in CAUSES else name


def _sent_code(error: BaseException) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None)
