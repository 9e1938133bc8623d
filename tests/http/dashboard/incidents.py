"""Incidents as an operator meets them: a calm day, then one thing goes wrong.

`test_incidents.py` holds that the overview names each one's cause and the next command;
`read_incidents.py` writes what a person reads.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from nodes import eventually
from showcase import INSTANCES, MINUTE, Showcase

from receiver.jobs.projection import NewObservation
from receiver.openconnectors.notifications import Notification
from receiver.openconnectors.signatures import SignatureKey, sign
from receiver.schedules.registry import Terms, add_schedule, make_schedule
from receiver.subscriptions import registry as subscriptions
from receiver.subscriptions.registry import Choice, Subscription

NOWHERE = "http://127.0.0.1:9"  # nobody listens there
SETTINGS = {
    "alarm_url": "https://alarms.example.com/",
    "alarm_secret": bytes(32),
    "vendor_url": f"{NOWHERE}/elements/api-v2",
    "vendor_rate": 1000.0,
    "forward_allow": frozenset({"127.0.0.1"}),
}
DONE = {"status": "COMPLETED", "recordsCount": 1_200, "recordsFailedCount": 0}


class Night(Showcase):
    """A receiver whose last day was calm, until something goes wrong. Times: minutes ago."""

    @classmethod
    def opened(cls, database_url: str) -> "Night":
        return cls(database_url, time.time_ns() // 1_000_000, settings=SETTINGS)

    def tell(self) -> dict[str, str]:
        """Let a day pass in which all went well; give a token of each scope."""
        made = self.begin()
        for ago in range(26 * 60, 75, -25):
            self.succeed(ago, self.random.choice(INSTANCES))
        self.watch(self.now - 90 * MINUTE)
        return made

    def succeed(self, ago: int, instance: str) -> None:
        job = self.start(ago + 3, instance)
        self.call(self.now - ago * MINUTE, instance, {"id": int(job), **DONE})

    def large(self) -> bytes:
        """A body unlike any other that a full disk has no room for."""
        return b'{"id": "%d", "error": "%s"}' % (self.random.getrandbits(60), b"x" * 500_000)

    def start(self, ago: int, instance: str) -> str:
        return self.submit(self.now - ago * MINUTE, instance, 1_200)


def vendor_down(night: Night) -> None:
    """Whatever the vendor is asked, nobody answers."""
    night.start(40, "gooddata")
    for ago in (25, 14, 1):
        night.at = night.now - ago * MINUTE
        night.services.reconciler.one_pass(everything=True)


def wrong_key(night: Night) -> None:
    """The vendor signs with a key that nobody added here."""
    key = SignatureKey("new", b"the vendor has had this key since a moment ago")
    for number, ago in enumerate((38, 31, 24, 16, 9, 2), start=1):
        body = b'{"id": 77%d, "status": "COMPLETED", "recordsCount": 40}' % ago
        answer = night.call(night.now - ago * MINUTE, "freshbooks", body, sign(body, key))
        assert answer.status_code == 401
        # Counted after the answer, by the clock of then.
        eventually(lambda number=number: rejections(night) == number)
    succeed_elsewhere(night, "freshbooks")


def rejections(night: Night) -> int:
    with night.services.database.read() as session:
        run = session.connection().exec_driver_sql
        return run("SELECT sum(count) FROM rejection_counts").scalar()


def files_expire(night: Night) -> None:
    """Downloads ended more than two days ago, and nobody fetched their files."""
    for number, hours in ((7_001, 70), (7_002, 66), (7_003, 61)):
        at = night.now - 60 * hours * MINUTE
        told = {"objectName": "deals", "jobDirection": "DOWNLOAD", "completionTime": at}
        night.call(at, "hubspot-eu", {"id": number, **DONE, **told})
    succeed_elsewhere(night)


def overdue(night: Night) -> None:
    """Jobs of one instance go on for far longer than usual; callbacks of others come in."""
    for ago in (70, 55, 48):
        night.start(ago, "freshbooks")
    succeed_elsewhere(night)


def lost_callbacks(night: Night) -> None:
    """Jobs end, and only the vendor's answer to a question tells of it."""
    for ago in (50, 41, 33, 20, 12):
        ended = Notification(
            "bulk_job", job=night.start(ago + 9, "gooddata"), status="COMPLETED", reported=1_200
        )
        polled = ended.replace(source="poll")
        night.observe(night.now - ago * MINUTE, NewObservation("gooddata", polled))
    succeed_elsewhere(night, "gooddata")


def deliveries_fail(night: Night) -> None:
    """A subscription's endpoint takes no connection."""
    night.at = night.now - 200 * MINUTE
    services = night.services
    one = Subscription(
        name="crm",
        url=f"{NOWHERE}/outcomes",
        format="standard",
        choice=Choice(),
        created_at=night.at,
    )
    with services.database.write() as session:
        subscriptions.add_subscription(session, services.secret_box, services.safe_http, one)
    for ago in (190, 150, 100, 50, 20, 5):
        night.succeed(ago, "gooddata")
        services.sender.drain()


def schedule_missed(night: Night) -> None:
    """The nightly load was due an hour ago, and nobody started it."""
    night.at = night.now - 300 * MINUTE
    due = datetime.fromtimestamp((night.now - 60 * MINUTE) / 1000, UTC)
    facts = {"instance": "hubspot-eu", "cron": f"{due.minute} {due.hour} * * *"}
    terms = Terms(name="nightly", start_grace="30m", run_grace="2h", **facts)
    with night.services.database.write() as session:
        add_schedule(session, make_schedule(terms, night.at), night.services.settings)
    succeed_elsewhere(night, "hubspot-eu")


def watcher_dead(night: Night) -> None:
    """Whoever checked for alarms has not done so since."""
    night.start(50, "freshbooks")
    succeed_elsewhere(night)


def nothing_stored(night: Night) -> None:
    """Whatever goes wrong is not in the database, but with it."""
    succeed_elsewhere(night)


def succeed_elsewhere(night: Night, *but: str) -> None:
    for ago, instance in zip((30, 22, 14, 6, 3), 2 * INSTANCES, strict=False):
        if instance not in but:
            night.succeed(ago, instance)


@dataclass(frozen=True)
class Incident:
    """What goes wrong, and what the overview has to say: a cause in words, a command as typed.

    watched -- whether somebody checks for alarms. fault -- of the machine: see `Fault`.
    """

    stage: Callable[[Night], None]
    cause: str
    command: str
    watched: bool = True
    fault: str = ""

    def make(self, database_url: str) -> tuple[Night, dict[str, str]]:
        """Stage it up to now; give tokens, too."""
        night = Night.opened(database_url)
        tokens = night.tell()
        self.stage(night)
        if self.watched:
            night.watch(night.now - 2 * MINUTE, night.now)
        night.at = night.now
        return night, tokens


INCIDENTS = {
    "01": Incident(
        wrong_key, "no key of the instance", "receiver rejections --instance freshbooks"
    ),
    "02": Incident(nothing_stored, "disk is full", "receiver doctor", fault="disk"),
    "03": Incident(overdue, "Jobs are overdue", "receiver reconcile"),
    "04": Incident(
        vendor_down, "vendor cannot be reached: connection refused", "receiver objects --instance"
    ),
    "05": Incident(files_expire, "Files expire", "receiver reconcile --fetch-results DIR"),
    "06": Incident(watcher_dead, "checks are not running", "receiver watch", watched=False),
    "07": Incident(nothing_stored, "database does not answer", "receiver doctor", fault="database"),
    "08": Incident(deliveries_fail, "connection refused", "receiver deliveries --subscription crm"),
    "09": Incident(lost_callbacks, "Callbacks were lost", "receiver trigger --instance gooddata"),
    "10": Incident(
        schedule_missed, "An expected job did not start", "receiver schedules show nightly"
    ),
}
