"""A signed test callback, sent the way the vendor's come."""

import json
import secrets
from dataclasses import dataclass

import httpx

from receiver.lib.clock import iso
from receiver.openconnectors.signatures import HEADER, SignatureKey, sign

TIMEOUT_SECONDS = 15
MOST_TOLD = 1000  # characters of an answer


@dataclass(frozen=True, slots=True)
class Sent:
    """How a test callback fared. event -- under which it was stored; None: not by a receiver."""

    status: int
    told: str
    event: str | None = None
    duplicate: bool = False


def send_signed(target: str, instance: str, key: SignatureKey, at: int) -> Sent:
    """Send one; it is an event of kind `other`, marked as a test, and touches no job.

    target -- the whole callback URL. at -- ms since the epoch.
    Raises httpx.HTTPError or InvalidURL if there is no answer.
    """
    mark = {"sent_at": iso(at), "nonce": secrets.token_hex(8), "instance": instance}
    body = json.dumps({"receiver_test": mark}).encode()
    headers = {HEADER: sign(body, key), "Content-Type": "application/json"}
    answer = httpx.post(target, content=body, headers=headers, timeout=TIMEOUT_SECONDS)
    told = answer.text[:MOST_TOLD]
    try:
        receipt = answer.json()
        return Sent(answer.status_code, told, str(receipt["event"]), bool(receipt["duplicate"]))
    except (ValueError, KeyError, TypeError):
        return Sent(answer.status_code, told)
