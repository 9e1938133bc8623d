"""HTTP: views translate, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from flask import current_app

from receiver.forwarding import Forwarder
from receiver.health import Health
from receiver.intake import Intake
from receiver.metrics import Stored
from receiver.settings import Settings
from receiver.storage.database import Database
from receiver.storage.vault import Vault
from receiver.upstream import Upstream
from receiver.web.limits import Limits
from receiver.web.waiting import Waiters


@dataclass(frozen=True, slots=True)
class Services:
    """What the views work with. clock -- gives ms since the epoch."""

    settings: Settings
    database: Database
    intake: Intake
    waiters: Waiters
    limits: Limits
    vault: Vault
    vendor: Upstream
    forwarder: Forwarder
    clock: Callable[[], int]
    health: Health
    stored: Stored


def services() -> Services:
    """The services of the app that answers this request."""
    return cast("Services", current_app.extensions["receiver"])
