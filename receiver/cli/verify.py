"""Checking a signature offline, and the whole way of a callback."""

import os
import sys

import click
import httpx

from receiver.callbacks.diagnosis import diagnose
from receiver.callbacks.trigger import send_signed
from receiver.cli.output import CREDENTIALS, OK, UNREACHABLE, USAGE, Failure, as_json, show
from receiver.cli.remote import check_url, failure, no_instance, secret, secret_file
from receiver.cli.serve import open_database
from receiver.client.clients import unreachable
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib.clock import now_ms
from receiver.openconnectors.signatures import SignatureKey
from receiver.settings import DEFAULT_INSTANCE, Settings, read_file


@click.command()
@click.option(
    "--body",
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    help="File with the exact bytes of the delivery.",
)
@click.option("--signature", required=True, help="The value of Elements-Webhook-Signature.")
@click.option(
    "--key-file",
    required=True,
    type=secret_file,
    help="File of the signature key; `-` reads standard input.",
)
@as_json
def verify(body: str, signature: str, key_file: str, json_: bool) -> None:
    """Check a signature, and say what is wrong with it. Offline."""
    valid, detail = diagnose(read_file(body), signature, secret(key_file) or b"")
    show({"valid": valid, "detail": detail}, detail, json_)
    sys.exit(OK if valid else CREDENTIALS)


@click.command()
@click.option(
    "--url",
    envvar="RECEIVER_PUBLIC_URL",
    required=True,
    show_envvar=True,
    help="The receiver's public URL, or the whole callback URL.",
)
@click.option("--instance", default=DEFAULT_INSTANCE, show_default=True, help="Whose callback.")
@click.option(
    "--key-file", type=secret_file, help="File of the key; else from environment or database."
)
@as_json
def trigger(url: str, instance: str, key_file: str | None, json_: bool) -> None:
    """Send a signed test callback the way the vendor's come.

    It is an event of kind `other`, marked as a test, and touches no job. In `keys list`, its key
    was used like by any other.
    """
    check_url(url)
    key = _key(instance, key_file)
    target = url if "/callbacks/" in url else f"{url.rstrip('/')}/callbacks/{instance}"
    try:
        sent = send_signed(target, instance, key, now_ms())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise failure(unreachable(url, error)) from None
    if sent.status == 401:
        detail = (
            f"rejected (401): the receiver has another key for {instance}, or does not know this"
            " instance, or something on the way changed the body"
        )
        raise Failure(CREDENTIALS, "not_verified", detail)
    if sent.status == 503:
        raise Failure(UNREACHABLE, "not_stored", "not accepted (503); the vendor will retry")
    if sent.status != 200 or sent.event is None:
        detail = f"{url} answered {sent.status}, not as a receiver: check --url"
        raise Failure(UNREACHABLE, "not_a_receiver", detail)
    content = {"status": 200, "event": sent.event, "duplicate": sent.duplicate}
    show(content, f"verified and stored as event {sent.event}", json_)


def _key(instance: str, key_file: str | None) -> SignatureKey:
    if key_file is not None:
        return SignatureKey("file", secret(key_file) or b"")
    settings = Settings.from_env(os.environ)
    if instance == DEFAULT_INSTANCE and settings.default_keys:
        return settings.default_keys[0]
    with open_database() as (_, database):
        keys = Keys(SecretBox(settings.encryption_keys), settings.default_keys)
        instances = keys.fresh(database).instances
    of_instance = instances.get(instance)
    if of_instance is None:
        raise no_instance(instance, instances)
    if not of_instance.keys:
        text = f"there is no usable key of {instance}: name one with --key-file"
        raise Failure(USAGE, "no_key", text)
    return of_instance.keys[0]


COMMANDS = (verify, trigger)
