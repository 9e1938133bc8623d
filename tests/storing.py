"""A store without a receiver: batches are written as the writer would, and read back."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from receiving import KEY

from receiver.callbacks.deliveries import Delivery, Item, Judged, Result, judge
from receiver.callbacks.store import Store
from receiver.database import migrations
from receiver.database.engine import Database
from receiver.instances.encryption import Vault
from receiver.instances.keys import Keys
from receiver.openconnectors.notifications import parse
from receiver.openconnectors.signatures import SignatureKey, sign

NOW = 1_790_000_000_000  # ms


def bulk(job: str = "1", status: str = "COMPLETED", **facts: object) -> bytes:
    """A body about a job."""
    return json.dumps({"id": job, "status": status, **facts}).encode()


@dataclass
class Stored:
    """A database, and who writes to it. now -- ms; PostgreSQL goes by its own clock."""

    database: Database
    encryption_keys: tuple[str, ...] = ()
    now: int = NOW
    keys: Keys = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.keys = Keys(Vault(self.encryption_keys), (KEY,))
        self.store = Store(self.database, self.keys, lambda: self.now)
        self.keys.fresh(self.database)

    @classmethod
    def opened(cls, url: str, **options) -> "Stored":
        return cls(migrations.opened(url), **options)

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
