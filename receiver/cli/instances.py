"""Connector instances: `receiver instances`."""

from collections.abc import Callable
from typing import Any, TypedDict

import click

from receiver.cli.exits import USAGE, Failure
from receiver.cli.output import as_json, show, table, timed
from receiver.cli.secret_files import secret, secret_file
from receiver.cli.serve import actor, opened, warn_of
from receiver.instances import audit, registry
from receiver.instances import keys as signature_keys
from receiver.instances.encryption import Vault
from receiver.lib.clock import now_ms
from receiver.settings import INSTANCE_NAME


class _Given(TypedDict):
    hub: str | None
    element_token: bytes | None
    user_secret: bytes | None
    organization_secret: bytes | None


def _vendors(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for what the vendor is asked with."""
    options = (
        click.option("--element-token-file", type=secret_file),
        click.option("--user-secret-file", type=secret_file),
        click.option(
            "--organization-secret-file", type=secret_file, help="Opens the vendor's queue."
        ),
        click.option("--hub", help="The vendor's hub of this instance, e.g. marketing."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _given(
    hub: str | None,
    element_token_file: str | None,
    user_secret_file: str | None,
    organization_secret_file: str | None,
) -> _Given:
    return {
        "hub": hub,
        "element_token": _vendor_secret(element_token_file),
        "user_secret": _vendor_secret(user_secret_file),
        "organization_secret": _vendor_secret(organization_secret_file),
    }


def _vendor_secret(path: str | None) -> bytes | None:
    found = secret(path)
    if found == b"":
        raise Failure(USAGE, "empty_file", f"{path}: there is no secret in it")
    return found


@click.group()
def instances() -> None:
    """Connector instances whose callbacks are received."""


@instances.command("add")
@click.argument("name")
@click.option("--signature-key-file", type=secret_file, help="event.notification.signature.key")
@_vendors
@as_json
def add_instance(
    name: str, signature_key_file: str | None, json_: bool, **vendors: str | None
) -> None:
    """Add an instance; its callback URL is /callbacks/NAME."""
    if not INSTANCE_NAME.fullmatch(name):
        raise click.UsageError("a name is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    key, given = secret(signature_key_file), _given(**vendors)
    with opened() as (settings, database):
        vault = Vault(settings.encryption_keys)
        key_id = None
        now, who = now_ms(), actor()
        with database.write() as session:
            registry.add_instance(session, vault, name, now, **given)
            if key is not None:
                key_id = signature_keys.add_key(session, vault, name, key, now)
                warn_of(key, signature_keys.shared_with(session, vault, name, key))
            audit.note(session, at=now, actor=who, action="instance.add", subject=name)
            if key_id is not None:
                place = f"{name}/{key_id}"
                audit.note(session, at=now, actor=who, action="key.add", subject=place)
        base = settings.public_url or "https://<your host>"
    url = f"{base}/callbacks/{name}"
    content = {"name": name, "key": key_id, "callback_url": url}
    show(content, f"{name} added; register this callback URL at the vendor: {url}", json_)


@instances.command("set")
@click.argument("name")
@_vendors
def set_instance(name: str, **vendors: str | None) -> None:
    """Give an instance its vendor secrets or hub, or new ones; what is not named stays.

    Signature keys are changed with `receiver keys`.
    """
    given = _given(**vendors)
    named = ", ".join(what.replace("_", " ") for what, value in given.items() if value is not None)
    if not named:
        raise click.UsageError("name what to set")
    with opened() as (settings, database), database.write() as session:
        registry.change_instance(session, Vault(settings.encryption_keys), name, **given)
        note = {"actor": actor(), "action": "instance.set", "subject": name, "detail": named}
        audit.note(session, at=now_ms(), **note)
    click.echo(f"{name}: {named} set")


@instances.command("list")
@as_json
def list_instances(json_: bool) -> None:
    """List instances."""
    with opened() as (_, database), database.read() as session:
        rows = timed(registry.list_instances(session))
    text = table(rows, ("name", "hub", "keys", "vendor_secrets", "created_at"))
    show({"instances": rows}, text, json_)


@instances.command("remove")
@click.argument("name")
def remove_instance(name: str) -> None:
    """Forget an instance and its keys; its events and jobs stay."""
    with opened() as (_, database), database.write() as session:
        registry.remove_instance(session, name)
        audit.note(session, at=now_ms(), actor=actor(), action="instance.remove", subject=name)
    click.echo(f"{name} removed")


COMMANDS = (instances,)
