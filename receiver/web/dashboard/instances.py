"""/instances: keys and their last use, silence, how the vendor holds up, and acting on those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Response, request, url_for

from receiver.callbacks.trigger import send_test
from receiver.database.engine import Session
from receiver.database.models import Pace
from receiver.errors import CredentialError, NotFound
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.jobs import summary
from receiver.jobs.summary import Rejecting
from receiver.openconnectors.signatures import SHORT_KEY_BYTES
from receiver.settings import DEFAULT_INSTANCE, Settings
from receiver.web import Services
from receiver.web.auth import record_action, record_alone, require_instance
from receiver.web.dashboard.pages import (
    MAX_WAIT_MS,
    Action,
    Caller,
    Steps,
    action_page,
    flash,
    page,
    page_at,
    redirect_to,
)

SCHEDULES = 2  # the vendor's whole retry schedule so often: what was rejected before is given up


@dataclass(frozen=True, slots=True)
class Silence:
    """When the last callback of an instance came, and whether others fail since; times are ms.

    rejecting -- what is rejected since; failing_since -- since when callbacks are answered with
    errors; gives_up_at -- when the vendor does if those are the vendor's.
    """

    name: str
    last_callback_at: int | None
    rejecting: Rejecting | None
    failing_since: int | None
    gives_up_at: int | None


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance for people."""

    silence: Silence
    hub: str | None = None
    vendor_secrets: bool = False
    keys: Sequence[dict[str, Any]] = field(default_factory=list)
    vendor: Pace | None = None
    under_way: int = 0
    oldest: int | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.silence.name


@page_at("/instances")
def instances(services: Services, caller: Caller) -> Response:
    """List instances."""
    with services.database.read() as session:
        return page("instances.html", instances=_views(services, session, caller.instances))


@page_at("/instances/<string:name>")
def instance(services: Services, caller: Caller, name: str) -> Response:
    """Show an instance and its keys."""
    return page("instance.html", instance=the_instance(services, caller, name))


def the_instance(services: Services, caller: Caller, name: str) -> InstanceView:
    """Return one instance. Raises NotFound, and Forbidden where the token does not reach it."""
    require_instance(caller.bearer, [name])
    if name not in caller.instances:
        raise NotFound(f"There is no instance {name}.")
    with services.database.read() as session:
        return _views(services, session, [name])[0]


def silences(
    settings: Settings,
    names: Sequence[str],
    last: Mapping[str, int],
    rejecting: Mapping[str, Rejecting],
    failing_since: int | None,
) -> list[Silence]:
    """Return when the last callbacks of instances came; the facts as `jobs.summary` has them.

    Which instance's callbacks are answered with errors is not recorded, since they are answered so
    when nothing can be: it may be any that had none since.
    """
    result = []
    for name in names:
        at, rejected = last.get(name), rejecting.get(name)
        fails = failing_since if failing_since and failing_since > (at or 0) else None
        began = [since for since in (rejected.since if rejected else None, fails) if since]
        gives_up_at = min(began) + settings.vendor_retries_ms if began else None
        result.append(Silence(name, at, rejected, fails, gives_up_at))
    return result


def _silences(services: Services, names: Sequence[str]) -> list[Silence]:
    now, settings = services.clock(), services.settings
    with services.database.snapshot() as connection:
        last = summary.last_callbacks(connection)
        rejecting = summary.rejecting(
            connection, now - SCHEDULES * settings.vendor_retries_ms, last
        )
        failing = summary.failing_since(connection, now)
    return silences(settings, names, last, rejecting, failing)


def _views(services: Services, session: Session, names: Sequence[str]) -> list[InstanceView]:
    rows = registry.list_instances(session)
    hubs = {str(row["name"]): str(row["hub"]) for row in rows if row["hub"]}
    with_secrets = {row["name"] for row in rows if row["vendor_secrets"]}
    keys = signature_keys.list_keys(session) + _default_keys(services.settings)
    vendors, under_way = summary.vendor_health(session), summary.under_way(session, names)
    return [
        InstanceView(
            silence,
            hubs.get(silence.name),
            silence.name in with_secrets,
            [key for key in keys if key["instance"] == silence.name],
            vendors.get(silence.name),
            *under_way.get(silence.name, (0, None)),
        )
        for silence in _silences(services, names)
    ]


def _default_keys(settings: Settings) -> list[dict[str, Any]]:
    unknown = {"created_at": None, "last_used_at": None, "retired_at": None, "environment": True}
    keys = settings.default_keys
    return [{"id": key.id, "instance": DEFAULT_INSTANCE, **unknown} for key in keys]


@action_page("/instances/<string:name>/resend")
def resend(services: Services, caller: Caller, name: str) -> Steps:
    """Have the vendor send the deliveries that it queued."""
    the_instance(services, caller, name)
    yield Action(
        f"Re-send the deliveries queued for {name}",
        "Re-send",
        _page(name),
        "The vendor is asked which deliveries it has queued, and to send them all again.",
        "Each arrives as a callback; those received before change nothing.",
        "The queue may be the whole organization's: other receivers get theirs too.",
    )
    queued = services.reconciler.resend(name, MAX_WAIT_MS)
    detail = f"{queued} were queued"
    record_alone(services, caller.bearer, "deliveries.resend", name, detail=detail)
    if not queued:
        return "The vendor has no queued deliveries."
    return f"The vendor was asked to send {queued} again."


@action_page("/instances/<string:name>/test")
def test(services: Services, caller: Caller, name: str) -> Steps:
    """Send a signed test callback through the public URL."""
    the_instance(services, caller, name)
    public = services.settings.public_url or "the public URL (RECEIVER_PUBLIC_URL is not set)"
    yield Action(
        f"Send a test callback to {name}",
        "Send",
        _page(name),
        f"A callback signed with the newest key of {name} is sent to {public}.",
        "It is stored as an event of kind other, marked as a test, and changes no job.",
    )
    tested = send_test(
        services.settings, services.database, services.secret_box, name, services.clock()
    )
    detail = f"{tested.status or 'no answer'}"
    record_alone(services, caller.bearer, "instance.test", name, detail=detail)
    if tested.event is not None:
        return "The test callback was verified and stored."
    detail = "; ".join(tested.problem(public))
    return page("error.html", 502, title="The test callback did not arrive", detail=detail)


@action_page("/instances/<string:name>/keys/<string:key>/retire")
def retire_key(services: Services, caller: Caller, name: str, key: str) -> Steps:
    """Retire a signature key."""
    keys = the_instance(services, caller, name).keys
    active = [key["id"] for key in keys if key["retired_at"] is None]
    from_environment = {key["id"] for key in keys if key.get("environment")}
    if key not in active or key in from_environment:
        raise NotFound(f"{name} has no key {key} in use.")
    last = " It is the last one: every callback will be rejected." if len(active) == 1 else ""
    yield Action(
        f"Retire {key} of {name}",
        "Retire this key",
        _page(name),
        f"Callbacks signed with it are rejected from the next request on, on every node.{last}",
        "This cannot be undone; the same secret can be added again as a new key.",
        is_danger=True,
    )
    with services.database.write() as session:
        signature_keys.retire_key(session, key, name, services.clock())
        record_action(services, caller.bearer, session, "key.retire", f"{name}/{key}")
    return f"{key} is retired: callbacks signed with it are rejected."


@page_at("/instances/<string:name>/keys/add", "GET", "POST", scope="operate")
def add_key(services: Services, caller: Caller, name: str) -> Response:
    """Add a signature key; those there are stay accepted."""
    instance = the_instance(services, caller, name)
    if request.method == "GET":
        return page("add_key.html", instance=instance)
    secret = request.form.get("secret", "").encode("utf-8", "replace")
    try:
        with services.database.write() as session:
            key = signature_keys.add_key(
                session, services.secret_box, name, secret, services.clock()
            )
            shared = signature_keys.shared_with(session, services.secret_box, name, secret)
            record_action(services, caller.bearer, session, "key.add", f"{name}/{key}")
    except CredentialError as error:
        return page("add_key.html", 409, instance=instance, error=str(error))
    notice = f"{key} is accepted from now on, beside the others."
    if len(secret) < SHORT_KEY_BYTES:
        notice += f" It is {len(secret)} bytes long; at least {SHORT_KEY_BYTES} are recommended."
    if seen := [other for other in shared if caller.bearer.may_see(other)]:
        verb = "has" if len(seen) == 1 else "have"
        notice += f" {', '.join(seen)} {verb} the same key: callbacks can be replayed across."
    flash(services, caller, notice)
    return redirect_to(_page(name))


def _page(name: str) -> str:
    return url_for("dashboard.instance", name=name)
