"""Subscriptions in the API: where outcomes are sent, what was sent, and sending it again.

All of it takes the scope `operate`. A token that is limited to instances reaches the subscriptions
that are limited to some of them.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from receiver.database.engine import Session, database_time
from receiver.database.models.outbound import OutboundDelivery
from receiver.errors import Forbidden, NotFound
from receiver.instances.tokens import Bearer
from receiver.jobs.job import Outcome
from receiver.outbound.queue import Attempt
from receiver.settings import INSTANCE_NAME
from receiver.subscriptions import log, public, registry
from receiver.subscriptions.changes import test_message
from receiver.subscriptions.public import public_delivery, public_subscription
from receiver.subscriptions.registry import Format, Subject, Subscription
from receiver.web import Services
from receiver.web.api.routes import ApiRequest, route
from receiver.web.api.schemas import Cursor, Limit, NoQuery, When, Word
from receiver.web.auth import record_action
from receiver.web.http import cut, optional, read_cursor, read_json

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


class NewSecret(public.Subscription):
    """A subscription and its secret, which is shown this once; null for PagerDuty's."""

    secret: str | None


class Subscriptions(Struct):
    """Subscriptions, by name."""

    subscriptions: list[public.Subscription]


class Tested(Struct):
    """What a test message was answered with: its status and first bytes, or why there was none."""

    delivered: bool
    status: int | None
    error: str | None
    answer: str


class DeliveryPage(Struct):
    """Deliveries to subscriptions, newest first."""

    deliveries: list[public.Delivery]
    next: str | None


class Retried(Struct):
    """How many deliveries are sent again, or would be."""

    deliveries: int


def may_reach(bearer: Bearer, subscription: Subscription) -> bool:
    """Whether a token reaches a subscription: all of its instances."""
    names = subscription.choice.instances
    return bearer.instances is None or (bool(names) and bearer.instances.issuperset(names))


def reached(session: Session, bearer: Bearer) -> list[Subscription]:
    """Return the subscriptions that a token reaches."""
    subscriptions = registry.list_subscriptions(session)
    return [subscription for subscription in subscriptions if may_reach(bearer, subscription)]


def the_subscription(session: Session, bearer: Bearer, name: str) -> Subscription:
    """Return one that a token reaches. Raises NotFound."""
    subscription = registry.get_subscription(session, name)
    if not may_reach(bearer, subscription):
        raise NotFound(f"there is no subscription {name}")
    return subscription


def _require_reach(bearer: Bearer, subscription: Subscription) -> None:
    if not may_reach(bearer, subscription):
        raise Forbidden("limit the subscription to instances that the token reaches")


def list_subscriptions(services: Services, request: ApiRequest[NoQuery]) -> Subscriptions:
    """List subscriptions, without their secrets."""
    with services.database.read() as session:
        subscriptions = reached(session, request.bearer)
    return Subscriptions(list(map(public_subscription, subscriptions)))


def show_subscription(services: Services, request: ApiRequest[NoQuery]) -> public.Subscription:
    """Show a subscription."""
    with services.database.read() as session:
        subscription = the_subscription(session, request.bearer, request.http.id)
    return public_subscription(subscription)


def add_subscription(services: Services, request: ApiRequest[NoQuery]) -> NewSecret:
    """Add a subscription; its secret is shown this once."""
    sent = read_json(request.http, NewSubscription)
    with services.database.write() as session:
        now = database_time(session, services.clock)
        choice = msgspec.convert(sent, registry.Choice, from_attributes=True)
        subscription = Subscription(
            name=sent.name, url=sent.url, format=sent.format, choice=choice, created_at=now
        )
        _require_reach(request.bearer, subscription)
        key = sent.routing_key.encode() if sent.routing_key else None
        used = services.secret_box, services.safe_http
        secret = registry.add_subscription(session, *used, subscription, key)
        record_action(services, request.bearer, session, "subscription.add", subscription.name)
    shown = asdict(public_subscription(subscription))
    return NewSecret(**shown, secret=secret or None)


def change_subscription(services: Services, request: ApiRequest[NoQuery]) -> public.Subscription:
    """Change what is sent named of a subscription; `enabled` has it send again, or no more."""
    sent = read_json(request.http, SubscriptionChange)
    with services.database.write() as session:
        subscription = the_subscription(session, request.bearer, request.http.id)
        named = {field: value for field, value in asdict(sent).items() if value is not UNSET}
        changed = ", ".join(sorted(named))
        enabled, url = named.pop("enabled", None), named.pop("url", None)
        choice = msgspec.structs.replace(subscription.choice, **named)
        _require_reach(request.bearer, msgspec.structs.replace(subscription, choice=choice))
        if named or url is not None:
            registry.change_subscription(
                session, services.safe_http, subscription.name, choice, url
            )
        if enabled is not None:
            switch(services, session, subscription.name, enabled=enabled)
        action = "subscription.change"
        record_action(services, request.bearer, session, action, subscription.name, detail=changed)
        subscription = registry.get_subscription(session, subscription.name)
    return public_subscription(subscription)


def switch(services: Services, session: Session, name: str, *, enabled: bool) -> None:
    """Have a subscription send again, or no more."""
    if enabled:
        registry.enable(session, name)
    else:
        registry.disable(session, name, "operator", database_time(session, services.clock))


def remove_subscription(services: Services, request: ApiRequest[NoQuery]) -> public.Subscription:
    """Remove a subscription; what waits for it is cancelled."""
    with services.database.write() as session:
        subscription = the_subscription(session, request.bearer, request.http.id)
        registry.remove_subscription(session, subscription.name)
        record_action(services, request.bearer, session, "subscription.remove", subscription.name)
    return public_subscription(subscription)


def rotate_secret(services: Services, request: ApiRequest[NoQuery]) -> NewSecret:
    """Make a new secret, shown this once; for 24 hours the one before it signs, too."""
    with services.database.write() as session:
        subscription = the_subscription(session, request.bearer, request.http.id)
        now = database_time(session, services.clock)
        secret = registry.rotate_secret(session, services.secret_box, subscription.name, now)
        record_action(services, request.bearer, session, "subscription.rotate", subscription.name)
    shown = asdict(public_subscription(subscription))
    return NewSecret(**shown, secret=secret)


def test_subscription(services: Services, request: ApiRequest[NoQuery]) -> Tested:
    """Send a signed test message now, and give the answer to it."""
    attempt = send_test(services, request.bearer, request.http.id)
    answer = attempt.answer.decode("utf-8", "replace")
    return Tested(attempt.delivered, attempt.status, attempt.error, answer)


def send_test(services: Services, bearer: Bearer, name: str) -> Attempt:
    """Send a signed test message to a subscription, once. Raises NotFound."""
    with services.database.read() as session:
        subscription = the_subscription(session, bearer, name)
    return services.sender.test(test_message(subscription, services.clock()))


def read_deliveries(
    services: Services, query: DeliveriesQuery, bearer: Bearer
) -> tuple[Sequence[OutboundDelivery], str | None]:
    """Read a page of deliveries, newest first; return the cursor of the next one, too."""
    (before,) = read_cursor(query.cursor, tuple[int]) or (None,)
    with services.database.read() as session:
        found = log.list_deliveries(
            session,
            _named(session, bearer, query.subscription),
            only_failed=query.failed,
            limit=query.limit + 1,
            before=before,
            visible=bearer.instances,
        )
    return cut(found, query.limit, lambda record: (record.id,))


def list_deliveries(services: Services, request: ApiRequest[DeliveriesQuery]) -> DeliveryPage:
    """List what was sent to subscriptions, newest first, each with its attempts."""
    records, following = read_deliveries(services, request.query, request.bearer)
    shown = [public_delivery(record) for record in records]
    return DeliveryPage(shown, following)


def retry_delivery(services: Services, request: ApiRequest[NoQuery]) -> Retried:
    """Send a delivery again, with the same webhook-id."""
    if not request.http.id.isdecimal() or int(request.http.id) >= 2**63:
        raise NotFound(f"there is no delivery {request.http.id}")
    retry_one(services, request.bearer, int(request.http.id))
    return Retried(1)


def retry_one(services: Services, bearer: Bearer, id_: int) -> None:
    """Send a delivery again. Raises NotFound, BadParameter."""
    with services.database.write() as session:
        the_subscription(session, bearer, log.get_delivery(session, id_, bearer.instances))
        log.retry_one(session, id_, database_time(session, services.clock))
        record_action(services, bearer, session, "delivery.retry", str(id_))


def retry_deliveries(services: Services, request: ApiRequest[RetryQuery]) -> Retried:
    """Send all again that failed or were cancelled since then; `dry_run` only counts them."""
    query, since = request.query, request.query.since
    visible = request.bearer.instances
    with services.database.write() as session:
        names = _named(session, request.bearer, query.subscription)
        if query.dry_run:
            return Retried(log.count_failed(session, names, since, visible))
        number = retry_failed(services, session, request.bearer, names, since)
    return Retried(number)


def retry_failed(
    services: Services, session: Session, bearer: Bearer, names: Sequence[str], since: int
) -> int:
    """Send all again that failed or were cancelled since then, ms; return how many."""
    now = database_time(session, services.clock)
    number = log.retry_failed(session, names, since, now, bearer.instances)
    subject, detail = ", ".join(names), f"{number} failed"
    record_action(services, bearer, session, "delivery.retry", subject, detail=detail)
    return number


def _named(session: Session, bearer: Bearer, name: str | UnsetType) -> list[str]:
    named = optional(name)
    if named is not None:
        return [the_subscription(session, bearer, named).name]
    return [subscription.name for subscription in reached(session, bearer)]


_ONE = "/subscriptions/{id}"
SUBSCRIPTION_ROUTES = (
    route("/subscriptions", list_subscriptions, 403, scope="operate"),
    route("/subscriptions", add_subscription, 403, 409, method="POST", body=NewSubscription),
    route(_ONE, show_subscription, 403, 404, scope="operate"),
    route(_ONE, change_subscription, 403, 404, method="PATCH", body=SubscriptionChange),
    route(_ONE, remove_subscription, 403, 404, method="DELETE"),
    route(f"{_ONE}/rotate-secret", rotate_secret, 403, 404, 409, method="POST"),
    route(f"{_ONE}/test", test_subscription, 403, 404, 409, method="POST"),
    route("/deliveries", list_deliveries, 403, 404, scope="operate"),
    route("/deliveries/retry", retry_deliveries, 403, 404, method="POST"),
    route("/deliveries/{id}/retry", retry_delivery, 403, 404, method="POST"),
)
