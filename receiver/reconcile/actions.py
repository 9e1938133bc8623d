"""What an operator does by hand: ask the vendor, have it send again, test the way of a callback.

The vendor is asked in turn, like everybody does: paced over all nodes, and not while it fails.
"""

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from receiver.callbacks.intake import Intake
from receiver.callbacks.trigger import send_signed
from receiver.database.engine import Database, database_time
from receiver.errors import CredentialError, UpstreamUnreachable
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.instances.encryption import Vault
from receiver.jobs.projection import NewObservation
from receiver.openconnectors import client as upstream
from receiver.openconnectors.client import Upstream
from receiver.openconnectors.notifications import Notification
from receiver.openconnectors.signatures import SignatureKey
from receiver.reconcile import followups
from receiver.reconcile.pacing import Blocked, Lane, Road
from receiver.settings import DEFAULT_INSTANCE, Settings


@dataclass(frozen=True, slots=True)
class Tested:
    """What became of a test callback. status -- None: there was no answer, as `told` says."""

    status: int | None
    told: str


@dataclass(frozen=True, slots=True)
class Actions:
    """Acts for an operator; as many at once as there are threads."""

    settings: Settings
    database: Database
    intake: Intake
    vault: Vault
    vendor: Upstream
    clock: Callable[[], int]

    def ask(self, instance: str, job: str, by: str) -> Notification:
        """Ask the vendor where a job stands, and keep the answer. by -- who wants to know.

        Raises UpstreamError, CredentialError, StoreUnavailable.
        """
        lane = self._lane(instance)
        self._turn(lane)
        with self.database.read() as session:
            asked_at = database_time(session, self.clock)
        told = upstream.read_status(lane.send(upstream.status(job, lane.secrets.hub)), job)
        note = f"asked for by {by}"
        polled = told.replace(source="poll", asked_at=asked_at)
        self.intake.observe(NewObservation(instance, polled, note))
        return told

    def resend(self, instance: str) -> int:
        """Have the vendor send what it holds back for us; give how many deliveries that are.

        Raises UpstreamError, CredentialError, StoreUnavailable.
        """
        lane = self._lane(instance)
        self._turn(lane)
        held = len(upstream.read_entries(lane.ask_queue()))
        if held:
            self._turn(lane)
            lane.ask_queue(resend=True)
        with self.database.write() as session:
            followups.note_queued(session, instance, database_time(session, self.clock), held)
        return held

    def test(self, instance: str) -> Tested:
        """Send a signed test callback to our public URL, the way the vendor's come.

        It is an event of kind `other`, marked as a test, and touches no job.
        Raises CredentialError.
        """
        key = self._newest_key(instance)
        target = f"{self.settings.public_url}/callbacks/{instance}"
        try:
            sent = send_signed(target, instance, key, self.clock())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Tested(None, str(error) or type(error).__name__)
        return Tested(sent.status, sent.told)

    def _newest_key(self, instance: str) -> SignatureKey:
        if self.settings.public_url is None:
            raise CredentialError("RECEIVER_PUBLIC_URL is not set, so there is no way to test")
        if instance == DEFAULT_INSTANCE and self.settings.default_keys:
            return self.settings.default_keys[0]
        with self.database.read() as session:
            found = signature_keys.opened_keys(session, self.vault)
        for each in found:
            if each.instance == instance and each.retired_at is None:
                return each.key
        raise CredentialError(f"there is no usable key of {instance} to sign with")

    def _lane(self, instance: str) -> Lane:
        with self.database.read() as session:
            found = registry.vendor_secrets(session, self.vault, instance)
        if found is None:
            raise CredentialError(f"{instance} has no vendor secrets to ask with")
        interval = max(1, round(1000 / self.settings.vendor_rate))
        return Lane(instance, found, Road(self.database, self.vendor, interval, self.clock))

    @staticmethod
    def _turn(lane: Lane) -> None:
        try:
            lane.turn()
        except Blocked:
            raise UpstreamUnreachable(
                "the vendor failed for this instance a short while ago, and is left alone for now"
            ) from None
