"""Checking a signature offline, and the whole way of a callback."""

import json
import os
import secrets
import sys
from pathlib import Path

import click
import httpx

from receiver.cli.exits import CREDENTIALS, OK, UNREACHABLE, USAGE, Failure
from receiver.cli.operate import opened, secret, secret_file
from receiver.cli.output import as_json, show
from receiver.cli.remote import checked
from receiver.clock import iso, now_ms
from receiver.diagnosis import diagnose
from receiver.settings import DEFAULT_INSTANCE, Settings
from receiver.signatures import HEADER, SignatureKey, sign
from receiver.storage.credentials import KeyRing
from receiver.storage.vault import Vault


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

    It is an event of kind `other`, marked as a test, and touches no job.
    """
    key = _key(instance, key_file)
    mark = {"sent_at": iso(now_ms()), "nonce": secrets.token_hex(8), "instance": instance}
    body = json.dumps({"receiver_test": mark}).encode()
    target = url if "/callbacks/" in url else f"{url.rstrip('/')}/callbacks/{instance}"
    headers = {HEADER: sign(body, key), "Content-Type": "application/json"}
    try:
        answer = httpx.post(target, content=body, headers=headers, timeout=15)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise Failure(UNREACHABLE, "unreachable", f"no answer: {reason}") from None
    if answer.status_code == 401:  # noqa: PLR2004
        detail = "401: the receiver has another key, or something on the way changed the body"
        raise Failure(CREDENTIALS, "not_verified", detail)
    if answer.status_code != 200:  # noqa: PLR2004
        detail = f"{answer.status_code}: this is not stored; the vendor would try again"
        raise Failure(UNREACHABLE, "not_stored", detail)
    receipt = checked(answer, "event", "duplicate")
    show({"status": 200, **receipt}, f"verified and stored as event {receipt['event']}", json_)


def _key(instance: str, key_file: str | None) -> SignatureKey:
    if key_file is not None:
        return SignatureKey("file", secret(key_file) or b"")
    settings = Settings.from_env(os.environ)
    if instance == DEFAULT_INSTANCE and settings.default_keys:
        return settings.default_keys[0]
    with opened() as (_, database):
        ring = KeyRing(database, Vault(settings.encryption_keys), settings.default_keys)
        known = ring.of(instance)
    if known is None or not known.keys:
        raise Failure(USAGE, "no_key", f"there is no usable key of {instance}: give --key-file")
    return known.keys[0]


COMMANDS = (verify, trigger)
