"""Refused deliveries: why, in words an operator can act on, and verifying them once more."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from receiver.callbacks.deliveries import Delivery
from receiver.callbacks.diagnosis import likely_cause
from receiver.callbacks.intake import Intake
from receiver.callbacks.rejections import (
    RejectionRecord,
    forget_rejection,
    quarantined,
    rejection,
)
from receiver.database.engine import Database, Session
from receiver.database.models import Rejection
from receiver.errors import SignatureError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import DecryptedKey, decrypted_keys
from receiver.jobs.queries import Instances
from receiver.openconnectors.signatures import SignatureKey, verify
from receiver.settings import DEFAULT_INSTANCE

BATCH = 100
MAX_DIAGNOSED = 100  # of a list
MAX_DIAGNOSED_BYTES = 16 * 1024  # of a body in a list

# What is known of a refusal without any key.
REASONS = {
    "missing": "There is no signature: the instance at the vendor has no signature key",
    "malformed": "The header is not `sha256=` and 44 characters of base64",
    "hex_digest": "The digest is written in hex; the vendor writes base64",
    "algorithm": "The header names another algorithm than `sha256=`, or none",
    "bad_signature": "No key of this instance made this signature for this body",
    "no_key": "The instance has no key here, so nothing can be proven",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a delivery was refused. elsewhere -- the other instance whose key made the signature."""

    text: str
    elsewhere: str | None = None

    def shown(self, visible: Instances) -> str:
        """Say why, naming another instance only to those who may see it."""
        named = self.elsewhere and (visible is None or self.elsewhere in visible)
        return f"{self.text} ({self.elsewhere})" if named else self.text


@dataclass(frozen=True, slots=True)
class Again:
    """How many deliveries were verified again, and how many of them became events."""

    looked: int = 0
    taken: int = 0


class AllKeys:
    """All signature keys, those of the environment and retired ones too, to explain with."""

    def __init__(
        self, stored: Sequence[DecryptedKey], default_keys: Sequence[SignatureKey]
    ) -> None:
        environment = [DecryptedKey(DEFAULT_INSTANCE, key, None) for key in default_keys]
        self._keys = [*environment, *stored]

    @classmethod
    def read(
        cls, database: Database, secret_box: SecretBox, default_keys: Sequence[SignatureKey]
    ) -> "AllKeys":
        """Read them. Raises StoreUnavailable."""
        with database.read() as session:
            return cls(decrypted_keys(session, secret_box), default_keys)

    def explain(self, refused: Rejection) -> Explained:
        """Return why a delivery was refused, and whose key signed it."""
        unknown = Explained(REASONS.get(refused.reason, refused.reason))
        if refused.body is None or refused.signature is None:
            return unknown
        body, header = refused.body, refused.signature.decode("latin-1")
        own = [key for key in self._keys if key.instance == refused.instance]
        active = [key for key in own if key.retired_at is None]
        if _signed_by(active, body, header):
            return Explained("The signature is right by now: verify it again")
        if retired := _signed_by(own, body, header):
            return Explained(f"Signed with the retired key {retired.key.id}")
        if other := _signed_by(self._keys, body, header):
            text = "Signed with the key of another instance: its callback URL is that of this one"
            return Explained(text, other.instance)
        return _likely(active, body, header) or unknown

    def describe(
        self, session: Session, records: Sequence[RejectionRecord], visible: Instances
    ) -> list[str]:
        """Say of deliveries of a list why each was rejected; of large bodies only what is known.

        visible -- the instances that whoever asks may see.
        """
        texts = []
        for place, record in enumerate(records):
            small = place < MAX_DIAGNOSED and record.size <= MAX_DIAGNOSED_BYTES
            found = rejection(session, record.id, None) if small else None
            reason = Explained(REASONS.get(record.reason, record.reason))
            texts.append((self.explain(found) if found else reason).shown(visible))
        return texts


class Quarantine:
    """Verifies refused deliveries again."""

    def __init__(self, database: Database, intake: Intake) -> None:
        self._database, self._intake = database, intake

    def verify_again(
        self,
        only: frozenset[str] | None = None,
        note: Callable[..., None] = lambda *_: None,
    ) -> Again:
        """Verify all quarantined deliveries again, or those of some instances.

        Those whose signature is right by now enter as events, the way all do, and leave the
        quarantine. note -- writes that down, in the same transaction: (session, rejection, event).
        """
        looked = taken = after = 0
        while True:
            with self._database.read() as session:
                batch = quarantined(session, only, BATCH, after)
            for refused in batch:
                looked += 1
                taken += self.verify_one(refused, note)
                after = refused.id
            if len(batch) < BATCH:
                return Again(looked, taken)

    def verify_one(self, refused: Rejection, note: Callable[..., None] = lambda *_: None) -> bool:
        """Verify one again; return whether it is an event by now."""
        if refused.body is None or refused.signature is None:
            return False
        header = refused.signature.decode("latin-1")
        delivery = Delivery(refused.instance, refused.body, header, None, refused.peer)
        receipt = self._intake.receive_again(delivery)
        if receipt is None:
            return False
        with self._database.write() as session:
            forget_rejection(session, refused.id)
            note(session, refused, receipt.event)
        return True


def _signed_by(keys: Sequence[DecryptedKey], body: bytes, header: str) -> DecryptedKey | None:
    for key in keys:
        with suppress(SignatureError):
            verify(body, header, [key.key])
            return key
    return None


def _likely(keys: Sequence[DecryptedKey], body: bytes, header: str) -> Explained | None:
    """Return what most likely went wrong, if one of the keys shows it."""
    for key in keys:
        if cause := likely_cause(body, header, key.key.secret):
            return Explained(cause[0].upper() + cause[1:])
    return None
