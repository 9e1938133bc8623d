"""Instances: their names, and the encrypted secrets that the vendor is asked with."""

from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from sqlalchemy import Connection, and_, delete, func, select, update
from sqlalchemy.orm import Session

from receiver.database.models import Instance, KeyVersion, StoredKey
from receiver.errors import CredentialError
from receiver.instances.encryption import SecretBox, position_of
from receiver.settings import DEFAULT_INSTANCE, Settings

HAS_VENDOR_SECRETS = and_(Instance.element_token.is_not(None), Instance.user_secret.is_not(None))


class VendorOptions(TypedDict, total=False):
    """What the vendor is asked with; None is not set."""

    hub: str | None
    element_token: bytes | None
    user_secret: bytes | None
    organization_secret: bytes | None


def instance_names(session: Session, settings: Settings) -> set[str]:
    """Return the names of all instances, also of the one in the settings."""
    names = set(session.scalars(select(Instance.name)))
    return names | ({DEFAULT_INSTANCE} if settings.default_keys else set())


def get_instance(session: Session, name: str, *, lock: bool = False) -> Instance:
    """Return an instance of the database. Raises CredentialError if there is none."""
    row = session.get(Instance, name, with_for_update=lock)
    if row is None:
        names = ", ".join(session.scalars(select(Instance.name).order_by(Instance.name)))
        there = names or "none yet"
        raise CredentialError(f"there is no instance {name}; the instances are: {there}")
    return row


def add_instance(
    session: Session, secret_box: SecretBox, name: str, now: int, **options: Unpack[VendorOptions]
) -> None:
    """Add an instance. Raises CredentialError if there is one of that name."""
    if session.get(Instance, name):
        raise CredentialError(
            f"there is an instance {name} already; `receiver instances set` changes it"
        )
    row = Instance(name=name, created_at=now)
    _set_options(row, secret_box, options)
    session.add(row)
    session.flush()
    count_change(session)


def change_instance(
    session: Session, secret_box: SecretBox, name: str, **options: Unpack[VendorOptions]
) -> None:
    """Set those options that are not None. Raises CredentialError if there is no such instance."""
    _set_options(get_instance(session, name, lock=True), secret_box, options)


def _set_options(row: Instance, secret_box: SecretBox, options: VendorOptions) -> None:
    for column, value in options.items():
        if isinstance(value, bytes):
            setattr(row, column, secret_box.encrypt(position_of(row, column), value))
        elif value is not None:
            setattr(row, column, value)


def remove_instance(session: Session, name: str) -> None:
    """Delete an instance and its keys; its events and jobs stay. Raises CredentialError."""
    row = get_instance(session, name, lock=True)
    session.execute(delete(StoredKey).where(StoredKey.instance == name))
    session.delete(row)
    session.flush()
    count_change(session)


def list_instances(session: Session) -> list[dict[str, object]]:
    """Return every instance in the database, by name, without secrets."""
    active = (
        select(func.count())
        .where(StoredKey.instance == Instance.name, StoredKey.retired_at.is_(None))
        .scalar_subquery()
    )
    statement = select(
        Instance.name,
        Instance.hub,
        active.label("keys"),
        HAS_VENDOR_SECRETS.label("vendor_secrets"),
        Instance.created_at,
    )
    return [dict(row) for row in session.execute(statement.order_by(Instance.name)).mappings()]


@dataclass(frozen=True, slots=True)
class VendorSecrets:
    """Values of the header Authorization for requests to the vendor about an instance.

    queue -- for the vendor's queue of deliveries, which wants the organization's secret.
    """

    authorization: str = field(repr=False)
    queue: str = field(repr=False)
    hub: str | None


def vendor_secrets(session: Session, secret_box: SecretBox, instance: str) -> VendorSecrets | None:
    """Return an instance's secrets; None if it has not both. Raises CredentialError."""
    row = session.get(Instance, instance)
    if row is None or not row.element_token or not row.user_secret:
        return None
    user = _decrypt(row, secret_box, "user_secret")
    authorization = f"Element {_decrypt(row, secret_box, 'element_token')}, User {user}"
    if not row.organization_secret:
        return VendorSecrets(authorization, authorization, row.hub)
    organization = _decrypt(row, secret_box, "organization_secret")
    return VendorSecrets(authorization, f"User {user}, Organization {organization}", row.hub)


def list_instances_with_secrets(session: Session) -> list[str]:
    """Return the names of the instances that the vendor can be asked about."""
    names = select(Instance.name).where(HAS_VENDOR_SECRETS)
    return list(session.scalars(names.order_by(Instance.name)))


def list_undecryptable(session: Session, secret_box: SecretBox) -> list[str]:
    """Return the names of the instances whose vendor secrets cannot be decrypted."""
    broken = []
    for name in list_instances_with_secrets(session):
        try:
            vendor_secrets(session, secret_box, name)
        except CredentialError:
            broken.append(name)
    return broken


def _decrypt(row: Instance, secret_box: SecretBox, column: str) -> str:
    secret = secret_box.decrypt(position_of(row, column), getattr(row, column))
    text = secret.decode("ascii", "replace")
    if not text.isascii() or not text.isprintable():
        raise CredentialError("a vendor secret holds bytes that no header can carry")
    return text


def key_version(connection: Connection | Session) -> int:
    """Return how often instances and keys were changed."""
    return connection.scalar(select(KeyVersion.version)) or 0


def count_change(session: Session) -> None:
    """Make every process read instances and keys again."""
    session.execute(update(KeyVersion).values(version=KeyVersion.version + 1))
