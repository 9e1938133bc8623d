"""Instances, their signature keys and vendor secrets, all sealed."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
from sqlalchemy import CursorResult, Delete, Update, delete, func, select, update
from sqlalchemy.orm import Session

from receiver.callbacks.store import KEY_PREFIX, key_version
from receiver.database.engine import Database
from receiver.database.models import Instance, KeyVersion, StoredKey
from receiver.errors import CredentialError
from receiver.instances.encryption import Vault
from receiver.openconnectors.signatures import SignatureKey
from receiver.settings import DEFAULT_INSTANCE

log = structlog.get_logger()

MAX_ACTIVE_KEYS = 3  # each refused delivery costs an HMAC for each of them


@dataclass(frozen=True, slots=True)
class InstanceKeys:
    """The keys a delivery is verified with, newest first, and the version they were read at.

    broken -- whether the instance has keys that cannot be opened.
    """

    keys: tuple[SignatureKey, ...]
    version: int
    broken: bool = False


class KeyRing:
    """All instances' signature keys, read once and again whenever someone changed them.

    Nobody tells a node of a change: whoever refuses a delivery asks `refresh` first, and whoever
    stores an event checks its `version` in the same transaction.
    """

    def __init__(
        self, database: Database, vault: Vault, default_keys: Sequence[SignatureKey]
    ) -> None:
        self._database, self._vault = database, vault
        self._default_keys = tuple(default_keys)
        self._version = -1
        self._instances: Mapping[str, InstanceKeys] = {}

    @property
    def known(self) -> bool:
        """Whether the keys were read at all; until then, `of` reads them."""
        return self._version >= 0

    @property
    def version(self) -> int:
        """Of which version the keys are that `of` gives."""
        return self._version

    def of(self, instance: str) -> InstanceKeys | None:
        """Give an instance's keys, or None if it is unknown. Raises StoreUnavailable."""
        if not self.known:
            self.refresh()
        return self._instances.get(instance)

    def names(self) -> list[str]:
        """Name all instances. Raises StoreUnavailable."""
        if self._version < 0:
            self.refresh()
        return sorted(self._instances)

    def refresh(self) -> bool:
        """Read the keys again if they were changed; tell whether they were."""
        with self._database.read() as session:
            version = key_version(session)
            if version == self._version:
                return False
            self._instances = self._read(session, version)
            if self.known:
                log.info("instances or keys were changed", version=version)
            self._version = version
        return True

    def _read(self, session: Session, version: int) -> dict[str, InstanceKeys]:
        names = set(session.scalars(select(Instance.name)))
        found: dict[str, list[SignatureKey]] = {name: [] for name in names}
        broken = set()
        if self._default_keys:
            found.setdefault(DEFAULT_INSTANCE, []).extend(self._default_keys)
        active = select(StoredKey).where(StoredKey.retired_at.is_(None))
        for row in session.scalars(active.order_by(StoredKey.created_at.desc(), StoredKey.id)):
            try:
                secret = self._vault.open((row.instance, row.id), row.sealed)
                found[row.instance].append(SignatureKey(row.id, secret))
            except CredentialError:
                broken.add(row.instance)
        return {
            name: InstanceKeys(tuple(keys), version, name in broken) for name, keys in found.items()
        }


def add_instance(
    session: Session,
    vault: Vault,
    name: str,
    now: int,
    *,
    hub: str | None = None,
    element_token: bytes | None = None,
    user_secret: bytes | None = None,
    organization_secret: bytes | None = None,
) -> None:
    """Make an instance. Raises CredentialError if there is one of that name."""
    if session.get(Instance, name):
        raise CredentialError(
            f"there is an instance {name} already; `receiver instances set` changes it"
        )
    row = Instance(name=name, created_at=now, hub=hub)
    _give(row, vault, element_token, user_secret, organization_secret)
    session.add(row)
    session.flush()
    _count_change(session)


def change_instance(
    session: Session,
    vault: Vault,
    name: str,
    *,
    hub: str | None = None,
    element_token: bytes | None = None,
    user_secret: bytes | None = None,
    organization_secret: bytes | None = None,
) -> None:
    """Give an instance what is not None; the rest stays. Raises CredentialError: no such one."""
    row = session.get(Instance, name, with_for_update=True)
    if row is None:
        raise CredentialError(f"there is no instance {name}")
    row.hub = row.hub if hub is None else hub
    _give(row, vault, element_token, user_secret, organization_secret)


def _give(row: Instance, vault: Vault, *secrets_: bytes | None) -> None:
    columns = ("element_token", "user_secret", "organization_secret")
    for column, secret in zip(columns, secrets_, strict=True):
        if secret:
            setattr(row, column, vault.seal((row.name, column.replace("_", " ")), secret))


def remove_instance(session: Session, name: str) -> None:
    """Forget an instance and its keys; its events and jobs stay. Raises CredentialError."""
    session.execute(delete(StoredKey).where(StoredKey.instance == name))
    if not affected(session, delete(Instance).where(Instance.name == name)):
        raise CredentialError(f"there is no instance {name}")
    _count_change(session)


def instances(session: Session) -> list[dict[str, object]]:
    """Every instance in the database, by name, without secrets."""
    active = (
        select(StoredKey.instance, func.count().label("keys"))
        .where(StoredKey.retired_at.is_(None))
        .group_by(StoredKey.instance)
    )
    keys = {row.instance: row.keys for row in session.execute(active)}
    return [
        {
            "name": row.name,
            "hub": row.hub,
            "keys": keys.get(row.name, 0),
            "vendor_secrets": bool(row.element_token and row.user_secret),
            "created_at": row.created_at,
        }
        for row in session.scalars(select(Instance).order_by(Instance.name))
    ]


@dataclass(frozen=True, slots=True)
class OpenedKey:
    """A key as it is needed to explain a refusal."""

    instance: str
    key: SignatureKey
    retired_at: int | None


@dataclass(frozen=True, slots=True)
class VendorSecrets:
    """What an instance is asked about at the vendor with, as values of the header Authorization.

    queue -- for the vendor's queue of deliveries, which wants the organization's secret.
    """

    authorization: str = field(repr=False)
    queue: str = field(repr=False)
    hub: str | None


def vendor_secrets(session: Session, vault: Vault, instance: str) -> VendorSecrets | None:
    """Give an instance's secrets, or None if it has not both. Raises CredentialError."""
    row = session.get(Instance, instance)
    if row is None or not row.element_token or not row.user_secret:
        return None
    token = _header_text(vault.open((instance, "element token"), row.element_token))
    user = _header_text(vault.open((instance, "user secret"), row.user_secret))
    authorization = queue = f"Element {token}, User {user}"
    if row.organization_secret:
        place = (instance, "organization secret")
        queue = (
            f"User {user}, Organization {_header_text(vault.open(place, row.organization_secret))}"
        )
    return VendorSecrets(authorization, queue, row.hub)


def with_vendor_secrets(session: Session) -> list[str]:
    """Name the instances that the vendor can be asked about."""
    both = Instance.element_token.is_not(None) & Instance.user_secret.is_not(None)
    return list(session.scalars(select(Instance.name).where(both).order_by(Instance.name)))


def _header_text(secret: bytes) -> str:
    text = secret.decode("ascii", "replace")
    if not text.isascii() or not text.isprintable():
        raise CredentialError("a vendor secret holds bytes that no header can carry")
    return text


def add_key(session: Session, vault: Vault, instance: str, secret: bytes, now: int) -> str:
    """Add a signature key as the newest of an instance, and give its id.

    Raises CredentialError if the instance is unknown, has MAX_ACTIVE_KEYS already or has this very
    key, or if the key is empty or ends in a NUL byte.
    """
    SignatureKey("in this file", secret)
    key_id = KEY_PREFIX + secrets.token_hex(4)
    if session.get(Instance, instance, with_for_update=True) is None:
        if instance != DEFAULT_INSTANCE:
            raise CredentialError(f"there is no instance {instance}")
        add_instance(session, vault, instance, now)
    active = session.scalars(
        select(StoredKey).where(StoredKey.instance == instance, StoredKey.retired_at.is_(None))
    ).all()
    if len(active) >= MAX_ACTIVE_KEYS:
        raise CredentialError(f"{instance} has {len(active)} keys already: retire one first")
    if any(vault.open((instance, key.id), key.sealed) == secret for key in active):
        raise CredentialError(f"{instance} has this key already")
    newest = max((key.created_at for key in active), default=0)
    session.add(
        StoredKey(
            id=key_id,
            instance=instance,
            sealed=vault.seal((instance, key_id), secret),
            created_at=max(now, newest + 1),
        )
    )
    session.flush()
    _count_change(session)
    return key_id


def shared_with(session: Session, vault: Vault, instance: str, secret: bytes) -> list[str]:
    """Other instances that hold the same key: a body of one can be posted to the other."""
    rows = session.scalars(select(StoredKey).where(StoredKey.instance != instance))
    return sorted(
        {row.instance for row in rows if vault.open((row.instance, row.id), row.sealed) == secret}
    )


def retire_key(session: Session, key_id: str, instance: str | None, now: int) -> None:
    """Accept a key no longer. Raises CredentialError if there is no such key in use."""
    statement = update(StoredKey).where(StoredKey.id == key_id, StoredKey.retired_at.is_(None))
    if instance is not None:
        statement = statement.where(StoredKey.instance == instance)
    if not affected(session, statement.values(retired_at=now)):
        raise CredentialError(f"there is no key {key_id} in use")
    _count_change(session)


def keys(session: Session, instance: str | None = None) -> list[dict[str, object]]:
    """Every key in the database, newest first in its instance, without secrets."""
    statement = select(StoredKey).order_by(StoredKey.instance, StoredKey.created_at.desc())
    if instance is not None:
        statement = statement.where(StoredKey.instance == instance)
    return [
        {
            "id": row.id,
            "instance": row.instance,
            "created_at": row.created_at,
            "last_used_at": row.last_used_at,
            "retired_at": row.retired_at,
        }
        for row in session.scalars(statement)
    ]


def opened_keys(session: Session, vault: Vault) -> list[OpenedKey]:
    """Every key in the database that can be opened, newest first, retired ones too."""
    found = []
    for row in session.scalars(select(StoredKey).order_by(StoredKey.created_at.desc())):
        try:
            key = SignatureKey(row.id, vault.open((row.instance, row.id), row.sealed))
        except CredentialError:
            continue
        found.append(OpenedKey(row.instance, key, row.retired_at))
    return found


def affected(session: Session, statement: Delete | Update) -> int:
    """Run a statement; give how many rows it changed."""
    return int(cast("CursorResult[Any]", session.execute(statement)).rowcount)


def _count_change(session: Session) -> None:
    session.execute(update(KeyVersion).values(version=KeyVersion.version + 1))
