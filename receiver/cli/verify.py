"""Checking a signature offline, and the whole way of a callback."""

import os
import sys
from pathlib import Path

import click
import httpx

from receiver.callbacks.diagnosis import diagnose
from receiver.callbacks.trigger import send_signed
from receiver.cli.exits import CREDENTIALS, OK, UNREACHABLE, USAGE, Failure
from receiver.cli.output import as_json, show
from receiver.cli.secret_files import secret, secret_file
from receiver.cli.serve import opened
from receiver.instances.encryption import Vault
from receiver.instances.keys import Keys
from receiver.lib.clock import now_ms
from receiver.openconnectors.signatures import SignatureKey
from receiver.settings import DEFAULT_INSTANCE, Settings


@click.command()
@click.option("--body", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--signature", required=True, help="The value of Elements-Webhook-Signature.")
@click.option("--key-file", required=True, type=secret_file)
@as_json
def verify(body: str, signature: str, key_file: str, json_: bool) -> None:
    """Tell whether a signature is right, and if not, what is wrong with it. Offline."""
    right, told = diagnose(Path(body).read_bytes(), signature, secret(key_file) or b"")
    show({"valid": right, "detail": told}, told, json_)
    sys.exit(OK if right else CREDENTIALS)


@click.command()
@click.option("--url", required=True, help="The receiver's public URL, or the whole callback URL.")
@click.option("--instance", default=DEFAULT_INSTANCE, show_default=True)
@click.option("--key-file", type=secret_file, help="Else from the environment or the database.")
@as_json
def trigger(url: str, instance: str, key_file: str | None, json_: bool) -> None:
    """Send a signed test callback the way the vendor's come.

    It is an event of kind `other`, marked as a test, and touches no job. To `keys list` its key has
    matched like any other.
    """
    key = _key(instance, key_file)
    target = url if "/callbacks/" in url else f"{url.rstrip('/')}/callbacks/{instance}"
    try:
        sent = send_signed(target, instance, key, now_ms())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise Failure(UNREACHABLE, "unreachable", f"no answer: {reason}") from None
    if sent.status == 401:  # noqa: PLR2004
        detail = (
            f"401: the receiver has another key for {instance}, or does not know this instance,"
            " or something on the way changed the body"
        )
        raise Failure(CREDENTIALS, "not_verified", detail)
    if sent.status != 200:  # noqa: PLR2004
        detail = f"{sent.status}: this is not stored; the vendor would try again"
        raise Failure(UNREACHABLE, "not_stored", detail)
    if sent.event is None:
        raise Failure(UNREACHABLE, "not_a_receiver", "200, but not as a receiver answers")
    content = {"status": 200, "event": sent.event, "duplicate": sent.duplicate}
    show(content, f"verified and stored as event {sent.event}", json_)


def _key(instance: str, key_file: str | None) -> SignatureKey:
    if key_file is not None:
        return SignatureKey("file", secret(key_file) or b"")
    settings = Settings.from_env(os.environ)
    if instance == DEFAULT_INSTANCE and settings.default_keys:
        return settings.default_keys[0]
    with opened() as (_, database):
        keys = Keys(Vault(settings.encryption_keys), settings.default_keys)
        known = keys.fresh(database).instances.get(instance)
    if known is None or not known.keys:
        raise Failure(USAGE, "no_key", f"there is no usable key of {instance}: give --key-file")
    return known.keys[0]


COMMANDS = (verify, trigger)
