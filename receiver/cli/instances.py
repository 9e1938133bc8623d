"""Who may send and who may ask: `instances`, `keys` and what tries one, `tokens`."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from typing import Unpack, get_args

import click
import structlog

from receiver.callbacks.diagnosis import diagnose
from receiver.callbacks.trigger import send_signed
from receiver.cli.options import (
    Command,
    duration,
    json_option,
    only,
    reads,
    secret_option,
    yes_option,
)
from receiver.cli.output import Exit, Failure, count, plain, show, table, warn, with_iso_times
from receiver.cli.serve import actor, open_database, record_action, remove
from receiver.client import NoSuchInstance
from receiver.client.clients import check_url
from receiver.database.engine import Session
from receiver.errors import SettingsError
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.instances import tokens as api_tokens
from receiver.instances.encryption import SecretBox, reencrypt
from receiver.lib.clock import iso, now_ms
from receiver.lib.files import read_file
from receiver.openconnectors.notifications import MAX_TIME_MS
from receiver.openconnectors.signatures import SHORT_KEY_BYTES, SignatureKey
from receiver.settings import DEFAULT_INSTANCE, INSTANCE_NAME, Settings

# Not `cli:`, which tells the command line's users from tokens in the audit log.
_TOKEN_NAME = re.compile(r"(?!cli:)[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,100}")

_TEST_CODES = {0: "unreachable", 401: "not_verified", 503: "not_stored"}  # by status
_MAX_BODY_BYTES = 2**26  # far more than any callback has

log = structlog.get_logger()


def _hub(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]+", text):
        raise ValueError(f"{text}: a hub is a name such as marketing")
    return text


_VENDOR_OPTIONS = (
    secret_option("--element-token-file", "element_token", "the vendor's element token"),
    secret_option("--user-secret-file", "user_secret", "the vendor's user secret"),
    secret_option(
        "--organization-secret-file",
        "organization_secret",
        "the vendor's organization secret, for its queue of notifications",
    ),
    click.option(
        "--hub", callback=reads(_hub), help="The vendor's hub of this instance, e.g. marketing."
    ),
)


def _vendor_options(command: Command) -> Command:
    """Add the options for what the vendor is asked with."""
    return reduce(lambda function, option: option(function), reversed(_VENDOR_OPTIONS), command)


def _warn_of_half(session: Session, name: str, given: registry.VendorOptions) -> None:
    """Say that the vendor is not asked with one of its secrets alone, if one was given."""
    is_given = given["element_token"] or given["user_secret"]
    if is_given and name not in registry.list_instances_with_secrets(session):
        warn(
            f"{name} has only one of element token and user secret, so the vendor is not asked"
            f" until `receiver instances set {name}` adds the other"
        )


def _warn_without_key(name: str) -> None:
    remedy = f"`receiver keys add {name} --file FILE`"
    warn(f"{name} has no signature key: its callbacks are rejected until {remedy}")


@click.group()
def instances() -> None:
    """Add, change, list and remove connector instances, whose callbacks are received."""


@instances.command("add")
@click.argument("name")
@secret_option("--signature-key-file", "key", "the vendor's event.notification.signature.key")
@_vendor_options
@json_option
def add_instance(
    name: str, key: bytes | None, json_: bool, **options: Unpack[registry.VendorOptions]
) -> None:
    """Add an instance; its callback URL is /callbacks/NAME."""
    if not INSTANCE_NAME.fullmatch(name):
        raise click.UsageError(f"{plain(name)}: a name is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    with open_database(creates_file=True) as (settings, database), database.write() as session:
        secret_box = SecretBox(settings.encryption_keys)
        registry.add_instance(session, secret_box, name, now_ms(), **options)
        _warn_of_half(session, name, options)
        key_id = None if key is None else _add_key(session, secret_box, name, key)
        record_action(session, "instance.add", name)
        if key_id is not None:
            record_action(session, "key.add", f"{name}/{key_id}")
    if key is None:
        _warn_without_key(name)
    url = f"{settings.public_url or 'https://<your host>'}/callbacks/{name}"
    content = {"name": name, "key": key_id, "callback_url": url}
    show(content, f"{name} added; register this callback URL at the vendor: {url}", json_)


@instances.command("set")
@click.argument("name")
@_vendor_options
def set_instance(name: str, **options: Unpack[registry.VendorOptions]) -> None:
    """Set or replace an instance's vendor secrets or hub; what is not named stays.

    Signature keys are changed with `receiver keys`.
    """
    named = ", ".join(
        what.replace("_", " ") for what, value in options.items() if value is not None
    )
    if not named:
        raise click.UsageError("nothing to set: name an option, such as --hub")
    with open_database() as (settings, database), database.write() as session:
        registry.change_instance(session, SecretBox(settings.encryption_keys), name, **options)
        _warn_of_half(session, name, options)
        record_action(session, "instance.set", name, named)
    click.echo(f"{name}: {named} set")


@instances.command("list")
@json_option
def list_instances(json_: bool) -> None:
    """List instances."""
    with open_database() as (_, database), database.read() as session:
        rows = with_iso_times(registry.list_instances(session))
    text = table(rows, ("name", "hub", "keys", "vendor_secrets", "created_at"))
    show({"instances": rows}, text, json_)


@instances.command("remove")
@click.argument("name")
@yes_option
def remove_instance(name: str, yes: bool) -> None:
    """Remove an instance and its keys; its events and jobs stay.

    Asks on a terminal; elsewhere --yes is needed.
    """
    consequence = "Its keys go too, and its callbacks are rejected then."
    remove("instance", name, registry.get_instance, registry.remove_instance, consequence, yes=yes)


@click.group()
def keys() -> None:
    """Add, list and retire signature keys of an instance; all that are not retired are accepted."""


def _add_key(session: Session, secret_box: SecretBox, instance: str, key: bytes) -> str:
    """Add a signature key and return its id; warn of what is weak about it."""
    key_id = signature_keys.add_key(session, secret_box, instance, key, now_ms())
    if len(key) < SHORT_KEY_BYTES:
        length = count(len(key), "byte")
        warn(f"the signature key is {length} long; at least {SHORT_KEY_BYTES} are recommended")
    if others := signature_keys.shared_with(session, secret_box, instance, key):
        have = "has" if len(others) == 1 else "have"
        warn(f"{', '.join(others)} {have} the same key: bodies can be replayed across them")
    return key_id


@keys.command("add")
@click.argument("instance")
@secret_option("--file", "key", "the key", required=True)
@json_option
def add_key(instance: str, key: bytes, json_: bool) -> None:
    """Add a signature key; a running receiver accepts it from its next request on."""
    with open_database(creates_file=True) as (settings, database), database.write() as session:
        key_id = _add_key(session, SecretBox(settings.encryption_keys), instance, key)
        record_action(session, "key.add", f"{instance}/{key_id}")
    show({"id": key_id, "instance": instance}, key_id, json_)


@keys.command("list")
@click.argument("instance", required=False)
@json_option
def list_keys(instance: str | None, json_: bool) -> None:
    """List signature keys by their ids, never their secrets, and when each matched last.

    That is noted once a minute at most, and test callbacks count. `receiver events` shows the key
    of each callback.
    """
    with open_database() as (_, database), database.read() as session:
        if instance is not None:
            registry.get_instance(session, instance)
        rows = with_iso_times(signature_keys.list_keys(session, instance))
    text = table(rows, ("id", "instance", "created_at", "last_used_at", "retired_at"))
    show({"keys": rows}, text, json_)


@keys.command("retire")
@click.argument("key", nargs=-1, required=True, metavar="[INSTANCE] KEY")
def retire_key(key: tuple[str, ...]) -> None:
    """Retire a signature key; a running receiver rejects it from its next request on."""
    *named, key_id = key
    if len(named) > 1:
        raise click.UsageError("name one key, with or without its instance")
    instance = named[0] if named else None
    with open_database() as (settings, database), database.write() as session:
        signature_keys.retire_key(session, key_id, instance, now_ms())
        record_action(session, "key.retire", key_id)
        _warn_of_none_left(session, settings, key_id)
    click.echo(f"{key_id} retired")


@keys.command("remove")
@click.argument("key_id", metavar="KEY")
@yes_option
def remove_key(key_id: str, yes: bool) -> None:
    """Remove a retired key, such as one that cannot be decrypted any more."""
    find, delete = signature_keys.get_retired_key, signature_keys.remove_key
    remove("key", key_id, find, delete, "It is gone for good.", yes=yes)


@keys.command("reencrypt")
@json_option
def reencrypt_secrets(json_: bool) -> None:
    """Encrypt signature keys and vendor secrets with the newest of RECEIVER_ENCRYPTION_KEYS.

    After that the older ones can go. A receiver may run meanwhile, if it has the newest one too.
    Exit code 1 if a secret cannot be decrypted.
    """
    with open_database() as (settings, database):
        if not settings.encryption_keys:
            raise SettingsError("RECEIVER_ENCRYPTION_KEYS is not set")
        done = reencrypt(database, SecretBox(settings.encryption_keys))
        encrypted = f"{count(done.encrypted, 'secret')} encrypted with the newest key"
        with database.write() as session:
            record_action(session, "key.reencrypt", "all instances", encrypted)
    unusable = ", ".join(done.unusable)
    text = f"{encrypted}; cannot be decrypted: {unusable}" if unusable else encrypted
    show(asdict(done), text, json_)
    sys.exit(Exit.JOB_FAILED if unusable else Exit.OK)


@click.group()
def tokens() -> None:
    """Create, list and revoke API tokens; only their hashes are stored."""


@tokens.command("create")
@click.argument("name")
@click.option(
    "--scope",
    required=True,
    type=click.Choice(get_args(api_tokens.Scope)),
    help="`read` tokens can view; `operate` tokens can also make changes.",
)
@only("for this instance", "--instance", "instances")
@click.option("--expires", metavar="DURATION", help="E.g. 90d; without it, never.")
@json_option
def create_token(
    name: str, scope: api_tokens.Scope, instances: Sequence[str], expires: str | None, json_: bool
) -> None:
    """Create a token and print it: alone, and this once."""
    now = now_ms()
    if not _TOKEN_NAME.fullmatch(name):
        raise click.UsageError(
            f"{plain(name)}: a name is 1 to 100 printable characters and does not begin with `cli:`"
        )
    expires_at = None if expires is None else now + duration("--expires", expires)
    if expires_at is not None and expires_at > MAX_TIME_MS:
        raise click.UsageError(f"--expires {expires}: is beyond the year 9999")
    with open_database(creates_file=True) as (settings, database), database.write() as session:
        token = api_tokens.create_token(
            session, name, scope, now, only=instances, expires_at=expires_at
        )
        warn_of_unknown(session, settings, instances)
        reach = f"{', '.join(instances) or 'all instances'}; until {iso(expires_at) or 'revoked'}"
        record_action(session, "token.create", name, f"{scope}; {reach}")
    log.info("a token was created", name=name, scope=scope, by=actor())
    content = {"token": token, "name": name, "scope": scope, "expires_at": iso(expires_at)}
    show(content, token, json_)


@tokens.command("list")
@json_option
def list_tokens(json_: bool) -> None:
    """List tokens by name, never the tokens themselves."""
    with open_database() as (_, database), database.read() as session:
        rows = with_iso_times(api_tokens.list_tokens(session))
    columns = ("id", "name", "scope", "instances", "created_at", "expires_at", "revoked_at")
    show({"tokens": rows}, table(rows, columns), json_)


@tokens.command("revoke")
@click.argument("token", metavar="ID_OR_NAME")
def revoke_token(token: str) -> None:
    """Revoke a token, or all tokens of a name."""
    with open_database() as (_, database), database.write() as session:
        ended = api_tokens.revoke_token(session, token, now_ms())
        record_action(session, "token.revoke", token)
    log.info("a token was revoked", token=token, ended=ended, by=actor())
    click.echo(f"{count(ended, 'token')} revoked")


def warn_of_unknown(session: Session, settings: Settings, instances: Sequence[str]) -> None:
    """Warn of names that no instance has."""
    names = registry.instance_names(session, settings)
    for name in sorted(set(instances) - names):
        warn(str(NoSuchInstance(name, names)))


def _warn_of_none_left(session: Session, settings: Settings, key_id: str) -> None:
    """Warn that the instance of a retired key has no key in use."""
    rows = signature_keys.list_keys(session)
    instance = next(str(row["instance"]) for row in rows if row["id"] == key_id)
    in_use = any(row["instance"] == instance and row["retired_at"] is None for row in rows)
    if not in_use and not (instance == DEFAULT_INSTANCE and settings.default_keys):
        _warn_without_key(instance)


@click.command()
@click.option(
    "--body",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    help="File with the exact bytes of the delivery.",
)
@click.option("--signature", required=True, help="The value of Elements-Webhook-Signature.")
@secret_option("--key-file", "key", "the signature key", required=True)
@json_option
def verify(body: str, signature: str, key: bytes, json_: bool) -> None:
    """Check a signature, and say what is wrong with it. Offline."""
    valid, detail = diagnose(read_file(body, _MAX_BODY_BYTES), signature, key)
    show({"valid": valid, "detail": detail}, detail, json_)
    sys.exit(Exit.OK if valid else Exit.CREDENTIALS)


@click.command()
@click.option(
    "--url",
    callback=reads(check_url),
    envvar="RECEIVER_PUBLIC_URL",
    required=True,
    show_envvar=True,
    help="The receiver's public URL, or the whole callback URL.",
)
@click.option("--instance", default=DEFAULT_INSTANCE, show_default=True, help="Whose callback.")
@secret_option("--key-file", "secret", "the key, if not of the environment or the database")
@json_option
def trigger(url: str, instance: str, secret: bytes | None, json_: bool) -> None:
    """Send a signed test callback the way the vendor's come.

    It is an event of kind `other`, marked as a test, and touches no job. In `keys list`, its key
    was used like by any other.
    """
    key = _key(instance) if secret is None else SignatureKey("file", secret)
    target = url if "/callbacks/" in url else f"{url.rstrip('/')}/callbacks/{instance}"
    sent = send_signed(target, instance, key, now_ms())
    if sent.event is None:
        exit_code = Exit.CREDENTIALS if sent.status == 401 else Exit.UNREACHABLE
        code = _TEST_CODES.get(sent.status, "not_a_receiver")
        raise Failure(exit_code, code, "; ".join(sent.problem(url)))
    content = {"status": 200, "event": sent.event, "duplicate": sent.duplicate}
    show(content, f"verified and stored as event {sent.event}", json_)


def _key(instance: str) -> SignatureKey:
    settings = Settings.from_env(os.environ)
    if instance == DEFAULT_INSTANCE and settings.default_keys:
        return settings.default_keys[0]
    with open_database() as (_, database):
        keys = signature_keys.Keys(SecretBox(settings.encryption_keys), settings.default_keys)
        instances = keys.refresh(database).instances
    of_instance = instances.get(instance)
    if of_instance is None:
        raise NoSuchInstance(instance, instances)
    if not of_instance.keys:
        remedy = (
            "set RECEIVER_ENCRYPTION_KEYS as the receiver has it, or" if of_instance.broken else ""
        )
        text = f"there is no usable key of {instance}: {remedy} name one with --key-file"
        raise Failure(Exit.USAGE, "no_key", text)
    return of_instance.keys[0]
