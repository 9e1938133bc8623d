"""Signature keys: who may send. Encrypted in the database; each process has a snapshot of them."""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import Database, affected
from receiver.database.models import Instance, StoredKey
from receiver.errors import (
    CredentialError,
    KeyUnusable,
    NoSignatureKey,
    SignatureError,
    SignatureMismatch,
    UnknownInstance,
)
from receiver.instances.encryption import SecretBox
from receiver.instances.registry import add_instance, count_change, get_instance, key_version
from receiver.openconnectors.signatures import SignatureKey, verify
from receiver.settings import DEFAULT_INSTANCE

log = structlog.get_logger()

KEY_PREFIX = "key-"  # of the ids of signature keys in the database
MAX_ACTIVE_KEYS = 3  # each rejected delivery costs an HMAC for each of them


@dataclass(frozen=True, slots=True)
class InstanceKeys:
    """The keys a delivery is verified with, newest first.

    broken -- whether the instance has keys that cannot be decrypted.
    """

    keys: tuple[SignatureKey, ...]
    broken: bool = False


@dataclass(frozen=True, slots=True)
class KeySnapshot:
    """All instances' signature keys as they were at one version. Immutable."""

    version: int
    instances: Mapping[str, InstanceKeys]

    def verify(self, instance: str, body: bytes, signature: str | None) -> str:
        """Return the id of the instance's key that signed `body`.

        Raises a SignatureError, or KeyUnusable where a key that cannot be decrypted may have.
        An unknown instance takes as long as one with a key.
        """
        of_instance = self.instances.get(instance)
        if of_instance is None:
            return _reject_unknown(body, signature)
        try:
            return verify(body, signature, of_instance.keys)
        except (SignatureMismatch, NoSignatureKey):
            if of_instance.broken:
                raise KeyUnusable("a key of this instance cannot be decrypted") from None
            raise


def _reject_unknown(body: bytes, signature: str | None) -> str:
    try:
        return verify(body, signature, ())
    except SignatureError:
        raise UnknownInstance("no such instance") from None


class Keys:
    """The newest snapshot of the keys that this process has read.

    No process is notified of a change: whoever writes reads the version in its transaction, and
    judges by a snapshot of that version.
    """

    def __init__(self, secret_box: SecretBox, default_keys: Sequence[SignatureKey]) -> None:
        self._secret_box, self._default_keys = secret_box, tuple(default_keys)
        self.current = KeySnapshot(-1, {})

    def refresh(self, database: Database) -> KeySnapshot:
        """Return a snapshot of the keys as they are now. Raises StoreUnavailable."""
        with database.read() as session:
            if key_version(session) == self.current.version:
                return self.current
            return self.load(session.connection())

    def load(self, connection: Connection) -> KeySnapshot:
        """Read a snapshot in a transaction; from now on it is the current one."""
        version = key_version(connection)
        keys: dict[str, list[SignatureKey]] = {
            name: [] for name in connection.scalars(select(Instance.name))
        }
        if self._default_keys:
            keys.setdefault(DEFAULT_INSTANCE, []).extend(self._default_keys)
        broken = set()
        active = (
            select(StoredKey.instance, StoredKey.id, StoredKey.sealed)
            .where(StoredKey.retired_at.is_(None))
            .order_by(StoredKey.created_at.desc(), StoredKey.id)
        )
        for instance, id_, ciphertext in connection.execute(active):
            try:
                secret = self._secret_box.decrypt((instance, id_), ciphertext)
                keys[instance].append(SignatureKey(id_, secret))
            except CredentialError:
                broken.add(instance)
        if version != self.current.version >= 0:
            log.info("instances or keys were changed", version=version)
        instances = {name: InstanceKeys(tuple(own), name in broken) for name, own in keys.items()}
        # Threads may load at once, and the older snapshot win: whoever judges by it reads the
        # version in its transaction, and loads again.
        self.current = KeySnapshot(version, instances)
        return self.current


@dataclass(frozen=True, slots=True)
class DecryptedKey:
    """A key as it is needed to explain a rejection."""

    instance: str
    key: SignatureKey
    retired_at: int | None


def add_key(session: Session, secret_box: SecretBox, instance: str, secret: bytes, now: int) -> str:
    """Add a signature key as the newest of an instance; return its id.

    Raises CredentialError if the instance is unknown, has MAX_ACTIVE_KEYS already or has this very
    key, or if the key is empty or ends in a NUL byte.
    """
    SignatureKey("in this file", secret)
    key_id = KEY_PREFIX + secrets.token_hex(4)
    # Locked, or two that add a key at once would both count fewer than MAX_ACTIVE_KEYS.
    if instance == DEFAULT_INSTANCE and session.get(Instance, instance) is None:
        add_instance(session, secret_box, instance, now)
    get_instance(session, instance, lock=True)
    active = session.scalars(
        select(StoredKey).where(StoredKey.instance == instance, StoredKey.retired_at.is_(None))
    ).all()
    if len(active) >= MAX_ACTIVE_KEYS:
        raise CredentialError(f"{instance} has {len(active)} keys already: retire one first")
    same = [key for key in decrypted_keys(session, secret_box) if key.key.secret == secret]
    if any(key.instance == instance and not key.retired_at for key in same):
        raise CredentialError(f"{instance} has this key already")
    newest = max((row.created_at for row in active), default=0)
    session.add(
        StoredKey(
            id=key_id,
            instance=instance,
            sealed=secret_box.encrypt((instance, key_id), secret),
            created_at=max(now, newest + 1),
        )
    )
    session.flush()
    count_change(session)
    return key_id


def shared_with(session: Session, secret_box: SecretBox, instance: str, secret: bytes) -> list[str]:
    """Return other instances that have the same key: a body of one can be posted to the other."""
    same = [key for key in decrypted_keys(session, secret_box) if key.key.secret == secret]
    return sorted({key.instance for key in same} - {instance})


def find_shared(instances: Mapping[str, InstanceKeys]) -> list[str]:
    """Return the names of some instances that have one key; none if there are no such."""
    holders: dict[bytes, set[str]] = {}
    for name, held in instances.items():
        for key in held.keys:
            holders.setdefault(key.secret, set()).add(name)
    return sorted(next((names for names in holders.values() if len(names) > 1), set()))


def retire_key(session: Session, key_id: str, instance: str | None, now: int) -> None:
    """Accept a key no longer. Raises CredentialError if there is no such key in use."""
    statement = update(StoredKey).where(StoredKey.id == key_id, StoredKey.retired_at.is_(None))
    if instance is not None:
        statement = statement.where(StoredKey.instance == instance)
    if not affected(session, statement.values(retired_at=now)):
        raise CredentialError(f"there is no key {key_id} in use: `receiver keys list` lists them")
    count_change(session)


def remove_key(session: Session, key_id: str) -> None:
    """Delete a retired key. Raises CredentialError if there is none of that id."""
    session.delete(get_retired_key(session, key_id, lock=True))
    session.flush()
    count_change(session)


def get_retired_key(session: Session, key_id: str, *, lock: bool = False) -> StoredKey:
    """Return a key that was retired. Raises CredentialError if there is none of that id."""
    row = session.get(StoredKey, key_id, with_for_update=lock)
    if row is None or row.retired_at is None:
        raise CredentialError(f"there is no retired key {key_id}: `receiver keys list` lists them")
    return row


def list_keys(session: Session, instance: str | None = None) -> list[dict[str, object]]:
    """Return every key in the database, newest first in its instance, without secrets."""
    columns = (StoredKey.id, StoredKey.instance, StoredKey.created_at)
    statement = select(*columns, StoredKey.last_used_at, StoredKey.retired_at)
    statement = statement.order_by(StoredKey.instance, StoredKey.created_at.desc())
    if instance is not None:
        statement = statement.where(StoredKey.instance == instance)
    return [dict(row) for row in session.execute(statement).mappings()]


def decrypted_keys(session: Session, secret_box: SecretBox) -> list[DecryptedKey]:
    """Return every key in the database that can be decrypted, newest first, retired ones too."""
    keys = []
    for row in session.scalars(select(StoredKey).order_by(StoredKey.created_at.desc())):
        with suppress(CredentialError):
            key = SignatureKey(row.id, secret_box.decrypt((row.instance, row.id), row.sealed))
            keys.append(DecryptedKey(row.instance, key, row.retired_at))
    return keys
