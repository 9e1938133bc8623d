"""Subscriptions: where outcomes and alarms are sent, which, and signed with which secret."""

import json
import secrets
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec
from sqlalchemy import Connection, Update, bindparam, delete, select, update
from sqlalchemy import Row as SelectedRow
from sqlalchemy.orm import Session

from receiver.database.engine import Database, affected
from receiver.database.lookup import LookUp
from receiver.database.models.outbound import OutboundDelivery
from receiver.database.models.outbound import Subscription as Row
from receiver.errors import AlreadyThere, BadParameter, NotFound
from receiver.instances.encryption import SecretBox, subscription_place
from receiver.instances.registry import count_change
from receiver.jobs.job import Outcome
from receiver.lib.clock import DAY_MS
from receiver.lib.safe_http import SafeClient
from receiver.outbound.queue import Attempt, Claimed, Message, host_of, result_of
from receiver.outbound.sender import Outgoing, Signer, standard_webhook
from receiver.settings import INSTANCE_NAME
from receiver.subscriptions import formats

Format: TypeAlias = Literal["standard", "cloudevents", "slack", "pagerduty"]
Subject: TypeAlias = Literal["ended", "changed", "overdue", "alarm"]  # what is sent on

KIND = "subscription"  # of messages in the outbound queue
TEST = "subscription.test"  # type of a message that is sent past the queue
PREFIX = "whsec_"  # of a secret, before its base64, as Standard Webhooks has it
MAX_SUBSCRIPTIONS = 100
SECRET_BYTES = 32
OVERLAP_MS = DAY_MS  # how long a secret signs beside the one that replaced it
MAX_FAILING_MS = 5 * DAY_MS  # without anything accepted; then a delivery given up disables
_GONE = 410


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be sent; an empty sequence is all. outcomes -- of jobs that ended."""

    instances: Sequence[str] = ()
    objects: Sequence[str] = ()
    outcomes: Sequence[Outcome] = ()
    on: Sequence[Subject] = ("ended",)


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription as processes know it; times are ms.

    disabled_for -- operator, gone (it answered 410) or failing, and `disabled_at` since when.
    """

    name: str
    url: str
    format: Format
    choice: Choice
    created_at: int
    disabled_at: int | None = None
    disabled_for: str | None = None
    failing_since: int | None = None


class Subscriptions:
    """Those that are enabled, as of one version of the keys. See `instances.keys.Keys`."""

    def __init__(self) -> None:
        self._version = -1
        self._active: Sequence[Subscription] = ()

    def at(self, connection: Connection, version: int) -> Sequence[Subscription]:
        """Return them. version -- of the keys, as this transaction read it."""
        if version != self._version:
            self._active, self._version = load_active(connection), version
        return self._active


def load_active(connection: Connection) -> tuple[Subscription, ...]:
    """Read those that are not disabled, by name."""
    rows = connection.execute(_SELECTION.where(Row.disabled_at.is_(None)))
    return tuple(map(_subscription, rows))


def list_subscriptions(session: Session) -> list[Subscription]:
    """Return all, by name."""
    return list(map(_subscription, session.execute(_SELECTION)))


def get_subscription(session: Session, name: str) -> Subscription:
    """Return one. Raises NotFound."""
    row = None
    if INSTANCE_NAME.fullmatch(name):  # PostgreSQL cannot even be asked for a NUL
        row = session.execute(_SELECTION.where(Row.name == name)).first()
    if row is None:
        raise _missing(name)
    return _subscription(row)


def add_subscription(
    session: Session,
    secret_box: SecretBox,
    http: SafeClient,
    subscription: Subscription,
    routing_key: bytes | None = None,
) -> str:
    """Add a subscription; return its secret, which nobody can read again.

    routing_key -- PagerDuty's, which then is the secret. Raises BadParameter, AlreadyThere.
    """
    name, url = subscription.name, subscription.url
    if not INSTANCE_NAME.fullmatch(name):
        raise BadParameter("a name is 1 to 64 of A-Z, a-z, 0-9, _ and -")
    http.check(url, "URL")
    if (subscription.format == "pagerduty") != bool(routing_key):
        raise BadParameter("a routing key is what the format pagerduty needs, and no other")
    existing = {row.name for row in session.scalars(select(Row))}
    if name in existing:
        raise AlreadyThere(f"there is a subscription {name} already")
    if len(existing) >= MAX_SUBSCRIPTIONS:
        raise BadParameter(f"there are {MAX_SUBSCRIPTIONS} subscriptions: remove one first")
    secret = routing_key or secrets.token_bytes(SECRET_BYTES)
    row = Row(
        name=name,
        url=url,
        format=subscription.format,
        secret=secret_box.encrypt(subscription_place(name), secret),
        created_at=subscription.created_at,
        **_columns(subscription.choice),
    )
    session.add(row)
    session.flush()
    count_change(session)
    return "" if routing_key else _encode_secret(secret)


def change_subscription(
    session: Session, http: SafeClient, name: str, choice: Choice, url: str | None = None
) -> None:
    """Replace what is sent, and where. Raises NotFound, BadParameter."""
    row = _row(session, name)
    for column, value in _columns(choice).items():
        setattr(row, column, value)
    if url is not None:
        http.check(url, "URL")
        row.url = url
        moved = _update_waiting(name).values(target=url, host=host_of(url))
        session.execute(moved)
    session.flush()
    count_change(session)


def disable(session: Session, name: str, reason: str, now: int) -> None:
    """Send nothing more: what waits is cancelled, and can be sent again later."""
    changed = update(Row).where(Row.name == name, Row.disabled_at.is_(None))
    if affected(session, changed.values(disabled_at=now, disabled_for=reason)):
        _cancel(session, name)


def enable(session: Session, name: str) -> None:
    """Send again, from now on. Raises NotFound."""
    row = _row(session, name)
    row.disabled_at = row.disabled_for = row.failing_since = None
    session.flush()
    count_change(session)


def remove_subscription(session: Session, name: str) -> None:
    """Remove one; what waits is cancelled, the log of its deliveries stays. Raises NotFound."""
    if not affected(session, delete(Row).where(Row.name == name)):
        raise _missing(name)
    _cancel(session, name)


def rotate_secret(session: Session, secret_box: SecretBox, name: str, now: int) -> str:
    """Return a new secret; for OVERLAP_MS the one before it signs, too. Raises NotFound."""
    row = _row(session, name)
    if row.format == "pagerduty":
        raise BadParameter("PagerDuty makes the routing key: add the subscription anew with it")
    secret = secrets.token_bytes(SECRET_BYTES)
    row.previous_secret, row.previous_until = row.secret, now + OVERLAP_MS
    row.secret = secret_box.encrypt(subscription_place(name), secret)
    session.flush()
    return _encode_secret(secret)


class _Signing(NamedTuple):
    """What a subscription's messages are written and signed by, at each attempt."""

    url: str
    format: Format
    instances: str
    disabled_at: int | None
    secret: bytes
    previous_secret: bytes | None
    previous_until: int | None


_SIGNING = LookUp(
    select(*(getattr(Row, name) for name in _Signing._fields)).where(
        Row.name == bindparam("of_name")
    )
)
_ACCEPTED = (
    update(Row)
    .where(Row.name == bindparam("of_name"), Row.failing_since.is_not(None))
    .values(failing_since=None)
)


def signer(database: Database, secret_box: SecretBox) -> Signer:
    """Write messages in their subscription's format, and sign them with its secrets of now."""

    def sign(message: Message, now: int) -> Outgoing:
        name = message.subscription or ""
        rows = [_Signing(*row) for row in database.rows(_SIGNING, {"of_name": name})]
        row = rows[0] if rows else None
        if row is None or row.url != message.target:
            raise BadParameter("the subscription was removed, or has another URL")
        # It was queued while that was done; a test is what one enables after.
        if row.disabled_at is not None and message.type != TEST:
            raise BadParameter("the subscription is disabled")
        # It was another's, of the same name, or was narrowed since.
        only = json.loads(row.instances)
        if only and message.instance not in only and message.type != TEST:
            raise BadParameter("the subscription is limited to other instances")
        place = subscription_place(name)
        keys = [secret_box.decrypt(place, row.secret)]
        if row.previous_secret and (row.previous_until or 0) > now:
            keys.append(secret_box.decrypt(place, row.previous_secret))
        if row.format == "pagerduty":
            return formats.pagerduty(message, keys[0].decode())
        sent = formats.FORMATS[row.format](message)
        return standard_webhook(message.webhook_id, sent, now, *keys)

    return sign


def note_attempt(session: Session, claimed: Claimed, attempt: Attempt, now: int) -> None:
    """Note since when a subscription fails; disable one that is gone, or that failed for days."""
    name = claimed.message.subscription
    this = update(Row).where(Row.name == name)
    if attempt.delivered:
        session.connection().execute(_ACCEPTED, {"of_name": name})
    elif attempt.status == _GONE:
        disable(session, str(name), "gone", now)
    else:
        session.execute(this.where(Row.failing_since.is_(None)).values(failing_since=now))
        if result_of(claimed, attempt) == "failed":
            since = session.scalar(select(Row.failing_since).where(Row.name == name))
            if since is not None and now - since >= MAX_FAILING_MS:
                disable(session, str(name), "failing", now)


def _cancel(session: Session, name: str) -> None:
    session.execute(_update_waiting(name).values(state="cancelled", next_at=None))
    count_change(session)


def _update_waiting(name: str) -> Update:
    row = OutboundDelivery
    return update(row).where(row.subscription == name, row.next_at.is_not(None))


def _row(session: Session, name: str) -> Row:
    row = session.get(Row, name, with_for_update=True)
    if row is None:
        raise _missing(name)
    return row


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no subscription {name}")


_LISTS = {"instances": "instances", "objects": "objects", "outcomes": "outcomes", "on": "types"}
_SELECTION = select(
    *(Row.name, Row.url, Row.format, Row.instances, Row.objects, Row.outcomes, Row.types),
    *(Row.created_at, Row.disabled_at, Row.disabled_for, Row.failing_since),
).order_by(Row.name)


def _columns(choice: Choice) -> dict[str, str]:
    if not choice.on:
        raise BadParameter(f"name what is to be sent: {', '.join(get_args(Subject))}")
    return {
        column: json.dumps(sorted(set(getattr(choice, name)))) for name, column in _LISTS.items()
    }


def _subscription(row: SelectedRow[*tuple[Any, ...]]) -> Subscription:
    facts = row._asdict()
    lists = {name: json.loads(facts.pop(column)) for name, column in _LISTS.items()}
    return msgspec.convert({**facts, "choice": lists}, Subscription)


def _encode_secret(secret: bytes) -> str:
    return PREFIX + b64encode(secret).decode()
