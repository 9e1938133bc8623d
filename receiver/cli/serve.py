"""`serve` and `db`, and opening the database for all commands that work on it."""

import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click
import structlog

from receiver.cli.options import json_option, read_address
from receiver.cli.output import Exit, Failure, confirm, plain, show, warn
from receiver.database import audit, migrations
from receiver.database.engine import Database, Session
from receiver.errors import StoreError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib.clock import now_ms
from receiver.lib.http_client import check_environment
from receiver.settings import Settings

_ADD_KEY = "`receiver instances add NAME --signature-key-file FILE`, or `receiver keys add`"

log = structlog.get_logger()


@contextmanager
def open_database(
    *, creates_file: bool = False, must_answer: bool = True
) -> Iterator[tuple[Settings, Database]]:
    """Open the database that the settings name, its schema up to date.

    creates_file -- whether an SQLite file that is not there is made; else that is a Failure.
    must_answer -- whether a database that cannot be reached now is a StoreError.
    """
    settings = Settings.from_env(os.environ)
    missing = _missing_file(settings, creates_file=creates_file)
    database = migrations.open_database(settings.database_url, must_answer=must_answer)
    if missing:
        log.info("a new database was made", file=str(missing))
    with closing(database):
        yield settings, database


def _missing_file(settings: Settings, *, creates_file: bool) -> Path | None:
    """Return the SQLite file's path if it does not exist.

    Raises Failure if its folder does not, or if nothing makes the file.
    """
    file = Database(settings.database_url).file
    if file is None or file.exists():
        return None
    if not file.parent.is_dir():
        text = f"there is no folder {file.parent} for the database: look at RECEIVER_DATABASE_URL"
        raise Failure(Exit.USAGE, "no_folder", text)
    if not creates_file:
        remedy = "set RECEIVER_DATABASE_URL, or make one with `receiver db upgrade`"
        raise Failure(Exit.USAGE, "no_database", f"there is no database at {file}: {remedy}")
    return file


def remove(
    what: str,
    name: str,
    find: Callable[[Session, str], object],
    delete: Callable[[Session, str], None],
    consequence: str,
    *,
    yes: bool,
) -> None:
    """Delete what is there by a name, once whoever types it has agreed to the consequence.

    what -- its kind, in the audit log. find -- raises NotFound if there is none: nobody is asked
    then.
    """
    with open_database() as (_, database):
        with database.read() as session:
            find(session, name)
        confirm(f"Remove {plain(name)}? {consequence}", yes=yes)
        with database.write() as session:
            delete(session, name)
            record_action(session, f"{what}.remove", name)
    click.echo(f"{plain(name)} removed")


def repeat(one_pass: Callable[[], bool], every: int | None) -> bool:
    """Do something once and return whether it went well; or again and again, `every` so many s.

    Raises StoreError if it is done once; else that is only warned of.
    """
    while every is not None:
        try:
            one_pass()
        except StoreError as error:
            warn(str(error))
        time.sleep(every)
    return one_pass()


def record_action(session: Session, action: str, subject: str, detail: str = "") -> None:
    """Record in the audit what this command does, last in the transaction that does it."""
    entry = {"actor": actor(), "action": action, "subject": subject, "detail": detail}
    audit.record(session, at=now_ms(), **entry)


def actor() -> str:
    """Return who runs this command, as the audit log names them."""
    try:
        return f"cli:{pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:  # in a container, a user may have no name
        return f"cli:{os.geteuid()}"


@click.command()
@click.option(
    "--bind",
    default="127.0.0.1:8000",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to listen; or unix:PATH.",
)
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes.  [default: 2]")
def serve(bind: str, workers: int | None) -> None:
    """Run the receiver."""
    check_environment()
    # A wrong setting stops the start here, with one line, and not in each worker.
    Settings.from_env(os.environ)
    if not bind.startswith("unix:"):
        read_address(bind)
    elif not (folder := Path(bind.removeprefix("unix:")).absolute().parent).is_dir():
        raise click.UsageError(f"--bind {bind}: there is no folder {folder}")
    with open_database(creates_file=True, must_answer=False) as opened:
        _warn_without_keys(*opened)
    from receiver import server  # gunicorn is large, and no other command needs it

    server.serve(bind, workers)


def _warn_without_keys(settings: Settings, database: Database) -> None:
    keys = Keys(SecretBox(settings.encryption_keys), settings.default_keys)
    with suppress(StoreError):  # it may be there later
        if not any(held.keys for held in keys.refresh(database).instances.values()):
            log.warning("there is no signature key: every callback is rejected", remedy=_ADD_KEY)


@click.group()
def db() -> None:
    """Bring the database's schema up to date, or look at it."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema up to date."""
    settings = Settings.from_env(os.environ)
    missing = _missing_file(settings, creates_file=True)
    with closing(Database(settings.database_url)) as database:
        migrations.upgrade(database)
        place = f" of the new database {missing}" if missing else ""
        click.echo(f"the schema{place} is at {migrations.current(database)}")


@db.command("current")
@json_option
def db_current(json_: bool) -> None:
    """Show which schema the database has and which this release needs; exit code 2 if it is old."""
    settings = Settings.from_env(os.environ)
    _missing_file(settings, creates_file=False)
    with closing(Database(settings.database_url)) as database:
        revision, needed = migrations.current(database), migrations.newest()
    text = f"the database is at {revision or 'nothing'}, this release needs {needed}"
    show({"current": revision, "needed": needed}, text, json_)
    sys.exit(0 if revision == needed else Exit.USAGE)
