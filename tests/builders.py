"""What tests build: a receiver in this process, a store without one, and bodies to send."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from receiver.callbacks.deliveries import Delivery, Item, Judged, Result, judge
from receiver.callbacks.store import Store
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.database.models import Base
from receiver.errors import SignatureError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.openconnectors.notifications import parse
from receiver.openconnectors.signatures import HEADER, SignatureKey, sign, verify
from receiver.web import Services

KEY = SignatureKey("environment", b"a key for tests, long enough")
NOW = 1_790_000_000_000  # ms
UNHURRIED = {"default_keys": (KEY,), "answer_within": 60_000}  # of a machine that may be busy


def take_schema_away(database: Database) -> None:
    """Leave a database as one that was never brought up to date."""
    Base.metadata.drop_all(database.engine)
    with database.write() as session:
        session.execute(text("DELETE FROM alembic_version"))
        if not database.is_sqlite:
            session.execute(text("DROP FUNCTION refuse_audit_change"))


def is_valid(body: bytes, header: str | None, keys: list[SignatureKey]) -> bool:
    """Whether one of the keys signed a body."""
    try:
        verify(body, header, keys)
    except SignatureError:
        return False
    return True


def content_of(url: str) -> bytes:
    """All bytes of an SQLite database: its file, and the log beside it."""
    file = Path(url.removeprefix("sqlite:///"))
    return b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*"))


class Clock:
    """A clock that is set by hand; PostgreSQL does not go by it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def bulk(job: str = "1", status: str = "COMPLETED", **facts: object) -> bytes:
    """A body about a job."""
    return json.dumps({"id": job, "status": status, **facts}).encode()


# Schemathesis makes its cases for each limit of a document as tests are collected, which takes
# each of pytest's processes ten seconds.
PHASES = {"coverage": {"enabled": os.environ.get("TESTS") != "quick"}}


def examples(most: int) -> int:
    """How many examples of a law to try: a sixth in `make test`, half in `make test-all`.

    With TESTS=full it is all. Each run tries others.
    """
    return most // {"quick": 6, "full": 1}.get(os.environ.get("TESTS", ""), 2)


@dataclass
class Receiver:
    """A receiver in this process, and someone who sends callbacks and asks questions."""

    app: Flask
    token: str
    client: FlaskClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.app.test_client()

    @property
    def services(self) -> Services:
        found = self.app.extensions["receiver"]
        assert isinstance(found, Services)
        return found

    def call_back(self, body: bytes, instance: str = "default", key: SignatureKey = KEY, **headers):
        """POST a signed callback."""
        signed = {HEADER: sign(body, key), **headers}
        return self.client.post(f"/callbacks/{instance}", data=body, headers=signed)

    def get(self, path: str, token: str | None = None, **headers):
        """Ask the API."""
        authorization = {"Authorization": f"Bearer {token or self.token}"}
        return self.client.get(f"/api/v1{path}", headers={**authorization, **headers})

    def close(self) -> None:
        self.services.intake.writer.close()
        self.services.database.close()


@dataclass
class Stored:
    """A database, and who writes to it. now -- ms; PostgreSQL goes by its own clock."""

    database: Database
    encryption_keys: tuple[str, ...] = ()
    now: int = NOW
    keys: Keys = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.keys = Keys(SecretBox(self.encryption_keys), (KEY,))
        self.store = Store(self.database, self.keys, lambda: self.now)
        self.keys.refresh(self.database)

    @classmethod
    def opened(cls, url: str, **options) -> "Stored":
        return cls(migrations.open_database(url), **options)

    def judged(self, body: bytes, instance: str = "default", key: SignatureKey = KEY) -> Judged:
        """A signed delivery with the verdict on it."""
        delivery = Delivery(instance, body, sign(body, key), None, "192.0.2.1")
        return judge(self.keys.current, delivery)

    def of_any(self, instance: str, body: bytes) -> Judged:
        """A delivery to an instance that need not exist, as if some key of it had signed it."""
        delivery = Delivery(instance, body, None, None, "192.0.2.1")
        digest = hashlib.sha256(body).digest()
        return Judged(delivery, self.keys.current.version, "k", "", digest, parse(body))

    def write(self, *items: Item | bytes) -> list[Result]:
        """Write a batch in one transaction; bodies stand for signed deliveries."""
        batch = [self.judged(item) if isinstance(item, bytes) else item for item in items]
        return self.store.write(batch)

    def close(self) -> None:
        self.database.close()


Open = Callable[..., Stored]
