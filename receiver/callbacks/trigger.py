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
from receiver.lib.http_client import failure_reason
from receiver.openconnectors.signatures import HEADER, SignatureKey, sign
from receiver.settings import Settings

TIMEOUT_SECONDS = 15
# What answers so, and what to do about it; the URL comes first.
_PROBLEMS = {
    401: (
        "rejected it (401)",
        "the receiver there has another key for it, or something on the way changes it",
    ),
    503: (
        "did not accept it (503)",
        "the receiver there cannot reach its database: run `receiver doctor` there",
    ),
}


@dataclass(frozen=True, slots=True)
class Sent:
    """How a test callback fared. status -- 0: there was no answer, and `reason` says why.

    event -- under which it was stored; None: not by a receiver.
    """

    status: int
    reason: str = ""
    event: str | None = None
    duplicate: bool = False

    def problem(self, url: str) -> tuple[str, str]:
        """Return why it is not stored, though it was sent to this URL; and what to do."""
        if not self.status:
            remedy = "look at DNS, the firewall, the proxy and whether `receiver serve` runs there"
            return f"no answer from {url}: {self.reason}", remedy
        answered = f"answered {self.status}, not as a receiver", "look at the URL and the proxy"
        what, remedy = _PROBLEMS.get(self.status, answered)
        return f"{url} {what}", remedy


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
    return send_signed(target, instance, of_instance.keys[0], at)


def send_signed(target: str, instance: str, key: SignatureKey, at: int) -> Sent:
    """Send one; it is an event of kind `other`, marked as a test, and touches no job.

    target -- the whole callback URL. at -- ms since the epoch.
    """
    mark = {"sent_at": iso(at), "nonce": secrets.token_hex(8), "instance": instance}
    body = json.dumps({"receiver_test": mark}).encode()
    headers = {HEADER: sign(body, key), "Content-Type": "application/json"}
    try:
        answer = httpx.post(target, content=body, headers=headers, timeout=TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Sent(0, failure_reason(error))
    try:
        receipt = answer.json()
        return Sent(
            answer.status_code, event=str(receipt["event"]), duplicate=bool(receipt["duplicate"])
        )
    except (ValueError, KeyError, TypeError):
        return Sent(answer.status_code)
