"""/subscriptions: where outcomes are sent, what was sent, and sending it again."""

from flask import Response, url_for

from receiver.database.engine import database_time
from receiver.lib.clock import DAY_MS
from receiver.subscriptions import log
from receiver.subscriptions.registry import Subscription
from receiver.web import Services
from receiver.web.api import subscriptions as api
from receiver.web.auth import record_action
from receiver.web.dashboard.formatting import counted
from receiver.web.dashboard.pages import (
    Action,
    Caller,
    Steps,
    action_page,
    page,
    page_at,
    read_query,
)

RETRIED_MS = 7 * DAY_MS
_NOUN = "delivery", "deliveries"


@page_at("/subscriptions", scope="operate")
def subscriptions(services: Services, caller: Caller) -> Response:
    """List subscriptions."""
    with services.database.read() as session:
        visible = api.reached(session, caller.bearer)
        ages = log.oldest_waiting(session, database_time(session, services.clock))
    return page("subscriptions.html", rows=visible, ages=ages)


@page_at("/subscriptions/<string:name>", scope="operate")
def subscription(services: Services, caller: Caller, name: str) -> Response:
    """Show a subscription and what was sent to it, newest first."""
    query = read_query(api.DeliveriesQuery, subscription=name)
    one = _the_subscription(services, caller, name)
    rows, following = api.read_deliveries(services, query, caller.bearer)
    return page("subscription.html", one=one, rows=rows, failed=query.failed, following=following)


@action_page("/subscriptions/<string:name>/test")
def test_subscription(services: Services, caller: Caller, name: str) -> Steps:
    """Send a signed test message."""
    _the_subscription(services, caller, name)
    effect = "A signed message of the type subscription.test is sent now, once."
    yield Action(f"Test {name}", "Send", _page(name), effect)
    attempt = api.send_test(services, caller.bearer, name)
    if attempt.delivered:
        return f"The test message was accepted: {attempt.status}."
    detail = attempt.error or f"The answer was {attempt.status}."
    return page("error.html", 502, title="The test message was not accepted", detail=detail)


@action_page("/subscriptions/<string:name>/switch")
def switch_subscription(services: Services, caller: Caller, name: str) -> Steps:
    """Disable a subscription, or enable it again."""
    enables = _the_subscription(services, caller, name).disabled_at is not None
    verb = "enable" if enables else "disable"
    effects = (
        ("What happens from now on is sent.", "What failed or was cancelled is not sent by that.")
        if enables
        else ("Nothing more is sent or queued.", "What waits is cancelled, and can be sent later.")
    )
    title = verb.capitalize()
    yield Action(f"{title} {name}", title, _page(name), *effects, is_danger=not enables)
    with services.database.write() as session:
        api.switch(services, session, name, enabled=enables)
        record_action(services, caller.bearer, session, f"subscription.{verb}", name)
    return f"{name} is {verb}d."


@action_page("/subscriptions/<string:name>/retry")
def retry_failed(services: Services, caller: Caller, name: str) -> Steps:
    """Send again what failed within a week."""
    _the_subscription(services, caller, name)
    with services.database.read() as session:
        since = database_time(session, services.clock) - RETRIED_MS
        number = log.count_failed(session, [name], since, caller.bearer.instances)
    yield Action(
        f"Send again what failed for {name}",
        "Send again",
        _page(name),
        f"Failed or cancelled within a week: {counted(number, *_NOUN)}.",
        "Each is sent again with the same webhook-id, unless the subscription is disabled.",
    )
    with services.database.write() as session:
        sent = api.retry_failed(services, session, caller.bearer, [name], since)
    return f"Sent again: {counted(sent, *_NOUN)}."


@action_page("/subscriptions/<string:name>/deliveries/<int:id>/retry")
def retry_one(services: Services, caller: Caller, name: str, id: int) -> Steps:
    """Send a delivery again."""
    _the_subscription(services, caller, name)
    effect = "It is sent with the same webhook-id, to the URL of now."
    yield Action(f"Send delivery {id} again", "Send again", _page(name), effect)
    api.retry_one(services, caller.bearer, id)
    return f"Delivery {id} is sent again."


def _the_subscription(services: Services, caller: Caller, name: str) -> Subscription:
    with services.database.read() as session:
        return api.the_subscription(session, caller.bearer, name)


def _page(name: str) -> str:
    return url_for("dashboard.subscription", name=name)
