"""/subscriptions: where outcomes are sent, what was sent, and sending it again."""

from dataclasses import dataclass

from flask import Response, url_for

from receiver.database.engine import database_time
from receiver.lib.clock import DAY_MS
from receiver.subscriptions import log
from receiver.web import Services
from receiver.web.api import subscriptions as api
from receiver.web.api.subscription_schemas import DeliveriesQuery
from receiver.web.api.subscriptions import the_subscription
from receiver.web.auth import record_action
from receiver.web.dashboard.actions import Action, action_page
from receiver.web.dashboard.formatting import counted
from receiver.web.dashboard.pages import Caller, blueprint, page, page_links, read_query
from receiver.web.dashboard.sign_in import require_operator

RETRIED_MS = 7 * DAY_MS
_NOUN = "delivery", "deliveries"


@dataclass(frozen=True, slots=True)
class Entry:
    """A subscription in the list. waits -- how long its oldest delivery does, ms; 0: none."""

    name: str
    url: str
    tells: str
    disabled_for: str | None
    waits: int


@blueprint.get("/subscriptions")
@require_operator
def subscriptions(services: Services, caller: Caller) -> Response:
    """List subscriptions."""
    with services.database.read() as session:
        visible = api.reached(session, caller.bearer)
        ages = log.oldest_waiting(session, database_time(session, services.clock))
    rows = [
        Entry(
            one.name,
            one.url,
            ", ".join(one.choice.on),
            one.disabled_for,
            round(1000 * ages.get(one.name, 0)),
        )
        for one in visible
    ]
    return page("subscriptions.html", rows=rows)


@blueprint.get("/subscriptions/<string:name>")
@require_operator
def subscription(services: Services, caller: Caller, name: str) -> Response:
    """Show a subscription and what was sent to it, newest first."""
    query = read_query(DeliveriesQuery, subscription=name)
    with services.database.read() as session:
        one = the_subscription(session, caller.bearer, name)
    rows, following = api.read_deliveries(services, query, caller.bearer)
    links = page_links(following)
    return page("subscription.html", one=one, rows=rows, failed=query.failed, links=links)


@action_page("/subscriptions/<string:name>/test")
def test_subscription(services: Services, caller: Caller, name: str) -> Action:
    """Send a signed test message."""
    with services.database.read() as session:
        the_subscription(session, caller.bearer, name)

    def run() -> str | Response:
        attempt = api.send_test(services, caller.bearer, name)
        if attempt.delivered:
            return f"The test message was accepted: {attempt.status}."
        detail = attempt.error or f"The answer was {attempt.status}."
        return page("error.html", 502, title="The test message was not accepted", detail=detail)

    effects = ("A signed message of the type subscription.test is sent now, once.",)
    return Action(f"Test {name}", "Send", _page(name), effects, run)


@action_page("/subscriptions/<string:name>/switch")
def switch_subscription(services: Services, caller: Caller, name: str) -> Action:
    """Disable a subscription, or enable it again."""
    with services.database.read() as session:
        one = the_subscription(session, caller.bearer, name)
    enables = one.disabled_at is not None
    verb = "enable" if enables else "disable"

    def run() -> str:
        with services.database.write() as session:
            api.switch(services, session, name, enabled=enables)
            record_action(services, caller.bearer, session, f"subscription.{verb}", name)
        return f"{name} is {verb}d."

    effects = (
        ("What happens from now on is sent.", "What failed or was cancelled is not sent by that.")
        if enables
        else ("Nothing more is sent or queued.", "What waits is cancelled, and can be sent later.")
    )
    title = verb.capitalize()
    return Action(f"{title} {name}", title, _page(name), effects, run, danger=not enables)


@action_page("/subscriptions/<string:name>/retry")
def retry_failed(services: Services, caller: Caller, name: str) -> Action:
    """Send again what failed within a week."""
    with services.database.read() as session:
        the_subscription(session, caller.bearer, name)
        since = database_time(session, services.clock) - RETRIED_MS
        number = log.count_failed(session, [name], since, caller.bearer.instances)

    def run() -> str:
        with services.database.write() as session:
            sent = api.retry_failed(services, session, caller.bearer, [name], since)
        return f"Sent again: {counted(sent, *_NOUN)}."

    effects = (
        f"Failed or cancelled within a week: {counted(number, *_NOUN)}.",
        "Each is sent again with the same webhook-id, unless the subscription is disabled.",
    )
    return Action(f"Send again what failed for {name}", "Send again", _page(name), effects, run)


@action_page("/subscriptions/<string:name>/deliveries/<int:id>/retry")
def retry_one(services: Services, caller: Caller, name: str, id: int) -> Action:
    """Send a delivery again."""
    with services.database.read() as session:
        the_subscription(session, caller.bearer, name)

    def run() -> str:
        api.retry_one(services, caller.bearer, id)
        return f"Delivery {id} is sent again."

    effects = ("It is sent with the same webhook-id, to the URL of now.",)
    return Action(f"Send delivery {id} again", "Send again", _page(name), effects, run)


def _page(name: str) -> str:
    return url_for("dashboard.subscription", name=name)
