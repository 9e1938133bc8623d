"""What a command prints: JSON for scripts, columns for people, and errors as one line and a code.

The exit codes are the same for every command; a script tells from them what to do next.
"""

import errno
import json
import os
import re
import shlex
import sys
import traceback
import unicodedata
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import click
from msgspec.structs import asdict

from receiver.client import ClientError, CredentialsRejected, Job, RequestRejected
from receiver.errors import (
    AlreadyThere,
    BadParameter,
    CredentialError,
    NotFound,
    ReceiverError,
    SettingsError,
    StoreRefused,
)
from receiver.lib.clock import iso


class Exit(IntEnum):
    """Exit codes."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    RECORDS_FAILED = 3
    STILL_RUNNING = 4
    CREDENTIALS = 5
    UNREACHABLE = 6
    SOFTWARE = 70  # as in sysexits.h: a fault of this program
    OUTPUT_FAILED = 74  # as there: what was printed did not get where it should
    INTERRUPTED = 130  # as of a program that SIGINT ended
    PIPE_CLOSED = 141  # as of one that SIGPIPE ended


_BY_OUTCOME = {
    "succeeded": Exit.OK,
    "failed": Exit.JOB_FAILED,
    "cancelled": Exit.JOB_FAILED,
    "lost": Exit.JOB_FAILED,
    "partial": Exit.RECORDS_FAILED,
    "pending": Exit.STILL_RUNNING,
    "unknown": Exit.STILL_RUNNING,
}

# What was typed may be a file's content; a path is shorter.
_LONG_WORD = re.compile(r"(\S{200})\S{800,}")
# Errors of nothing but writing; they name no file where that is standard output.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)
# What whoever types the command has to put right.
_MISTAKES = (
    RequestRejected,
    SettingsError,
    CredentialError,
    AlreadyThere,
    BadParameter,
    NotFound,
    StoreRefused,
)


class Failure(Exception):
    """Why a command ends without its result; `code` is for scripts, `message` for people."""

    def __init__(self, exit_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.code, self.message = exit_code, code, message


def exit_code_of(outcome: str) -> int:
    """Return the exit code of a job's outcome."""
    return _BY_OUTCOME.get(outcome, Exit.STILL_RUNNING)


def exit_with_outcome(job: Job, waited: int) -> NoReturn:
    """Exit as the outcome says; where the wait was over, say how to go on waiting."""
    code = exit_code_of(job.outcome)
    if code == Exit.STILL_RUNNING and waited:
        again = ["receiver", "job", job.id, "--instance", job.instance, "--wait", str(waited)]
        click.echo(f"still in progress; go on waiting with: {shlex.join(again)}", err=True)
    sys.exit(code)


def describe(job: Job) -> str:
    """Describe a job in a few lines."""
    records = ", ".join(f"{plain(number)} {name}" for name, number in asdict(job.records).items())
    lines = [
        f"job {plain(job.id)} of {job.instance}: {job.outcome} ({plain(job.status)})",
        f"  records          {records}",
    ]
    lines += [
        f"  {name.replace('_', ' '):<16} {plain(getattr(job, name))}"
        for name in ("object", "direction", "file", "message", "learnt_by", "ended_at")
        if getattr(job, name) is not None
    ]
    if job.files_expire_at:
        lines.append(f"  fetch files by   {job.files_expire_at} (assumed)")
    if job.conflict:
        lines.append("  conflict         two different endings were reported")
    return "\n".join(lines)


def explain(error: BaseException) -> Failure:
    """Return what to print for any exception, and the exit code: the only place that decides."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError):
        return _system_failure(error)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Failure(Exit.INTERRUPTED, "interrupted", "interrupted")
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        error = click.UsageError("an argument is not valid UTF-8")
    if isinstance(error, click.ClickException):
        return Failure(Exit.USAGE, "usage", _usage(error))
    if isinstance(error, ClientError | ReceiverError):
        exit_code = Exit.USAGE if isinstance(error, _MISTAKES) else Exit.UNREACHABLE
        exit_code = Exit.CREDENTIALS if isinstance(error, CredentialsRejected) else exit_code
        reason = error.code if isinstance(error, ClientError) else error.reason
        return Failure(exit_code, reason, str(error))
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    text = f"this is a fault of the program (at {place}), please report it"
    return Failure(Exit.SOFTWARE, "internal", text)


def _system_failure(error: OSError) -> Failure:
    if isinstance(error, BrokenPipeError):
        return Failure(Exit.PIPE_CLOSED, "pipe_closed", "")  # whoever reads has seen enough
    if error.filename is None:
        does = "write the output" if error.errno in _OF_WRITING else "read or write"
        return Failure(Exit.OUTPUT_FAILED, "output", f"cannot {does}: {error.strerror or error}")
    return Failure(
        Exit.USAGE, "unreadable_file", f"{os.fsdecode(error.filename)}: {error.strerror}"
    )


def report(failure: Failure, *, json_: bool) -> None:
    """Print a failure: one line on standard error, or JSON on standard output."""
    message = plain(_LONG_WORD.sub(r"\1…", " ".join(failure.message.split())))
    if not message:
        return
    if json_:
        click.echo(json.dumps({"error": {"code": failure.code, "detail": message}}))
    else:
        click.echo(f"receiver: {message}", err=True)


def _usage(error: click.ClickException) -> str:
    """Return click's message with what is wrong first, and where to read on."""
    context = getattr(error, "ctx", None)
    text = error.format_message().rstrip(".")
    param = getattr(error, "param", None)
    if param is not None and context and not isinstance(error, click.MissingParameter):
        text = f"{param.get_error_hint(context).replace(chr(39), '')}: {error.message.rstrip('.')}"
    elif text[:2].istitle() and text[1:2].islower():
        text = text[0].lower() + text[1:]
    text = re.sub("a valid (integer|float) range", "a number", text)
    if not context:
        return text
    return f"{text}{' See' if text.endswith('?') else '; see'} `{context.command_path} --help`"


def warn(message: str) -> None:
    """Print a warning on standard error."""
    click.echo(f"warning: {message}", err=True)


def confirm(question: str, *, yes: bool, needed: bool = True) -> None:
    """Ask on a terminal before something is deleted; elsewhere require --yes, if that is `needed`.

    Raises click.Abort or Failure.
    """
    if yes:
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        if not click.confirm(question, err=True):
            raise Failure(Exit.USAGE, "not_confirmed", "nothing was done")
    elif needed:
        raise Failure(Exit.USAGE, "not_confirmed", f"{question} Without a terminal, add --yes")


def count(number: int, noun: str) -> str:
    """Write a number and its noun: `1 body`, `2 bodies`, `2 addresses`."""
    if number == 1:
        return f"1 {noun}"
    ending = {"y": "ies", "s": "ses"}.get(noun[-1], f"{noun[-1]}s")
    return f"{number} {noun[:-1]}{ending}"


def show(content: object, text: str, json_: bool) -> None:
    """Print an answer: `content` as JSON, or `text`."""
    click.echo(json.dumps(content, indent=2) if json_ else text)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Write rows under their column names; what a stranger sent cannot steer the terminal."""
    if not rows:
        return "none"
    cells = [[plain(row[column]) for column in columns] for row in rows]
    heads = [column.replace("_", " ").upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (heads, *cells)
    )
    return "\n".join(lines)


def plain(value: object) -> str:
    """Write a value on one line, without control characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(plain, value))
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") else character
        for character in str(value)
    )


def with_iso_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write the times of rows read from the database as the API does."""
    return [
        {name: iso(value) if name.endswith("_at") else value for name, value in row.items()}
        for row in rows
    ]
