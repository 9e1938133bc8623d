"""Erasure: what may be about people goes and stays away; what became of the job stays."""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import commands
import pytest
from builders import content_of
from cryptography.fernet import Fernet
from fakes import add_instance
from sqlalchemy import select, text
from test_pruning import DAY, age, prune

from receiver.database.engine import Database
from receiver.database.models import Base, JobRow, Submission
from receiver.jobs.erasure import erase_job
from receiver.jobs.failed_records import replace_failed_records
from receiver.jobs.projection import NewObservation
from receiver.lib.clock import now_ms
from receiver.openconnectors.notifications import Notification
from receiver.reconcile import claims
from receiver.reconcile.claims import Claim

ADA = "Ada Lovelace"


def bulk(status: str = "COMPLETED", job: str = "1", **facts: object) -> bytes:
    counts = {"recordsCount": 3, "recordsFailedCount": 2}
    personal = {"message": f"{ADA} is no contact", "callback-payload": {"by": ADA}}
    told = {"id": job, "status": status, **counts, **personal, **facts}
    return json.dumps(told).encode()


def observed(receiver, source: str, status: str = "COMPLETED", **facts: object) -> None:
    told = {
        "message": f"{ADA} by {source}",
        "file": f"/{ADA}.csv",
        "callback_payload": f'"{ADA}"',
        **{name: facts.pop(name) for name in ("attempt", "failed") if name in facts},
    }
    notification = Notification("bulk_job", job="1", status=status, source=source, **told)
    receiver.services.intake.observe(NewObservation("default", notification, **facts))


@pytest.fixture
def full(any_receiver):
    """A receiver that holds a job with all that may be about somebody."""
    fill(any_receiver)
    return any_receiver


def fill(receiver) -> None:
    with receiver.services.database.write() as session:
        row = {"instance": "default", "at": 1, "submitted_by": "x", "state": "sending"}
        session.add(Submission(id="s", file=f"/{ADA}.csv", **row))
    url = "https://ada-lovelace.example.com/"
    observed(receiver, "submission", "CREATED", client_url=url, submission="s", callback_due=True)
    receiver.call_back(bulk("RUNNING"))
    receiver.call_back(bulk())
    claim = claimed(receiver)
    with receiver.services.database.write() as session:
        assert claims.end_errors(session, claim)
        records = [(json.dumps(ADA), ADA)] * 2
        replace_failed_records(session, "default", "1", records)


def claimed(receiver) -> Claim:
    claim = Claim("default", "1", 0)
    with receiver.services.database.write() as session:
        assert claims.claim_errors(session, now_ms(), claim)
    return claim


def erased(receiver, job: str = "1", instance: str = "default") -> dict[str, int] | None:
    with receiver.services.database.write() as session:
        return erase_job(session, job, instance, now_ms())


def everything(receiver) -> str:
    """All that is in the database, as text."""
    with receiver.services.database.read() as session:
        return "\n".join(
            f"{table.name}: {tuple(row)}"
            for table in Base.metadata.tables.values()
            for row in session.execute(select(table))
        )


def traces(receiver) -> list[str]:
    """The rows that name her, or her client's address."""
    lines = everything(receiver).splitlines()
    return [line for line in lines if "lovelace" in line.lower()]


def test_what_may_be_about_people_goes_and_the_outcome_stays(full):
    assert len(traces(full)) == 8
    before, entries = full.get("/jobs/1").json, full.get("/jobs/1/events").json
    assert erased(full) == {"bodies": 2, "errors": 2, "outbound": 2, "submissions": 1}
    assert traces(full) == []
    after = full.get("/jobs/1").json
    gone = {"message": None, "file": None, "callback_payload": None}
    assert after == {**before, **gone, "updated_at": after["updated_at"]}
    assert (after["outcome"], after["events"]) == ("partial", 2)
    assert full.get("/jobs/1/events").json == entries
    assert full.get("/jobs/1/errors").json == {"errors": [], "groups": [], "next": None}
    for event in full.get("/events?job=1").json["events"]:
        body = full.get(f"/events/{event['id']}/body")
        assert (body.status_code, body.json["code"]) == (410, "body_pruned")


def test_who_asks_again_gets_the_job_without_what_was_erased(full):
    tag = full.get("/jobs/1").headers["ETag"]
    erased(full)
    again = full.get("/jobs/1", **{"If-None-Match": tag})
    assert (again.status_code, again.json["message"]) == (200, None)


def late(receiver) -> None:
    """Everything that could bring it back."""
    observed(receiver, "poll")
    observed(receiver, "poll", "ERROR", attempt=1, failed=3)
    url = "https://ada-lovelace.example.com/"
    observed(receiver, "submission", "CREATED", client_url=url)
    for body in (bulk("RUNNING"), bulk(), bulk(message=f"{ADA} again", job_reset_attempt=2)):
        assert receiver.call_back(body).status_code == 200


def test_neither_a_replay_nor_a_late_callback_nor_a_poll_brings_it_back(full):
    ids = {event["id"] for event in full.get("/events").json["events"]}
    erased(full)
    late(full)
    assert traces(full) == []
    assert full.get("/jobs/1").json["events"] == 3  # the third said something new
    assert len(full.get("/events").json["events"]) == 3
    assert full.call_back(bulk()).json["event"] in ids
    with full.services.database.read() as session:
        row = session.scalars(select(JobRow)).one()
    assert row.errors_at is None  # what failed is not fetched either
    assert len(full.get("/jobs/1/events").json["timeline"]) == 3 + 4


def test_what_is_learnt_meanwhile_of_its_course_still_counts(full):
    erased(full)
    full.call_back(bulk("ERROR", job_reset_attempt=1))
    job = full.get("/jobs/1").json
    assert (job["status"], job["outcome"], job["message"]) == ("ERROR", "failed", None)


def test_errors_that_were_being_fetched_are_not_kept(any_receiver):
    any_receiver.call_back(bulk())
    claim = claimed(any_receiver)
    erased(any_receiver)
    with any_receiver.services.database.write() as session:
        assert not claims.renew_errors(session, now_ms(), claim)
        assert not claims.end_errors(session, claim)
    assert traces(any_receiver) == []


def test_erasing_twice_is_as_once_and_a_job_that_is_not_there_cannot_be(full):
    erased(full)
    once = full.get("/jobs/1").json
    assert erased(full) == {"bodies": 0, "errors": 0, "outbound": 0, "submissions": 1}
    again = full.get("/jobs/1").json
    assert {**again, "updated_at": None} == {**once, "updated_at": None}
    assert erased(full, "2") is None
    assert erased(full, "1", "other") is None


def test_other_jobs_keep_what_they_have(full):
    full.call_back(bulk(job="2"))
    before, kept = full.get("/jobs/2").json, len(traces(full))
    erased(full)
    assert full.get("/jobs/2").json == before
    assert len(traces(full)) == kept - 8 == 2  # its registers and its body


def test_a_replay_after_erasing_and_pruning_brings_nothing_back_either(full):
    erased(full)
    age(full, 2 * DAY)
    prune(full, events=DAY)
    events = full.get("/jobs/1").json["events"]
    assert full.call_back(bulk()).json["duplicate"] is True
    assert traces(full) == []
    assert full.get("/jobs/1").json["events"] == events


@pytest.mark.parametrize("kind", ["sqlite", "postgresql18"])
def test_callbacks_that_come_while_a_job_is_erased_leave_nothing(
    make_receiver, make_database, kind
):
    receiver = make_receiver(make_database(kind))
    fill(receiver)
    answers: list[int] = []

    def send(lane: int) -> None:
        for number in range(20):
            body = bulk(message=f"{ADA} {lane} {number}")
            answers.append(receiver.call_back(body).status_code)

    threads = [threading.Thread(target=send, args=(lane,)) for lane in range(3)]
    for thread in threads:
        thread.start()
    erased(receiver)
    prune(receiver, bodies=DAY)
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 60
    assert traces(receiver) == []
    assert receiver.get("/jobs/1").json["events"] == 62


def test_another_instances_job_of_the_same_id_keeps_all_its_bodies(make_receiver, database_url):
    receiver = make_receiver(database_url, encryption_keys=(Fernet.generate_key().decode(),))
    add_instance(receiver, "other")
    receiver.call_back(bulk())
    erased(receiver)

    def send(number: int) -> list[tuple[int, str, bytes]]:
        sent = []
        for instance in ("default", "other"):
            body = bulk(message=f"{number} to {instance}")
            answer = receiver.call_back(body, instance)
            sent.append((answer.status_code, f"/events/{answer.json['event']}/body", body))
        return sent

    with ThreadPoolExecutor(16) as threads:  # so that batches hold callbacks of both
        pairs = list(threads.map(send, range(60)))
    assert {status for pair in pairs for status, *_ in pair} == {200}
    assert {receiver.get(gone).status_code for (_, gone, _), _ in pairs} == {410}
    assert [receiver.get(kept).data for _, (_, kept, _) in pairs] == [
        body for _, (_, _, body) in pairs
    ]


def test_no_byte_of_it_is_left_in_an_sqlite_file(make_receiver, make_database):
    url = make_database("sqlite")
    receiver = make_receiver(url)
    fill(receiver)
    erased(receiver)
    receiver.close()  # which takes the log into the file
    kept = content_of(url)
    assert b"COMPLETED" in kept
    assert ADA.encode() not in kept


# -- the command


def run(url: str, *words: str) -> tuple[int, object]:
    environment = {**os.environ, "RECEIVER_DATABASE_URL": url}
    done = commands.run((*words, "--json"), Path.cwd(), environment)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def both(make_receiver, database_url: str, tmp_path) -> tuple[object, Callable[..., object]]:
    receiver = make_receiver(database_url)
    fill(receiver)
    return receiver, lambda *words: run(database_url, *words)


def test_the_command_erases_a_job_and_says_what_went(both):
    receiver, command = both
    gone = {"bodies": 2, "errors": 2, "outbound": 2, "submissions": 1}
    told = {"job": "1", "instance": "default", **gone}
    assert command("erase", "--yes", "--job", "1") == (0, told)
    assert traces(receiver) == []


def test_the_command_leaves_no_byte_of_it_in_an_sqlite_file_that_is_in_use(
    make_receiver, make_database
):
    url = make_database("sqlite")
    fill(make_receiver(url))
    assert ADA.encode() in content_of(url)
    assert run(url, "erase", "--yes", "--job", "1")[0] == 0
    assert ADA.encode() not in content_of(url)


def test_a_log_that_somebody_reads_is_left_and_emptied_another_time(make_receiver, make_database):
    url = make_database("sqlite")
    receiver = make_receiver(url)
    fill(receiver)
    with closing(Database(url)) as other, other.read() as reading:
        reading.execute(text("SELECT count(*) FROM jobs")).all()
        erased(receiver)
        assert not receiver.services.database.truncate_wal()
    assert receiver.services.database.truncate_wal()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_command_erases_nothing_unless_it_is_clear_which(both):
    receiver, command = both

    def refused(*words: str) -> tuple[int, str]:
        code, told = command("erase", "--yes", *words)
        return code, told["error"]["code"]

    told = Notification("bulk_job", job="1", status="ERROR", source="poll")
    receiver.services.intake.observe(NewObservation("other", told))
    assert refused("--job", "1") == (2, "ambiguous_job")
    assert refused("--job", "2") == (2, "not_found")
    assert refused("--job", "1", "--instance", "nosuch") == (2, "not_found")
    assert refused("--job", "1", "--instance", "no/such") == (2, "not_found")
    assert refused() == (2, "usage")
    assert len(traces(receiver)) == 8
