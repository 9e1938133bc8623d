"""Writing down who did what at the dashboard."""

from typing import Any

from receiver.instances import audit
from receiver.web import services
from receiver.web.auth import current_bearer


def note(session: Any, action: str, subject: str, detail: str = "") -> None:  # noqa: ANN401 - storage's
    """Write down what whoever is signed in does, last in the transaction that does it."""
    audit.note(
        session,
        at=services().clock(),
        actor=current_bearer().name,
        action=action,
        subject=subject,
        detail=detail,
    )
