"""What the API takes and gives of subscriptions and of what is delivered to them."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from receiver.jobs.job import Outcome
from receiver.settings import INSTANCE_NAME
from receiver.subscriptions.public import Delivery, Subscription
from receiver.subscriptions.registry import Format, Subject
from receiver.web.api.schemas import Cursor, Limit, When, Word

Subjects = Annotated[list[Subject], Meta(min_length=1)]
# Each callback is compared with all of them, and a database takes so many values at once.
Names = Annotated[list[Word], Meta(max_length=100)]
Url = Annotated[str, Meta(max_length=2000)]


class DeliveriesQuery(Struct, forbid_unknown_fields=True):
    """Which deliveries to subscriptions. failed -- those that are not sent again by themselves."""

    subscription: Word | UnsetType = UNSET
    failed: bool = False
    limit: Limit = 50
    cursor: Cursor | UnsetType = UNSET


class RetryQuery(Struct, forbid_unknown_fields=True):
    """Which failed deliveries are sent again: those queued since then."""

    since: When
    subscription: Word | UnsetType = UNSET
    dry_run: bool = False


class SubscriptionChange(Struct, forbid_unknown_fields=True):
    """What is to be changed of a subscription; what is not named stays. Lists are replaced."""

    url: Url | UnsetType = UNSET
    instances: Names | UnsetType = UNSET
    objects: Names | UnsetType = UNSET
    outcomes: list[Outcome] | UnsetType = UNSET
    on: Subjects | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class NewSubscription(Struct, forbid_unknown_fields=True):
    """Which jobs and alarms are sent, and where; an empty list is all."""

    name: Annotated[str, Meta(pattern=f"^{INSTANCE_NAME.pattern}$")]
    url: Url
    format: Format = "standard"
    instances: Names = []
    objects: Names = []
    outcomes: list[Outcome] = []
    on: Subjects = msgspec.field(default_factory=lambda: ["ended"])
    routing_key: (
        Annotated[str, Meta(max_length=200, description="PagerDuty's; of no other format")] | None
    ) = None


class NewSecret(Subscription):
    """A subscription and its secret, which is shown this once; null for PagerDuty's."""

    secret: str | None


class Subscriptions(Struct):
    """Subscriptions, by name."""

    subscriptions: list[Subscription]


class Tested(Struct):
    """What a test message was answered with: its status and first bytes, or why there was none."""

    delivered: bool
    status: int | None
    error: str | None
    answer: str


class DeliveryPage(Struct):
    """Deliveries to subscriptions, newest first."""

    deliveries: list[Delivery]
    next: str | None


class Retried(Struct):
    """How many deliveries are sent again, or would be."""

    deliveries: int
