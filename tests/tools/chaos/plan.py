"""What the vendor says in a run: seeded, so that a run can be repeated, and what must become of it.

Facts are drawn first; from them come a body, spelt as one of the vendor's surfaces would, and the
notification that the oracle of the law is asked about. The product's reader has no part in it.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from corpus import UNREADABLE
from oracle import Said, as_shown, by_law

INSTANCES = ("default", "turning")  # the keys of the second are changed during the run
SHAPES = (  # how three of the vendor's surfaces spell status, reported, failed, completion time
    ("status", "recordsCount", "recordsFailedCount", "completionTime"),
    ("jobStatus", "recordCount", "errorCount", "completionTime"),
    ("job_state", "record_count", "error_count", "completion_time"),
)
UNDER_WAY = ("CREATED", "STARTED", "RUNNING", "PAUSED", "CANCELLATION_PENDING")
ENDINGS = ("COMPLETED", "COMPLETED", "COMPLETED", "ERROR", "ABORTED", "CANCELLED", "COMPLETE")
FIRST_ENDED = 1_790_000_000_000  # ms
TWINS, REPEATED, LARGE = 0.05, 0.1, 0.01  # of all bodies


@dataclass(frozen=True, slots=True)
class Delivery:
    """A body to be delivered until it is accepted. to -- `balancer`, or a node's name."""

    body: bytes
    instance: str
    to: str = "balancer"

    @property
    def sha256(self) -> bytes:
        """What tells bodies apart."""
        return hashlib.sha256(self.body).digest()


@dataclass
class Plan:
    """Everything that is sent in a run, made as it goes."""

    chance: random.Random
    nodes: list[str]
    told: dict[tuple[str, str], dict[bytes, Said]] = field(default_factory=dict)
    sent: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    max_words = 6  # about a job
    ended = 0.5  # how often a word is an ending

    def __post_init__(self) -> None:
        self._jobs = count(1)
        self._told = defaultdict(dict, self.told)
        self._bodies = self._invented()
        self._repeats: list[Delivery] = []

    def portion(self, size: int, twins: float = TWINS) -> list[Delivery]:
        """The next deliveries, shuffled: `size` new bodies, and some again or twice at once."""
        deliveries = []
        for _ in range(size):
            new = self.fresh()
            if len(self.nodes) > 1 and self.chance.random() < twins:
                pair = self.chance.sample(self.nodes, 2)
                deliveries += [replace(new, to=node) for node in pair]
            else:
                deliveries.append(new)
            if self.chance.random() < REPEATED:
                self._repeats.append(new)
        again = [self._repeats.pop() for _ in range(len(self._repeats) // 2)]
        deliveries += again
        return self._shuffled(deliveries)

    def fresh(self, to: str = "balancer") -> Delivery:
        """A delivery of a body that was never sent."""
        instance, body = next(self._bodies)
        delivery = Delivery(body, instance, to)
        self.sent[instance, delivery.sha256] = body
        return delivery

    def jobs(self, received: dict[tuple[str, bytes], int]) -> dict[tuple[str, str], dict[str, Any]]:
        """What the law says of each job, by (id, instance), from when each body was received."""
        lawful = {}
        for (job, instance), said in self._told.items():
            heard = [
                notification.replace(received_at=received[instance, sha256])
                for sha256, notification in said.items()
                if (instance, sha256) in received
            ]
            if heard:
                lawful[job, instance] = as_shown(by_law(heard), len(heard))
        return lawful

    def _shuffled(self, deliveries: list[Delivery]) -> list[Delivery]:
        """In another order, but twins side by side, so that they leave at the same instant."""
        together: dict[bytes, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            together[delivery.sha256].append(delivery)
        groups = list(together.values())
        self.chance.shuffle(groups)
        return [delivery for group in groups for delivery in group]

    def _invented(self) -> Iterator[tuple[str, bytes]]:
        """Bodies without end. Those of about forty jobs are mixed, or each would end at once."""
        odd = [(INSTANCES[0], body) for _, body, _ in UNREADABLE]
        while True:
            pool = [each for _ in range(40) for each in self._story()] + odd
            odd = []
            self.chance.shuffle(pool)
            yield from pool

    def _story(self) -> list[tuple[str, bytes]]:
        job, instance = str(next(self._jobs)), self.chance.choice(INSTANCES)
        bodies = []
        for _ in range(self.chance.randint(1, self.max_words)):
            facts = self._facts()
            body = self._spelt(job, facts)
            sha256 = hashlib.sha256(body).digest()
            self._told[job, instance][sha256] = Said("bulk_job", job, **facts)
            bodies.append((instance, body))
        return bodies

    def _facts(self) -> dict[str, Any]:
        """One thing that the vendor could say of a job."""
        chance = self.chance
        ended = chance.random() < self.ended
        facts: dict[str, Any] = {"status": chance.choice(ENDINGS if ended else UNDER_WAY)}
        if ended:
            facts["failed"] = chance.choice([None, 0, 1, 3])
            facts["reported"] = chance.choice([None, 0, 2, 10])
            facts["completed_at"] = chance.choice([None, FIRST_ENDED, FIRST_ENDED + 1])
            facts["attempt"] = chance.choice([0, 0, 0, 1])
        for name, values in (
            ("message", ("no such field", "quota")),
            ("object", ("contact", "account")),
            ("direction", ("UPLOAD", "DOWNLOAD")),
            ("created_at", (FIRST_ENDED - 9, FIRST_ENDED - 8)),
            ("callback_payload", ('"x"', "7")),
        ):
            if chance.random() < 0.3:
                facts[name] = chance.choice(values)
        return facts

    def _spelt(self, job: str, facts: dict[str, Any]) -> bytes:
        shape = self.chance.choice(SHAPES)
        names = dict(zip(("status", "reported", "failed", "completed_at"), shape, strict=True))
        names |= {"message": "error", "object": "objectName", "direction": "jobDirection"}
        names |= {"created_at": "createdDate", "attempt": "job_reset_attempt"}
        told = {names[fact]: facts[fact] for fact in names if facts.get(fact) is not None}
        if "callback_payload" in facts:
            told["callback-payload"] = json.loads(facts["callback_payload"])
        filling = "x" * 100_000 if self.chance.random() < LARGE else ""
        id_ = self.chance.choice([int(job), job])
        return json.dumps({"id": id_, **told, "nonce": f"{self.chance.random()}{filling}"}).encode()
