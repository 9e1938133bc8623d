"""Commands that open the database, and `serve`."""

import os
import pwd
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import click
import structlog

from receiver import server as serving
from receiver.cli.exits import USAGE
from receiver.cli.output import as_json, show, table, timed
from receiver.cli.secret_files import secret, secret_file
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.instances import audit, tokens
from receiver.instances import keys as signature_keys
from receiver.instances.encryption import Vault
from receiver.lib.clock import iso, now_ms
from receiver.openconnectors.notifications import MAX_TIME_MS
from receiver.openconnectors.signatures import SHORT_KEY_BYTES
from receiver.settings import Settings, duration_ms

# Not `cli:`, which tells the command line's users from tokens in the audit.
_TOKEN_NAME = re.compile(r"(?!cli:)[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,100}")

log = structlog.get_logger()


@contextmanager
def opened() -> Iterator[tuple[Settings, Database]]:
    """Give the settings and the database they name, its schema up to date."""
    settings = Settings.from_env(os.environ)
    database = migrations.opened(settings.database_url)
    try:
        yield settings, database
    finally:
        database.close()


def actor() -> str:
    """Who runs this command, as the audit names them."""
    try:
        return f"cli:{pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:  # in a container, a user may have no name
        return f"cli:{os.geteuid()}"


@click.command()
@click.option(
    "--bind", default="127.0.0.1:8000", show_default=True, help="HOST:PORT, or unix:PATH."
)
@click.option("--workers", type=click.IntRange(1, 64), help="Worker processes.")
def serve(bind: str, workers: int | None) -> None:
    """Run the receiver under gunicorn."""
    with opened():
        pass  # a wrong setting or an old schema stops the start here, with one line
    serving.serve(bind, workers)


@click.group()
def db() -> None:
    """The database's schema."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema up to date."""
    database = Database(Settings.from_env(os.environ).database_url)
    try:
        migrations.upgrade(database)
        click.echo(f"the schema is at {migrations.current(database)}")
    finally:
        database.close()


@db.command("current")
@as_json
def db_current(json_: bool) -> None:
    """Tell which schema the database has, and which this release needs; 2 if that will not do."""
    database = Database(Settings.from_env(os.environ).database_url)
    try:
        found, needed = migrations.current(database), migrations.newest()
    finally:
        database.close()
    text = f"the database is at {found or 'nothing'}, this release needs {needed}"
    show({"current": found, "needed": needed}, text, json_)
    sys.exit(0 if found == needed else USAGE)


@click.group()
def keys() -> None:
    """Signature keys of an instance; all that are not retired are accepted."""


@keys.command("add")
@click.argument("instance")
@click.option("--file", "path", required=True, type=secret_file, help="`-` reads standard input.")
@as_json
def add_key(instance: str, path: str, json_: bool) -> None:
    """Add a signature key; a running receiver accepts it from its next request on."""
    key = secret(path) or b""
    with opened() as (settings, database), database.write() as session:
        vault = Vault(settings.encryption_keys)
        now = now_ms()
        key_id = signature_keys.add_key(session, vault, instance, key, now)
        warn_of(key, signature_keys.shared_with(session, vault, instance, key))
        place = f"{instance}/{key_id}"
        audit.note(session, at=now, actor=actor(), action="key.add", subject=place)
    show({"id": key_id, "instance": instance}, key_id, json_)


@keys.command("list")
@click.argument("instance", required=False)
@as_json
def list_keys(instance: str | None, json_: bool) -> None:
    """List signature keys by their ids, never their secrets, and when each matched last.

    That is noted once a minute at most, and test callbacks count. `receiver events` tells the key
    of each callback.
    """
    with opened() as (_, database), database.read() as session:
        rows = timed(signature_keys.list_keys(session, instance))
    text = table(rows, ("id", "instance", "created_at", "last_used_at", "retired_at"))
    show({"keys": rows}, text, json_)


@keys.command("retire")
@click.argument("key", nargs=-1, required=True, metavar="[INSTANCE] KEY")
def retire_key(key: tuple[str, ...]) -> None:
    """Accept a signature key no longer, from a running receiver's next request on."""
    if len(key) > 2:  # noqa: PLR2004
        raise click.UsageError("name one key, with or without its instance")
    instance = key[0] if len(key) == 2 else None  # noqa: PLR2004
    with opened() as (_, database), database.write() as session:
        now = now_ms()
        signature_keys.retire_key(session, key[-1], instance, now)
        audit.note(session, at=now, actor=actor(), action="key.retire", subject=key[-1])
    click.echo(f"{key[-1]} retired")


@click.group("tokens")
def tokens_() -> None:
    """API tokens; only their hashes are kept."""


@tokens_.command("create")
@click.argument("name")
@click.option("--scope", required=True, type=click.Choice(get_args(tokens.Scope)))
@click.option("--instance", "only", multiple=True, help="Reach this instance only; repeatable.")
@click.option("--expires", metavar="DURATION", help="E.g. 90d; without it, never.")
@as_json
def create_token(
    name: str, scope: tokens.Scope, only: tuple[str, ...], expires: str | None, json_: bool
) -> None:
    """Make a token and print it, once and alone."""
    now = now_ms()
    if not _TOKEN_NAME.fullmatch(name):
        raise click.UsageError("a name is 1 to 100 printable characters, not after `cli:`")
    try:
        expires_at = None if expires is None else now + duration_ms(expires)
    except ValueError as error:
        raise click.UsageError(f"--expires {error}") from None
    if expires_at is not None and expires_at > MAX_TIME_MS:
        raise click.UsageError("--expires is beyond the year 9999")
    with opened() as (_, database), database.write() as session:
        token = tokens.create_token(session, name, scope, now, only=only, expires_at=expires_at)
        reach = (
            f"{scope}; {', '.join(only) or 'all instances'}; until {iso(expires_at) or 'revoked'}"
        )
        audit.note(
            session, at=now, actor=actor(), action="token.create", subject=name, detail=reach
        )
    log.info("a token was created", name=name, scope=scope, by=actor())
    content = {"token": token, "name": name, "scope": scope, "expires_at": iso(expires_at)}
    show(content, token, json_)


@tokens_.command("list")
@as_json
def list_tokens(json_: bool) -> None:
    """List tokens by name, never the tokens themselves."""
    with opened() as (_, database), database.read() as session:
        rows = timed(tokens.tokens(session))
    columns = ("id", "name", "scope", "instances", "created_at", "expires_at", "revoked_at")
    show({"tokens": rows}, table(rows, columns), json_)


@tokens_.command("revoke")
@click.argument("token", metavar="ID_OR_NAME")
def revoke_token(token: str) -> None:
    """End a token, or all of a name."""
    with opened() as (_, database), database.write() as session:
        now = now_ms()
        ended = tokens.revoke_token(session, token, now)
        audit.note(session, at=now, actor=actor(), action="token.revoke", subject=token)
    log.info("a token was revoked", token=token, ended=ended, by=actor())
    click.echo(f"{ended} revoked")


def warn_of(key: bytes, others: list[str]) -> None:
    """Tell on standard error what is weak about a key; `others` are the instances that share it."""
    if len(key) < SHORT_KEY_BYTES:
        click.echo(f"warning: the key has less than {SHORT_KEY_BYTES} bytes", err=True)
    if others:
        named = ", ".join(others)
        click.echo(f"warning: {named} has the same key: bodies can be replayed across", err=True)


COMMANDS = (serve, db, keys, tokens_)
