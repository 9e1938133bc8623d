"""/instances: keys and their last use, silence, and how the vendor holds up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Response

from receiver.database.engine import Session
from receiver.database.models import Pace
from receiver.errors import NotFound
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.jobs import summary
from receiver.jobs.summary import Rejecting
from receiver.settings import DEFAULT_INSTANCE, Settings
from receiver.web import Services
from receiver.web.auth import require_instance
from receiver.web.dashboard.pages import Caller, blueprint, page
from receiver.web.dashboard.sign_in import require_session

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


@blueprint.get("/instances")
@require_session
def instances(services: Services, caller: Caller) -> Response:
    """List instances."""
    with services.database.read() as session:
        return page("instances.html", instances=_views(services, session, caller.instances))


@blueprint.get("/instances/<string:name>")
@require_session
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
