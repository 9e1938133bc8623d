"""/: how it stands, at one look; to a stranger, the door."""

from flask import Response, g, request

from receiver.web import services
from receiver.web.dashboard.doors import door
from receiver.web.dashboard.pages import blueprint, page
from receiver.storage import queries
from receiver.web.auth import who


@blueprint.get("/")
def front() -> Response:
    """Show how it stands."""
    if g.get("bearer") is None:
        return door()
    with services().database.read() as session:
        counts = queries.summary(
            session, who().instances, services().clock(), services().settings.overdue_after
        )
    return page("front.html", counts=counts)


@blueprint.get("/refusals")
def refusals() -> Response:
    return page("front.html")


@blueprint.get("/instances")
def instances() -> Response:
    return page("front.html")
