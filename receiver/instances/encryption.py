"""Encryption of the secrets in the database, and anew, so that an old encryption key can go.

Fernet authenticates what it encrypts but not where it is stored, so the row and column are
encrypted with the secret: a ciphertext that was swapped with another row's does not decrypt.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select
from sqlalchemy.orm import Session

from receiver.database.engine import Database
from receiver.database.models import Instance, StoredKey
from receiver.database.models.outbound import Subscription
from receiver.errors import CredentialError

_SECRETS = ("element_token", "user_secret", "organization_secret")  # columns


class SecretBox:
    """Encrypts secrets with the newest key, and decrypts them with any.

    encryption_keys -- Fernet keys, newest first; with none, both methods raise CredentialError.
    """

    def __init__(self, encryption_keys: Sequence[str]) -> None:
        self._keys = [Fernet(key) for key in encryption_keys]

    def encrypt(self, place: Sequence[str], secret: bytes) -> bytes:
        """Encrypt a secret for the place where it is stored."""
        content = json.dumps([*place, b64encode(secret).decode()])
        return self._fernet().encrypt(content.encode())

    def decrypt(self, place: Sequence[str], ciphertext: bytes) -> bytes:
        """Decrypt the secret stored at `place`. Raises CredentialError."""
        try:
            *encrypted_for, secret = json.loads(self._fernet().decrypt(ciphertext))
        except InvalidToken:
            raise CredentialError(
                "a secret was encrypted with a key that is not in RECEIVER_ENCRYPTION_KEYS:"
                " add that key again, or set the secret anew"
            ) from None
        if encrypted_for != list(place):
            raise CredentialError("an encrypted secret is in a row it was not encrypted for")
        return b64decode(secret)

    def is_current(self, ciphertext: bytes) -> bool:
        """Whether the newest key encrypted it."""
        try:
            self._keys[0].decrypt(ciphertext)
        except (InvalidToken, IndexError):
            return False
        return True

    def _fernet(self) -> MultiFernet:
        if not self._keys:
            raise CredentialError(
                "RECEIVER_ENCRYPTION_KEYS is needed to keep keys and secrets in the database:"
                " set it to what `head -c 32 /dev/urandom | base64 | tr +/ -_` prints, for commands"
                " and `receiver serve` alike, and restart it"
            )
        return MultiFernet(self._keys)


def position_of(row: Instance, column: str) -> tuple[str, str]:
    """Return the place that a secret is encrypted for."""
    return row.name, column.replace("_", " ")


def subscription_place(name: str) -> tuple[str, str]:
    """Return the place that the secrets of a subscription are encrypted for."""
    return name, "subscription"


class Encrypted(NamedTuple):
    """A secret in the database: its row and column, and the place that is encrypted with it."""

    row: Instance | StoredKey | Subscription
    column: str
    place: Sequence[str]


@dataclass(slots=True)
class Report:
    """How many secrets were encrypted again, and which cannot be decrypted: `INSTANCE/WHAT`."""

    encrypted: int = 0
    unusable: list[str] = field(default_factory=list)


def find_outdated(database: Database, secret_box: SecretBox) -> Report:
    """Count what `reencrypt` would do; nothing is changed."""
    report = Report()
    with database.read() as session:
        for owner in _owners(session):
            for secret in _secrets(session, owner):
                _renewed(secret, secret_box, report)
    return report


def reencrypt(database: Database, secret_box: SecretBox) -> Report:
    """Encrypt all secrets with the newest key, an instance in a transaction.

    They stay what they are, so that a receiver that runs need not read them again.
    """
    report = Report()
    with database.read() as session:
        owners = _owners(session)
    for owner in owners:
        with database.write() as session:
            for secret in _secrets(session, owner, lock=True):
                renewed = _renewed(secret, secret_box, report)
                if renewed is not None:
                    setattr(secret.row, secret.column, renewed)
    return report


def _renewed(secret: Encrypted, secret_box: SecretBox, report: Report) -> bytes | None:
    """Return a secret under the newest key; None if it is already, or cannot be decrypted."""
    ciphertext = getattr(secret.row, secret.column)
    if secret_box.is_current(ciphertext):
        return None
    try:
        plain = secret_box.decrypt(secret.place, ciphertext)
    except CredentialError:
        report.unusable.append("/".join(secret.place))
        return None
    report.encrypted += 1
    return secret_box.encrypt(secret.place, plain)


def _owners(session: Session) -> list[str | None]:
    """Return the names of the instances, and None for all subscriptions together."""
    return [*session.scalars(select(Instance.name).order_by(Instance.name)), None]


def _secrets(session: Session, owner: str | None, *, lock: bool = False) -> Iterator[Encrypted]:
    """Yield the secrets of an owner. lock -- whether those who would change them wait meanwhile."""
    if owner is None:
        rows = select(Subscription).order_by(Subscription.name)
        for row in session.scalars(rows.with_for_update() if lock else rows).all():
            secrets = [name for name in ("secret", "previous_secret") if getattr(row, name)]
            yield from (Encrypted(row, name, subscription_place(row.name)) for name in secrets)
        return
    instance = session.get(Instance, owner, with_for_update=lock or None)
    if instance is None:  # it was removed meanwhile
        return
    for column in _SECRETS:
        if getattr(instance, column):
            yield Encrypted(instance, column, position_of(instance, column))
    for key in session.scalars(select(StoredKey).where(StoredKey.instance == owner)):
        yield Encrypted(key, "sealed", (owner, key.id))
