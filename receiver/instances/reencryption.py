"""Encrypting what the database keeps secret again, so that an old encryption key can go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from receiver.database.engine import Database
from receiver.database.models import Instance, StoredKey
from receiver.database.models.outbound import Subscription
from receiver.errors import CredentialError
from receiver.instances.encryption import SecretBox
from receiver.instances.registry import SECRETS, position_of


class Encrypted(NamedTuple):
    """A secret in the database: its row and column, and the place that is encrypted with it."""

    row: Instance | StoredKey | Subscription
    column: str
    place: Sequence[str]
    ciphertext: bytes


@dataclass(slots=True)
class Report:
    """How many secrets were encrypted again, and which cannot be decrypted: `INSTANCE/WHAT`."""

    encrypted: int = 0
    unusable: list[str] = field(default_factory=list)


def find_outdated(database: Database, secret_box: SecretBox) -> Report:
    """Count what `reencrypt` would do; nothing is changed."""
    report = Report()
    with database.read() as session:
        names = session.scalars(select(Instance.name).order_by(Instance.name)).all()
        secrets = [secret for name in names for secret in _secrets(session, name)]
        for secret in (*secrets, *_of_subscriptions(session)):
            if _renewed(secret, secret_box, report) is not None:
                report.encrypted += 1
    return report


def reencrypt(database: Database, secret_box: SecretBox) -> Report:
    """Encrypt all secrets with the newest key, an instance in a transaction.

    They stay what they are, so that a receiver that runs need not read them again.
    """
    report = Report()
    with database.read() as session:
        names = session.scalars(select(Instance.name).order_by(Instance.name)).all()
    for name in names:
        with database.write() as session:
            # `instances set` and `keys add` wait meanwhile.
            session.get(Instance, name, with_for_update=True)
            for secret in _secrets(session, name):
                _renew(secret, secret_box, report)
    with database.write() as session:
        session.execute(select(Subscription.name).with_for_update())  # rotations wait meanwhile
        for secret in _of_subscriptions(session):
            _renew(secret, secret_box, report)
    return report


def subscription_place(name: str) -> tuple[str, str]:
    """Return the place that the secrets of a subscription are encrypted for."""
    return name, "subscription"


def _renew(secret: Encrypted, secret_box: SecretBox, report: Report) -> None:
    renewed = _renewed(secret, secret_box, report)
    if renewed is not None:
        setattr(secret.row, secret.column, renewed)
        report.encrypted += 1


def _renewed(secret: Encrypted, secret_box: SecretBox, report: Report) -> bytes | None:
    """Return a secret under the newest key; None if it is already, or cannot be decrypted."""
    if secret_box.is_current(secret.ciphertext):
        return None
    try:
        plain = secret_box.decrypt(secret.place, secret.ciphertext)
    except CredentialError:
        report.unusable.append("/".join(secret.place))
        return None
    return secret_box.encrypt(secret.place, plain)


def _secrets(session: Session, name: str) -> Iterator[Encrypted]:
    instance = session.get(Instance, name)
    if instance is None:  # it was removed meanwhile
        return
    for column in SECRETS:
        if ciphertext := getattr(instance, column):
            yield Encrypted(instance, column, position_of(instance, column), ciphertext)
    for key in session.scalars(select(StoredKey).where(StoredKey.instance == name)):
        yield Encrypted(key, "sealed", (name, key.id), key.sealed)


def _of_subscriptions(session: Session) -> Iterator[Encrypted]:
    for row in session.scalars(select(Subscription).order_by(Subscription.name)):
        place = subscription_place(row.name)
        yield Encrypted(row, "secret", place, row.secret)
        if row.previous_secret:
            yield Encrypted(row, "previous_secret", place, row.previous_secret)
