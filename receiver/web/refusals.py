"""POST /api/v1/rejections/verify-again: refused deliveries, once a key was put right."""

from typing import Any

from flask import Response
from msgspec import Struct

from receiver.callbacks.quarantine import Quarantine
from receiver.database.models import Rejection
from receiver.instances import audit
from receiver.web import schemas as shapes
from receiver.web import services
from receiver.web.answers import answer_json
from receiver.web.api import asked, blueprint, documented, response
from receiver.web.auth import check_instances, check_may_act, who


class InstancesQuery(Struct, forbid_unknown_fields=True):
    """Which instances; all that the token reaches, if none is named."""

    instance: list[shapes.Word] = []


class VerifiedAgain(Struct):
    """How many quarantined deliveries were looked at, and how many of them are events by now."""

    looked: int
    verified: int


@blueprint.post("/rejections/verify-again")
@documented(InstancesQuery, VerifiedAgain, 403)
def verify_again() -> Response:
    """Verify quarantined deliveries with the keys there are now; those that are right enter."""
    check_may_act()
    query = asked(InstancesQuery)
    check_instances(query.instance)
    only = frozenset(query.instance) if query.instance else who().instances
    quarantine = Quarantine(services().database, services().intake)
    again = quarantine.verify_again(only, entered)
    return response(answer_json(VerifiedAgain(again.looked, again.taken)))


def entered(session: Any, refused: Rejection, event: str) -> None:  # noqa: ANN401 - storage's
    """Write down that a refused delivery is an event by now, and who had it verified again."""
    audit.note(
        session,
        at=services().clock(),
        actor=who().name,
        action="refusal.verify",
        subject=f"{refused.instance}/{event}",
        detail=f"refused as {refused.reason}",
    )
