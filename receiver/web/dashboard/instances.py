"""/instances: keys and their last use, silence, and how the vendor holds up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Response, g, request

from receiver.errors import NotFound
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.jobs import summary
from receiver.jobs.summary import Refusing, Vendor
from receiver.settings import DEFAULT_INSTANCE
from receiver.web import services
from receiver.web.auth import current_bearer, require_instance
from receiver.web.dashboard.pages import blueprint, page

LOOK_BACK = 2  # times the vendor's whole schedule; what was refused before is given up long ago


@dataclass(frozen=True, slots=True)
class Silence:
    """When an instance was last heard of, and whether that is for a reason; times are ms.

    refusing -- what is refused since; failing_since -- since when callbacks are answered with
    errors; gives_up_at -- when the vendor does if those are the vendor's.
    """

    name: str
    last_callback_at: int | None
    refusing: Refusing | None
    failing_since: int | None
    gives_up_at: int | None


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance for people."""

    silence: Silence
    hub: str | None = None
    vendor_secrets: bool = False
    keys: Sequence[dict[str, Any]] = field(default_factory=list)
    vendor: Vendor | None = None
    under_way: int = 0
    oldest: int | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.silence.name

    @property
    def in_database(self) -> bool:
        """Whether it is more than the environment's signature key."""
        return any(not key.get("environment") for key in self.keys)


@blueprint.get("/instances")
def instances() -> Response:
    """List instances."""
    with services().database.read() as session:
        return page("instances.html", instances=instance_views(session, reached()))


@blueprint.get("/instances/<string:name>")
def instance(name: str) -> Response:
    """Show an instance and its keys."""
    return page("instance.html", instance=the_instance(name), wanted=request.args.get("key"))


def the_instance(name: str) -> InstanceView:
    """Give one instance. Raises NotFound, and Forbidden where the token does not reach it."""
    require_instance(current_bearer(), [name])
    if name not in reached():
        raise NotFound(f"There is no instance {name}.")
    with services().database.read() as session:
        return instance_views(session, [name])[0]


def reached() -> list[str]:
    """Name the instances that the token reaches."""
    given = {DEFAULT_INSTANCE} if services().settings.default_keys else set()
    return sorted(name for name in given.union(g.instances) if current_bearer().may_see(name))


def schedule() -> int:
    """For how long the vendor tries to deliver, ms."""
    return sum(services().settings.vendor_retry_seconds) * 1000


def silences(names: Sequence[str]) -> list[Silence]:
    """Tell when instances were last heard of."""
    now = services().clock()
    with services().database.snapshot() as connection:
        last = summary.last_callbacks(connection)
        refused = summary.refusing(connection, now - LOOK_BACK * schedule(), last)
        failing = summary.failing_since(connection, now)
    return silences_of(names, last, refused, failing)


def silences_of(
    names: Sequence[str],
    last: Mapping[str, int],
    refused: Mapping[str, Refusing],
    failing: int | None,
) -> list[Silence]:
    """Tell when instances were last heard of; the rest as `summary` has it.

    Which instance's callbacks are answered with errors is not written down, since they are answered
    so when nothing can be: it may be any that was not heard of since.
    """
    found = []
    for name in names:
        heard, why = last.get(name), refused.get(name)
        fails = failing if failing is not None and failing > (heard or 0) else None
        began = [at for at in (why.since if why else None, fails) if at is not None]
        gives_up_at = min(began) + schedule() if began else None
        found.append(Silence(name, heard, why, fails, gives_up_at))
    return found


def instance_views(session: Any, names: Sequence[str]) -> list[InstanceView]:  # noqa: ANN401
    """Give instances with all that is known of them."""
    rows = {str(row["name"]): row for row in registry.list_instances(session)}
    keys = signature_keys.list_keys(session)
    vendors, under_way = summary.vendors(session), summary.under_way(session, names)
    views = []
    for silence in silences(names):
        name = silence.name
        row: dict[str, Any] = rows.get(name, {})
        count, oldest = under_way.get(name, (0, None))
        views.append(
            InstanceView(
                silence,
                row.get("hub"),
                bool(row.get("vendor_secrets")),
                [key for key in keys if key["instance"] == name] + _of_environment(name),
                vendors.get(name),
                count,
                oldest,
            )
        )
    return views


def _of_environment(name: str) -> list[dict[str, Any]]:
    if name != DEFAULT_INSTANCE:
        return []
    unknown = {"created_at": None, "last_used_at": None, "retired_at": None, "environment": True}
    return [{"id": key.id, "instance": name, **unknown} for key in services().settings.default_keys]
