"""Writing down who did what at the dashboard."""

from typing import Any

import structlog

from receiver.web.auth import who

log = structlog.get_logger()


def note(session: Any, action: str, subject: str, detail: str = "") -> None:  # noqa: ANN401, ARG001
    """Write down what whoever is signed in does, in the transaction that does it."""
    log.info("acted", actor=who().name, action=action, subject=subject, detail=detail)
