"""The law of jobs over two nodes: whoever got which notification, and when, the job is the same.

Times of receipt belong to notifications: the first receipt of a body gives the end of an ending
that tells no time, so here each body has one, whichever node gets it and in whatever order.
"""

import atexit
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from builders import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from receiver.app import create_app
from receiver.callbacks.deliveries import Delivery, judge
from receiver.callbacks.store import Store
from receiver.database.models import NUMBER_BITS, Event, Facet, JobRow
from receiver.instances import keys as signature_keys
from receiver.instances import registry
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.jobs.public import public_job as shown
from receiver.jobs.queries import find_jobs
from receiver.jobs.timeline import timeline
from receiver.lib.clock import iso
from receiver.openconnectors.signatures import SignatureKey, sign
from receiver.settings import Settings
from receiver.web.api.schemas import Job

KEY = SignatureKey("k", b"a key that two instances share")
FERNET = "b" * 43 + "="
START = 1_790_000_000_000  # ms
FIELDS = Job.__struct_fields__

words = st.sampled_from(
    (
        *("CREATED", "STARTED", "RUNNING", "CANCELLATION_PENDING", "PAUSED", "QUEUED", "paused"),
        *("COMPLETED", "COMPLETE", "completed", "ERROR", "ABORTED", "CANCELLED", "CANCELED"),
    )
)
small = st.integers(0, 3)


def optional(name: str, values: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.one_of(st.just({}), st.builds(lambda value: {name: value}, values))


notifications = st.builds(
    lambda status, *facts: {"status": status, **{k: v for fact in facts for k, v in fact.items()}},
    words,
    optional("recordsCount", small),
    optional("recordsFailedCount", small),
    optional("completionTime", st.sampled_from([START - 5, START + 3, START + 10**6])),
    optional("job_reset_attempt", st.integers(0, 2)),
    optional("error", st.sampled_from(["a", "b", "z"])),
    optional("objectName", st.sampled_from(["contact", "account"])),
    optional("jobDirection", st.sampled_from(["UPLOAD", "DOWNLOAD"])),
    optional("createdDate", st.sampled_from([START - 9, START - 8])),
    optional("callback-payload", st.sampled_from([1, "x", {"a": []}])),
    optional("copy", small),  # says nothing, and makes another body of it
)


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[dict], list[tuple[int, int]], list[int]]:
    """Notifications, their deliveries as (which, to which node), and another order of them."""
    said = draw(st.lists(notifications, min_size=1, max_size=5, unique_by=json.dumps))
    everything = list(range(len(said)))
    again = st.lists(st.sampled_from(everything), max_size=3)
    order = draw(st.permutations(everything + draw(again)))
    nodes = draw(st.lists(st.integers(0, 1), min_size=len(order), max_size=len(order)))
    other = draw(st.permutations(everything + draw(again)))
    return said, list(zip(order, nodes, strict=True)), other


class Nodes:
    """Two receivers on one database, and a clock that tells when a body is first received."""

    def __init__(self, folder: str) -> None:
        self.now = START
        settings = Settings(
            database_url=f"sqlite:///{folder}/receiver.db",
            encryption_keys=(FERNET,),
            answer_within=60_000,
        )
        apps = [create_app(settings, clock=lambda: self.now) for _ in range(2)]
        self.services = [app.extensions["receiver"] for app in apps]
        self.jobs = count(1)
        secret_box = self.secret_box = SecretBox(settings.encryption_keys)
        with self.services[0].database.write() as session:
            for name in ("split", "whole"):
                registry.add_instance(session, secret_box, name, START)
                signature_keys.add_key(session, secret_box, name, KEY.secret, START)

    def deliver(self, node: int, instance: str, body: bytes, at: int) -> None:
        self.now = at
        self.services[node].intake.receive(Delivery(instance, body, sign(body, KEY), None, "::1"))

    def commit(self, node: int, instance: str, bodies: list[bytes]) -> None:
        """Deliver all in one transaction, at START."""
        database, keys = self.services[node].database, Keys(self.secret_box, ())
        keys.refresh(database)
        deliveries = [Delivery(instance, body, sign(body, KEY), None, "::1") for body in bodies]
        items = [judge(keys.current, delivery) for delivery in deliveries]
        Store(database, keys, lambda: START).write(items)

    def seen(self, id_: str, instance: str) -> tuple[dict, set, int]:
        """A job without what describes arrival: itself, its events, and its timeline's length."""
        database = self.services[0].database
        (record,) = find_jobs(database, id_, instance)
        with database.read() as session:
            row, facet = session.execute(
                select(JobRow, Facet)
                .join(Facet, Facet.facet == JobRow.facet)
                .where(JobRow.id == id_, JobRow.instance == instance)
            ).one()
            of_job = Event.job == id_, Event.instance == instance
            kept = session.execute(select(Event.sha256, Event.n).where(*of_job))
            words = facet.status, facet.outcome, facet.object, facet.direction
            events = {(sha256, n >> NUMBER_BITS) for sha256, n in kept}
        job = {name: getattr(shown(record, START, 10**9), name) for name in FIELDS}
        return (
            {**job, "columns": (*words, row.files_expire_at), "instance": None, "updated_at": None},
            events,
            len(timeline(database, id_, instance)),
        )

    def close(self) -> None:
        for services in self.services:
            services.intake.writer.close()
            services.database.close()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # In memory where there is such a folder: thousands of commits, and no power to lose.
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="nodes-", dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, folder)  # after the apps, which close their databases at the end
    made = Nodes(folder)
    yield made
    made.close()


def bodies_of(said: list[dict], id_: str) -> list[bytes]:
    return [json.dumps({"id": id_, **facts}).encode() for facts in said]


RUNNING_AFTER_ITS_END = (
    [{"status": "COMPLETED", "recordsCount": 2}, {"status": "RUNNING"}, {"status": "ERROR"}],
    [(0, 1), (1, 0), (2, 0), (0, 0)],
    [2, 1, 0],
)


def example_settings(runs: int) -> settings:
    return settings(max_examples=examples(runs), suppress_health_check=list(HealthCheck))


@example_settings(300)
@given(story=stories())
@example(story=RUNNING_AFTER_ITS_END)
def test_split_over_two_nodes_in_any_order_a_job_is_that_of_one_node(nodes, story):
    said, split, other = story
    id_ = f"job-{next(nodes.jobs)}"
    bodies = bodies_of(said, id_)
    for which, node in split:
        nodes.deliver(node, "split", bodies[which], START + which)
    for which in other:
        nodes.deliver(0, "whole", bodies[which], START + which)
    job, events, entries = nodes.seen(id_, "split")
    assert (job, events, entries) == nodes.seen(id_, "whole")
    assert (job["events"], entries) == (len(said), len(said))


@pytest.mark.slow
@example_settings(1500)
@given(story=stories(), cut=st.integers(0, 8))
@example(story=RUNNING_AFTER_ITS_END, cut=2)
def test_however_deliveries_are_grouped_into_transactions_a_job_is_the_same(nodes, story, cut):
    said, split, other = story
    id_ = f"job-{next(nodes.jobs)}"
    bodies = bodies_of(said, id_)
    nodes.commit(0, "split", [bodies[which] for which, _ in split[:cut]])
    nodes.commit(1, "split", [bodies[which] for which, _ in split[cut:]])
    nodes.commit(0, "whole", [bodies[which] for which in other])
    assert nodes.seen(id_, "split") == nodes.seen(id_, "whole")


@example_settings(100)
@given(story=stories())
@example(story=RUNNING_AFTER_ITS_END)
def test_split_over_two_nodes_at_the_same_time_a_job_is_that_of_one_node(nodes, story):
    said, split, other = story
    id_ = f"job-{next(nodes.jobs)}"
    bodies = bodies_of(said, id_)

    def deliver(node: int) -> None:
        for which, to in split:
            if to == node:
                nodes.deliver(node, "split", bodies[which], START)

    threads = [threading.Thread(target=deliver, args=(node,)) for node in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nodes.commit(0, "whole", [bodies[which] for which in other])
    assert nodes.seen(id_, "split") == nodes.seen(id_, "whole")


@example_settings(100)
@given(story=stories())
def test_of_the_times_of_receipt_nothing_depends_but_an_end_that_tells_no_time(nodes, story):
    """Such an end is when one of the notifications of that ending was first received."""
    said, split, other = story
    id_ = f"job-{next(nodes.jobs)}"
    bodies = bodies_of(said, id_)
    ends: dict[str, set[int | None]] = {"split": set(), "whole": set()}
    for instance, deliveries in (("split", split), ("whole", [(which, 0) for which in other])):
        received: set[int] = set()
        for turn, (which, node) in enumerate(deliveries):
            at = START + turn * (50 if instance == "split" else 70)
            nodes.deliver(node, instance, bodies[which], at)
            if which not in received:
                ends[instance].add(said[which].get("completionTime", at))
            received.add(which)
    jobs = {instance: nodes.seen(id_, instance)[0] for instance in ends}
    arrival = {"ended_at", "files_expire_at", "columns"}
    split_job, whole_job = (
        {name: fact for name, fact in jobs[instance].items() if name not in arrival}
        for instance in ("split", "whole")
    )
    assert split_job == whole_job
    for instance, job in jobs.items():
        assert job["ended_at"] in {*map(iso, ends[instance]), None}
