"""Instances: what they are called, and what they are asked about at the vendor with, encrypted."""

from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.orm import Session

from receiver.database.engine import affected
from receiver.database.models import Instance, KeyVersion, StoredKey
from receiver.errors import CredentialError
from receiver.instances.encryption import Vault


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
    _encrypt(row, vault, element_token, user_secret, organization_secret)
    session.add(row)
    session.flush()
    count_change(session)


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
    _encrypt(row, vault, element_token, user_secret, organization_secret)


def _encrypt(row: Instance, vault: Vault, *secrets_: bytes | None) -> None:
    columns = ("element_token", "user_secret", "organization_secret")
    for column, secret in zip(columns, secrets_, strict=True):
        if secret:
            setattr(row, column, vault.seal((row.name, column.replace("_", " ")), secret))


def remove_instance(session: Session, name: str) -> None:
    """Forget an instance and its keys; its events and jobs stay. Raises CredentialError."""
    session.execute(delete(StoredKey).where(StoredKey.instance == name))
    if not affected(session, delete(Instance).where(Instance.name == name)):
        raise CredentialError(f"there is no instance {name}")
    count_change(session)


def list_instances(session: Session) -> list[dict[str, object]]:
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


def key_version(connection: Connection | Session) -> int:
    """Return how often instances and keys were changed."""
    return connection.scalar(select(KeyVersion.version)) or 0


def count_change(session: Session) -> None:
    """Have every process read instances and keys again."""
    session.execute(update(KeyVersion).values(version=KeyVersion.version + 1))
