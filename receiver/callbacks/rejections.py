"""Rejected deliveries: counted by reason and address, quarantined, explained, verified again."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from msgspec import Struct
from sqlalchemy import case, delete, func, insert, or_, select
from sqlalchemy.orm import defer

from receiver.callbacks.deliveries import AddressCount, Delivery, NewRejection, Receipt
from receiver.callbacks.diagnosis import likely_cause
from receiver.database.engine import Database, Session, upsert
from receiver.database.models import RejectedAddress, Rejection, RejectionCount
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
# What is known of a rejection without any key.
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
    tally = Counter((rejection.reason, rejection.instance) for rejection in rejections)
    new = upsert(session, RejectionCount)
    statement = new.on_conflict_do_update(
        index_elements=[RejectionCount.minute, RejectionCount.reason, RejectionCount.instance],
        set_={"count": RejectionCount.count + new.excluded.count},
    )
    minute = now // MINUTE_MS
    rows = [  # sorted, as below: two nodes that count the same in another order would deadlock
        {"minute": minute, "reason": reason, "instance": instance, "count": count}
        for (reason, instance), count in sorted(tally.items())
    ]
    session.execute(statement, rows)


def _count_addresses(session: Session, peers: Sequence[str], now: int) -> list[AddressCount]:
    new = upsert(session, RejectedAddress)
    is_over = RejectedAddress.since <= now - MINUTE_MS
    statement = new.on_conflict_do_update(
        index_elements=[RejectedAddress.peer],
        set_={
            "since": case((is_over, now), else_=RejectedAddress.since),
            "count": case(
                (is_over, new.excluded.count), else_=RejectedAddress.count + new.excluded.count
            ),
        },
    ).returning(RejectedAddress.peer, RejectedAddress.count, RejectedAddress.since)
    counts = sorted(Counter(peers).items())
    rows = [{"peer": peer, "since": now, "count": count} for peer, count in counts]
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


def list_rejections(
    session: Session, filters: RejectionFilters, limit: int, after: tuple[int, int] | None = None
) -> Sequence[Rejection]:
    """Read quarantined deliveries, newest first, without their bodies.

    after -- (at, id) of the last one seen. They are a few thousand at most, and need no index but
    that of their order.
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
    sqlite = session.get_bind().dialect.name == "sqlite"
    keys = page(limit, order, where, after=after is not None, sqlite=sqlite).subquery()
    rows = select(Rejection).options(defer(Rejection.signature), defer(Rejection.body))
    of_page = rows.join(keys, keys.c.id == Rejection.id)
    ordered = of_page.order_by(keys.c.at.desc(), keys.c.id.desc())
    return session.scalars(ordered, page_values(after)).all()


def find_rejection(session: Session, id_: int, visible: Instances) -> Rejection | None:
    """Return a quarantined delivery; None if there is none that the token sees."""
    row = session.get(Rejection, id_)
    return row if row and (visible is None or row.instance in visible) else None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a delivery was rejected. signer -- the other instance whose key made the signature."""

    text: str
    signer: str | None = None

    def text_for(self, visible: Instances) -> str:
        """Return the text, naming another instance only to those who may see it."""
        is_named = self.signer and (visible is None or self.signer in visible)
        return f"{self.text} ({self.signer})" if is_named else self.text


def read_keys(
    database: Database, secret_box: SecretBox, default_keys: Sequence[SignatureKey]
) -> list[DecryptedKey]:
    """Read all signature keys to explain with, those of the environment and retired ones too."""
    with database.read() as session:
        stored = decrypted_keys(session, secret_box)
    return [*(DecryptedKey(DEFAULT_INSTANCE, key, None) for key in default_keys), *stored]


def explain(rejection: Rejection, keys: Sequence[DecryptedKey]) -> Explanation:
    """Return why a delivery was rejected, and whose key signed it."""
    general = _explain_reason(rejection.reason)
    if rejection.body is None or rejection.signature is None:
        return general
    body, header = rejection.body, rejection.signature.decode("latin-1")
    own = [key for key in keys if key.instance == rejection.instance]
    active = [key for key in own if key.retired_at is None]
    if _signed_by(active, body, header):
        return Explanation("The signature is right by now: verify it again")
    if retired := _signed_by(own, body, header):
        return Explanation(f"Signed with the retired key {retired.key.id}")
    if other := _signed_by(keys, body, header):
        text = "Signed with the key of another instance: its callback URL is that of this one"
        return Explanation(text, other.instance)
    return _explain_mismatch(active, body, header) or general


def explain_listed(
    session: Session,
    rejections: Sequence[Rejection],
    keys: Sequence[DecryptedKey],
    visible: Instances,
) -> list[str]:
    """Say of deliveries of a list why each was rejected; of large bodies only what is known.

    visible -- the instances that whoever asks may see.
    """
    first = rejections[:MAX_DIAGNOSED]
    small = [rejection.id for rejection in first if rejection.size <= MAX_DIAGNOSED_BYTES]
    rows = session.scalars(select(Rejection).where(Rejection.id.in_(small)))
    why = {row.id: explain(row, keys) for row in rows}
    return [
        (why.get(rejection.id) or _explain_reason(rejection.reason)).text_for(visible)
        for rejection in rejections
    ]


def _signed_by(keys: Sequence[DecryptedKey], body: bytes, header: str) -> DecryptedKey | None:
    for key in keys:
        with suppress(SignatureError):
            verify(body, header, [key.key])
            return key
    return None


def _explain_reason(reason: str) -> Explanation:
    return Explanation(REASONS.get(reason, reason))


def _explain_mismatch(keys: Sequence[DecryptedKey], body: bytes, header: str) -> Explanation | None:
    """Return what most likely went wrong, if one of the keys shows it."""
    for key in keys:
        if cause := likely_cause(body, header, key.key.secret):
            return Explanation(cause[0].upper() + cause[1:])
    return None


def reverify_all(
    database: Database,
    receive: Callable[[Delivery], Receipt | None],
    instances: Instances,
    record: Callable[..., None],
) -> tuple[int, int]:
    """Verify all quarantined deliveries again, or those of some instances; as `reverify`.

    Returns how many were looked at, and how many of them became events.
    """
    checked = accepted = after = 0
    while True:
        with database.read() as session:
            batch = _list_verifiable(session, instances, BATCH, after)
        for rejection in batch:
            checked += 1
            accepted += reverify(database, receive, rejection, record)
            after = rejection.id
        if len(batch) < BATCH:
            return checked, accepted


def reverify(
    database: Database,
    receive: Callable[[Delivery], Receipt | None],
    rejection: Rejection,
    record: Callable[..., None],
) -> bool:
    """Verify a quarantined delivery again; if it is right by now, it leaves as an event.

    receive -- stores it if it is right. record -- called in the transaction that removes it from
    the quarantine: (session, rejection, event). Returns whether it became an event.
    """
    if rejection.body is None or rejection.signature is None:
        return False
    header = rejection.signature.decode("latin-1")
    receipt = receive(Delivery(rejection.instance, rejection.body, header, None, rejection.peer))
    if receipt is None:
        return False
    with database.write() as session:
        session.execute(delete(Rejection).where(Rejection.id == rejection.id))
        record(session, rejection, receipt.event)
    return True


def _list_verifiable(
    session: Session, instances: Instances, limit: int, after: int
) -> Sequence[Rejection]:
    """Return deliveries that may be verified again, oldest first, with ids above `after`."""
    statement = select(Rejection).where(
        Rejection.id > after, Rejection.body.is_not(None), Rejection.signature.is_not(None)
    )
    if instances is not None:
        statement = statement.where(Rejection.instance.in_(sorted(instances)))
    return session.scalars(statement.order_by(Rejection.id).limit(limit)).all()
