"""A signed test callback, sent the way the vendor's come."""

import json
import secrets
from dataclasses import dataclass

import httpx

from receiver.database.engine import Database
from receiver.errors import CredentialError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.lib.clock import iso
from receiver.openconnectors.signatures import HEADER, SignatureKey, sign
from receiver.settings import Settings

TIMEOUT_SECONDS = 15
MAX_ANSWER_TEXT = 1000  # characters of an answer


@dataclass(frozen=True, slots=True)
class Sent:
    """How a test callback fared. status -- 0: there was no answer, as `text` says.

    event -- under which it was stored; None: not by a receiver.
    """

    status: int
    text: str
    event: str | None = None
    duplicate: bool = False


def send_test(
    settings: Settings, database: Database, secret_box: SecretBox, instance: str, at: int
) -> Sent:
    """Send a test callback to our public URL, signed with the instance's newest key.

    Raises CredentialError if there is no URL or no key.
    """
    if settings.public_url is None:
        raise CredentialError(
            "RECEIVER_PUBLIC_URL is not set, so there is no way to test: set it to the URL under"
            " which the vendor reaches this receiver, and restart it"
        )
    of_instance = Keys(secret_box, settings.default_keys).refresh(database).instances.get(instance)
    if of_instance is None or not of_instance.keys:
        raise CredentialError(f"there is no usable key of {instance} to sign with")
    target = f"{settings.public_url}/callbacks/{instance}"
    try:
        return send_signed(target, instance, of_instance.keys[0], at)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Sent(0, str(error) or type(error).__name__)


def send_signed(target: str, instance: str, key: SignatureKey, at: int) -> Sent:
    """Send one; it is an event of kind `other`, marked as a test, and touches no job.

    target -- the whole callback URL. at -- ms since the epoch.
    Raises httpx.HTTPError or InvalidURL if there is no answer.
    """
    mark = {"sent_at": iso(at), "nonce": secrets.token_hex(8), "instance": instance}
    body = json.dumps({"receiver_test": mark}).encode()
    headers = {HEADER: sign(body, key), "Content-Type": "application/json"}
    answer = httpx.post(target, content=body, headers=headers, timeout=TIMEOUT_SECONDS)
    text = answer.text[:MAX_ANSWER_TEXT]
    try:
        receipt = answer.json()
        return Sent(answer.status_code, text, str(receipt["event"]), bool(receipt["duplicate"]))
    except (ValueError, KeyError, TypeError):
        return Sent(answer.status_code, text)
