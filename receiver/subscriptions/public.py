"""Subscriptions and deliveries as the API and the command line show them."""

from msgspec import Struct
from msgspec.structs import asdict

from receiver.database.models.outbound import OutboundDelivery
from receiver.jobs.job import Outcome
from receiver.jobs.public import Time, from_record
from receiver.subscriptions import registry
from receiver.subscriptions.registry import Format, Subject


class Subscription(Struct):
    """A subscription. `disabled_for` says why nothing is sent: operator, gone or failing."""

    name: str
    url: str
    format: Format
    instances: list[str]
    objects: list[str]
    outcomes: list[Outcome]
    on: list[Subject]
    created_at: Time
    disabled_at: Time | None
    disabled_for: str | None
    failing_since: Time | None


class Attempt(Struct):
    """One attempt to deliver. `answer` -- the first bytes of the answer's body."""

    at: Time
    duration_ms: int
    status: int | None
    error: str | None
    answer: str


class Delivery(Struct):
    """A delivery to a subscription: waiting, delivered, failed or cancelled."""

    id: str
    subscription: str
    type: str | None
    instance: str | None
    job: str | None
    webhook_id: str
    at: Time
    state: str
    tries: int
    next_at: Time | None
    attempts: list[Attempt]


def public_subscription(subscription: registry.Subscription) -> Subscription:
    """Return a subscription as the API and the command line have it."""
    return from_record(subscription, Subscription, **asdict(subscription.choice))


def public_delivery(row: OutboundDelivery) -> Delivery:
    """Return a delivery as the API and the command line have it."""
    attempts = [from_record(made, Attempt, answer=made.answer_text) for made in row.attempts]
    return from_record(row, Delivery, id=str(row.id), attempts=attempts)
