"""HTTP: views translate, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from flask import current_app

from receiver.background import Health
from receiver.callbacks.intake import Intake
from receiver.database.engine import Database
from receiver.instances.encryption import SecretBox
from receiver.lib.ratelimit import Limits
from receiver.lib.safe_http import SafeClient
from receiver.metrics import Stored
from receiver.openconnectors.client import VendorClient
from receiver.outbound.sender import Sender
from receiver.reconcile.reconciler import Reconciler
from receiver.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """What the views work with. clock -- gives ms since the epoch."""

    settings: Settings
    database: Database
    intake: Intake
    limits: Limits
    secret_box: SecretBox
    vendor: VendorClient
    safe_http: SafeClient
    clock: Callable[[], int]
    health: Health
    stored: Stored
    reconciler: Reconciler
    sender: Sender


def services() -> Services:
    """The services of the app that answers this request."""
    return cast("Services", current_app.extensions["receiver"])
