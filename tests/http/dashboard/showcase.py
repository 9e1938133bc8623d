"""Two weeks of an operator's life: instances, jobs of every outcome, refusals, lost callbacks.

Everything enters as it does in production, through signed callbacks, polls and submissions; only
the clock is ours, so that it can be yesterday.
"""

import hashlib
import hmac
import json
from base64 import b64encode
from dataclasses import dataclass, field
from random import Random

from cryptography.fernet import Fernet

from receiver.alarms.handling import handle, list_alarms
from receiver.alarms.watcher import Watcher
from receiver.app import create_app
from receiver.instances import keys as signature_keys
from receiver.instances import registry, tokens
from receiver.jobs.failed_records import replace_failed_records
from receiver.jobs.projection import NewObservation
from receiver.openconnectors.notifications import Notification
from receiver.openconnectors.signatures import HEADER, SignatureKey, sign
from receiver.reconcile import claims
from receiver.reconcile.claims import Claim
from receiver.schedules.registry import Terms, add_schedule, make_schedule
from receiver.settings import Settings
from receiver.subscriptions import registry as subscriptions
from receiver.subscriptions.registry import Choice, Subscription

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
ENCRYPTION_KEY = Fernet.generate_key().decode()
INSTANCES = ("gooddata", "freshbooks", "hubspot-eu")
OBJECTS = {
    "gooddata": ("contact", "account", "campaign"),
    "freshbooks": ("invoices", "customers"),
    "hubspot-eu": ("contacts", "deals"),
}
PROBLEMS = (
    ("Invalid email address: {}", "email", "not-an-address"),
    ("A required field is missing: {}", "last_name", ""),
    ("Duplicate value for external id {}", "external_id", "A-77310"),
)


@dataclass
class Showcase:
    """A receiver whose clock we set, and the vendor's side of the story."""

    database_url: str
    now: int
    seed: int = 7
    number: int = 481_200
    at: int = 0
    settings: dict[str, object] = field(default_factory=dict)
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.at = self.now
        self.app = create_app(
            Settings(
                database_url=self.database_url,
                encryption_keys=(ENCRYPTION_KEY,),
                public_url="https://hooks.example.com",
                **self.settings,
            ),
            clock=lambda: self.at,
        )
        self.client = self.app.test_client()
        self.services = self.app.extensions["receiver"]
        self.keys: dict[str, SignatureKey] = {}

    def close(self) -> None:
        self.services.intake.writer.close()
        self.services.database.close()

    def tell(self) -> dict[str, str]:
        """Tell it all; give a token of each scope."""
        made = self.begin()
        days = 14
        for hour in range(days * 24):
            self._hour(self.now - days * DAY + hour * HOUR)
            if hour >= (days - 1) * 24:
                self.watch(self.now - days * DAY + (hour + 1) * HOUR)
            if hour == (days - 1) * 24 + 12:
                self._subscribe()
        self._today()
        self.watch(self.now - 14 * MINUTE, self.now)
        self.at = self.now
        self._acknowledge()
        return made

    def begin(self) -> dict[str, str]:
        """Add the instances; give a token of each scope."""
        self.at = self.now - 60 * DAY
        with self.services.database.write() as session:
            for name in INSTANCES:
                self.add_instance(session, name)
            return {
                scope: tokens.create_token(session, name, scope, self.at)
                for scope, name in (("operate", "anna@example.com"), ("read", "wallboard"))
            }

    def add_instance(self, session, name: str, hub: str = "marketing") -> None:
        """Add an instance with a key and vendor secrets."""
        secret = f"the signature key of {name}".encode()
        secret_box = self.services.secret_box
        vendor = {"element_token": b"element", "user_secret": b"user", "hub": hub}
        registry.add_instance(session, secret_box, name, self.at, **vendor)
        key_id = signature_keys.add_key(session, secret_box, name, secret, self.at)
        self.keys[name] = SignatureKey(key_id, secret)

    def watch(self, *moments: int) -> None:
        """Look for alarms at these moments."""
        services = self.services
        watcher = Watcher(services.settings, services.database, [].append, lambda: self.at)
        for self.at in moments:
            watcher.check(force=True)

    def _acknowledge(self) -> None:
        """Have somebody work on one of the alarms."""
        with self.services.database.write() as session:
            row = next(
                it for it in list_alarms(session, None, only_open=True) if it.kind == "failed"
            )
            at, note = self.now - 4 * MINUTE, "asked the CRM team"
            handle(session, str(row.id), None, by="anna@example.com", now=at, note=note)

    def _subscribe(self) -> None:
        """Add two subscriptions, one of which was disabled since, and a schedule."""
        services = self.services
        facts = {"url": "https://crm.example.com/outcomes", "format": "standard"}
        with services.database.write() as session:
            for name in ("crm", "warehouse"):
                one = Subscription(name=name, **facts, choice=Choice(), created_at=self.at)
                used = services.secret_box, services.safe_http
                subscriptions.add_subscription(session, *used, one)
            subscriptions.disable(session, "warehouse", "gone", self.at)
            graces = {"start_grace": "30m", "run_grace": "2h"}
            terms = Terms(name="nightly", instance="gooddata", cron="0 2 * * *", **graces)
            add_schedule(session, make_schedule(terms, self.at), services.settings)

    def _hour(self, start: int) -> None:
        # Counted back from now, or what tests find would depend on the hour and the weekday.
        hour = ((start - self.now) // HOUR + 12) % 24
        weekend = (self.now - start) // DAY % 7 in (4, 5)
        busy = (5 if 6 <= hour <= 19 else 1) * (0.3 if weekend else 1)
        for _ in range(round(self.random.random() * busy)):
            self._job(start + self.random.randrange(HOUR))

    def _job(self, start: int, instance: str | None = None) -> str:
        instance = instance or self.random.choices(INSTANCES, (6, 3, 2))[0]
        submitted = self.random.choice((10, 250, 1_200, 4_800, 25_000))
        job = self.submit(start, instance, submitted)
        if self.random.random() < 0.5:
            self.call(start + 20_000, instance, {"id": int(job), "status": "RUNNING"})
        end = start + self.random.randrange(40, 400) * 1000
        if end >= self.now:
            return job
        luck = self.random.random()
        if luck < 0.8:
            told = {"status": "COMPLETED", "recordsCount": submitted, "recordsFailedCount": 0}
        elif luck < 0.92:
            lost = max(1, submitted // self.random.choice((5, 20, 90)))
            told = {
                "status": "COMPLETED",
                "recordsCount": submitted - lost,
                "recordsFailedCount": lost,
            }
        elif luck < 0.97:
            told = {"status": "ERROR", "error": "429 Too Many Requests from the provider"}
        else:
            told = {"status": "CANCELLED"}
        if self.random.random() < 0.04:
            notification = Notification(
                "bulk_job",
                job=job,
                status=told["status"],
                reported=told.get("recordsCount"),
                failed=told.get("recordsFailedCount"),
                source="poll",
            )
            self.observe(end + 15 * MINUTE, NewObservation(instance, notification))
        else:
            self.call(end, instance, {"id": int(job), "instanceId": 425904, **told})
        if told.get("recordsFailedCount"):
            self._errors(job, instance, told["recordsFailedCount"])
        return job

    def submit(self, at: int, instance: str, records: int) -> str:
        self.number += self.random.randrange(1, 9)
        name = self.random.choice(OBJECTS[instance])
        notification = Notification(
            "bulk_job",
            job=str(self.number),
            status="CREATED",
            source="submission",
            object=name,
            direction="UPLOAD",
            file=f"/{name}-{self.number % 97}.csv",
            submitted=records,
            submitted_at=at,
        )
        self.observe(at, NewObservation(instance, notification, callback_due=True))
        return str(self.number)

    def observe(self, at: int, observation: NewObservation) -> None:
        self.at = at
        self.services.intake.observe(observation)

    def call(
        self,
        at: int,
        instance: str,
        content: dict | bytes,
        signature: str | None = None,
        **headers: str,
    ):
        """POST a callback; signed rightly unless a signature is given."""
        self.at = at
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        signed = sign(body, self.keys[instance]) if signature is None else signature
        return self.client.post(
            f"/callbacks/{instance}",
            data=body,
            headers={**headers, **({HEADER: signed} if signed else {})},
            environ_base={"REMOTE_ADDR": "155.56.208.100"},
        )

    def _errors(self, job: str, instance: str, count: int) -> None:
        entries = []
        for line in range(min(count, 60)):
            message, name, value = PROBLEMS[(line * line) % 7 % 3]
            told = message.format(value or name)
            entry = {"lineNumber": line * 7 + 3, "message": told, "record": {name: value}}
            entries.append((json.dumps(entry), message.format("…")))
        with self.services.database.write() as session:
            claims.end_errors(session, Claim(instance, job, -1))
            replace_failed_records(session, instance, job, entries)

    def _today(self) -> None:
        """What an operator should find this morning."""
        for minutes in (96, 41):
            self.submit(self.now - minutes * MINUTE, "hubspot-eu", 4_800)
        for minutes in (9, 6, 3, 1):
            job = self.submit(self.now - minutes * MINUTE, "gooddata", 1_200)
            self.call(self.at + 5_000, "gooddata", {"id": int(job), "status": "RUNNING"})
        self._story()
        self._refusals()
        with self.services.database.write() as session:
            claims.note_queued(session, "hubspot-eu", self.now - 4 * MINUTE, 3)

    def _story(self) -> None:
        """One job with everything: late and repeated callbacks, failed records, a payload."""
        start = self.now - 34 * MINUTE
        job = self.submit(start, "gooddata", 1_200)
        self.call(start + 21_000, "gooddata", {"id": int(job), "status": "STARTED"})
        ended = {
            "id": int(job),
            "status": "COMPLETED",
            "recordsCount": 1157,
            "recordsFailedCount": 43,
            "error": "43 of 1200 records were not accepted",
            "callback-payload": {"run": "nightly-2026-47", "owner": "crm-team"},
        }
        for seconds in (190, 198, 262):
            self.call(start + seconds * 1000, "gooddata", ended)
        self.call(start + 420_000, "gooddata", {"id": int(job), "status": "RUNNING"})
        self._errors(job, "gooddata", 43)
        self.story = job

    def _refusals(self) -> None:
        body = b'{"id": 481900, "status": "COMPLETED", "recordsCount": 250}'
        secret = self.keys["freshbooks"].secret
        hexed = "sha256=" + hmac.digest(secret, body, hashlib.sha256).hex()
        self.call(self.now - 52 * MINUTE, "freshbooks", body, hexed)
        self.call(self.now - 38 * MINUTE, "freshbooks", body, sign(body, self.keys["gooddata"]))
        spaced = json.dumps(json.loads(body), indent=2).encode()
        self.call(self.now - 25 * MINUTE, "freshbooks", spaced, sign(body, self.keys["freshbooks"]))
        self.call(self.now - 17 * MINUTE, "hubspot-eu", body, "")
        new_key = b"a key that only the vendor knows yet"
        for minutes, number in ((12, 481_931), (11, 481_934), (4, 481_937)):
            told = json.dumps({"id": number, "status": "COMPLETED", "recordsCount": 80}).encode()
            digest = b64encode(hmac.digest(new_key, told, hashlib.sha256)).decode()
            self.call(self.now - minutes * MINUTE, "hubspot-eu", told, f"sha256={digest}")
