"""What was rejected: counts by reason and by address, a bounded quarantine, a second look."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from msgspec import Struct
from sqlalchemy import case, delete, func, insert, or_, select

from receiver.callbacks.deliveries import AddressCount, Delivery, NewRejection, Receipt
from receiver.callbacks.diagnosis import likely_cause
from receiver.database.engine import Database, Session, upsert
from receiver.database.models import RefusedAddress, Rejection, RejectionCount
from receiver.database.page import page, page_values
from receiver.errors import SignatureError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import DecryptedKey, decrypted_keys
from receiver.jobs.queries import Instances, reachable
from receiver.lib.clock import MINUTE_MS
from receiver.openconnectors.signatures import SignatureKey, verify
from receiver.settings import DEFAULT_INSTANCE

MAX_REJECTIONS = 5_000
MAX_REJECTIONS_OF_A_PEER = 1_000
MAX_REJECTION_BYTES = 64 * 2**20

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


def record_rejections(
    session: Session, rejections: Sequence[NewRejection], now: int
) -> list[AddressCount]:
    """Count rejected deliveries, and quarantine those to a known instance; count each address."""
    _count_rejections(session, rejections, now)
    named = [rejection for rejection in rejections if rejection.instance]
    if named:
        rows = [{"at": now, **msgspec.structs.asdict(rejection)} for rejection in named]
        session.execute(insert(Rejection), rows)
        _trim_quarantine(session)
    return _count_addresses(session, [rejection.peer for rejection in rejections], now)


def _count_rejections(session: Session, rejections: Sequence[NewRejection], now: int) -> None:
    tally: dict[tuple[str, str], int] = {}
    for rejection in rejections:
        place = rejection.reason, rejection.instance
        tally[place] = tally.get(place, 0) + 1
    new = upsert(session, RejectionCount)
    statement = new.on_conflict_do_update(
        index_elements=[RejectionCount.minute, RejectionCount.reason, RejectionCount.instance],
        set_={"count": RejectionCount.count + new.excluded.count},
    )
    minute = now // MINUTE_MS
    session.execute(
        statement,
        [
            {"minute": minute, "reason": reason, "instance": instance, "count": count}
            for (reason, instance), count in sorted(tally.items())
        ],
    )


def _count_addresses(session: Session, peers: Sequence[str], now: int) -> list[AddressCount]:
    new = upsert(session, RefusedAddress)
    over = RefusedAddress.since <= now - MINUTE_MS
    statement = new.on_conflict_do_update(
        index_elements=[RefusedAddress.peer],
        set_={
            "since": case((over, now), else_=RefusedAddress.since),
            "count": case(
                (over, new.excluded.count), else_=RefusedAddress.count + new.excluded.count
            ),
        },
    ).returning(RefusedAddress.peer, RefusedAddress.count, RefusedAddress.since)
    rows = [{"peer": peer, "since": now, "count": peers.count(peer)} for peer in sorted(set(peers))]
    return [
        AddressCount(peer, count, since + MINUTE_MS - now)
        for peer, count, since in session.execute(statement, rows)
    ]


def _trim_quarantine(session: Session) -> None:
    """Bound the quarantine in rows, in rows of one address, and in bytes, oldest out."""
    newest = Rejection.id.desc()
    ranked = select(
        Rejection.id,
        func.row_number().over(order_by=newest).label("place"),
        func.row_number().over(partition_by=Rejection.peer, order_by=newest).label("of_peer"),
        func.sum(Rejection.size).over(order_by=newest).label("bytes"),
    ).subquery()
    surplus = select(ranked.c.id).where(
        or_(
            ranked.c.place > MAX_REJECTIONS,
            ranked.c.of_peer > MAX_REJECTIONS_OF_A_PEER,
            ranked.c.bytes > MAX_REJECTION_BYTES,
        )
    )
    # Two nodes that trim at once must not wait for each other.
    free = select(Rejection.id).where(Rejection.id.in_(surplus)).with_for_update(skip_locked=True)
    session.execute(
        delete(Rejection).where(Rejection.id.in_(free)).execution_options(synchronize_session=False)
    )


class RejectionFilters(Struct, frozen=True, kw_only=True):
    """Which rejections. An empty sequence or None leaves a filter open; times are ms.

    visible -- the instances that the token reaches.
    """

    instances: Sequence[str] = ()
    reasons: Sequence[str] = ()
    peers: Sequence[str] = ()
    after: int | None = None
    before: int | None = None
    visible: Instances = None


class RejectionRecord(Struct, frozen=True):
    """A quarantined delivery as it is listed; at -- ms."""

    id: int
    at: int
    instance: str
    reason: str
    peer: str
    size: int


def list_rejections(
    database: Database, filters: RejectionFilters, limit: int, after: tuple[int, int] | None = None
) -> list[RejectionRecord]:
    """Read quarantined deliveries, newest first, from behind the (at, id) `after`.

    They are a few thousand at most, and need no index but that of their order.
    """
    instances = reachable(filters.instances, filters.visible)
    lists = {"instance": instances, "reason": filters.reasons, "peer": filters.peers}
    where = [
        getattr(Rejection, name).in_(sorted(values))
        for name, values in lists.items()
        if values or values == frozenset()
    ]
    if filters.after is not None:
        where.append(Rejection.at > filters.after)
    if filters.before is not None:
        where.append(Rejection.at < filters.before)
    order = [Rejection.at, Rejection.id]
    keys = page(order, where, after=after is not None, sqlite=database.is_sqlite).subquery()
    columns = [getattr(Rejection, name) for name in RejectionRecord.__struct_fields__]
    of_page = select(*columns).join(keys, keys.c.id == Rejection.id)
    statement = of_page.order_by(keys.c.at.desc(), keys.c.id.desc())
    return [RejectionRecord(*row) for row in database.rows(statement, page_values(limit, after))]


def rejection(session: Session, id_: int, only: frozenset[str] | None) -> Rejection | None:
    """Give a quarantined delivery, if it is of one of those instances."""
    found = session.get(Rejection, id_)
    return found if found and (only is None or found.instance in only) else None


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a delivery was refused. elsewhere -- the other instance whose key made the signature."""

    text: str
    elsewhere: str | None = None

    def shown(self, visible: Instances) -> str:
        """Say why, naming another instance only to those who may see it."""
        named = self.elsewhere and (visible is None or self.elsewhere in visible)
        return f"{self.text} ({self.elsewhere})" if named else self.text


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


@dataclass(frozen=True, slots=True)
class Again:
    """How many deliveries were verified again, and how many of them became events."""

    looked: int = 0
    taken: int = 0


class Quarantine:
    """Verifies refused deliveries again. receive -- takes in those that are right by now."""

    def __init__(self, database: Database, receive: Callable[[Delivery], Receipt | None]) -> None:
        self._database, self._receive = database, receive

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
                batch = _quarantined(session, only, BATCH, after)
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
        receipt = self._receive(delivery)
        if receipt is None:
            return False
        with self._database.write() as session:
            _forget(session, refused.id)
            note(session, refused, receipt.event)
        return True


def _quarantined(
    session: Session, only: frozenset[str] | None, limit: int, after: int = 0
) -> Sequence[Rejection]:
    """Give deliveries that may be verified again, oldest first, with ids above `after`.

    only -- the instances, or None for all.
    """
    whole = select(Rejection).where(
        Rejection.id > after, Rejection.body.is_not(None), Rejection.signature.is_not(None)
    )
    mine = whole if only is None else whole.where(Rejection.instance.in_(sorted(only)))
    return session.scalars(mine.order_by(Rejection.id).limit(limit)).all()


def _forget(session: Session, id_: int) -> None:
    """Take a delivery out of the quarantine: it is an event by now."""
    session.execute(delete(Rejection).where(Rejection.id == id_))
