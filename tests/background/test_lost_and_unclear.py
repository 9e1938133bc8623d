"""What the vendor does not know any more, or may have taken: closed, linked or given up by hand."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator

import commands
import pytest
from fakes import BAD_ROWS, Between, between
from sqlalchemy import update

from receiver.database import audit
from receiver.database.models import JobRow, Submission
from receiver.instances import tokens

MINUTE = 60_000
SHARED = ("sqlite", "postgresql18")  # each kind of database that several nodes can share
READER = "a reader"
FIRST = "1234"  # of the stand-in's jobs


@pytest.fixture(params=SHARED)
def relay(request, make_database: Callable[[str], str]) -> Iterator[Between]:
    with between(make_database(request.param)) as made:
        yield made


def hear(relay: Between, job: str, status: str, **facts: object) -> None:
    body = {"id": job, "status": status, **facts}
    assert relay.call_back(json.dumps(body).encode(), "gooddata").status_code == 200


def ask(relay: Between, times: int = 1) -> list[int]:
    """How many jobs each pass asked for."""
    return [relay.reconciler().one_pass(everything=True).asked for _ in range(times)]


def an_hour_passes(relay: Between) -> None:
    """For jobs that the vendor did not know; PostgreSQL's clock is nobody's to set."""
    with relay.services.database.write() as session:
        session.execute(update(JobRow).values(missing_since=JobRow.missing_since - 60 * MINUTE))


def post(relay: Between, path: str, token: str | None = None):
    headers = {"Authorization": f"Bearer {token or relay.token}"}
    return relay.client.post(f"/api/v1{path}", headers=headers)


def command(relay: Between, folder, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "token").write_text(relay.token)
    environment = {"RECEIVER_URL": relay.url, "RECEIVER_TOKEN_FILE": str(folder / "token")}
    return commands.run(words, folder, {"PATH": os.environ["PATH"], **environment})


def notes(relay: Between, job: str) -> list[tuple[str, list[str], str | None]]:
    entries = relay.get(f"/jobs/{job}/events?instance=gooddata").json["timeline"]
    return [(entry["source"], entry["changed"], entry["note"]) for entry in entries]


def audited(relay: Between) -> list[tuple[str, str, str]]:
    with relay.services.database.read() as session:
        return [(row.actor, row.action, row.subject) for row in audit.list_entries(session, 10)]


# --- lost


def test_a_job_unknown_to_the_vendor_three_times_over_an_hour_is_lost(relay):
    hear(relay, "99999", "RUNNING")
    assert ask(relay, 4) == [1] * 4
    assert relay.job("99999")["outcome"] == "pending"  # it is not an hour yet
    an_hour_passes(relay)
    assert ask(relay) == [1]
    lost = relay.job("99999")
    assert (lost["outcome"], lost["status"], lost["overdue"]) == ("lost", "RUNNING", False)
    jobs = relay.summary()["jobs"]
    assert (jobs["lost"], jobs["pending"]) == (1, 0)
    assert [each["id"] for each in relay.get("/jobs?outcome=lost").json["jobs"]] == ["99999"]
    source, changed, note = notes(relay, "99999")[-1]
    assert (source, changed) == ("poll", ["outcome"])
    assert note == "the vendor does not know this job (404), 5 in a row"
    assert ask(relay) == [0]


@pytest.mark.parametrize("word", ["RUNNING", "COMPLETED"])
def test_any_later_word_of_the_vendors_opens_a_lost_job_again(relay, word):
    hear(relay, "99999", "RUNNING")
    ask(relay, 3)
    an_hour_passes(relay)
    ask(relay)
    hear(relay, "99999", word, more=1)
    outcome = {"RUNNING": "pending", "COMPLETED": "succeeded"}[word]
    assert relay.job("99999")["outcome"] == outcome
    jobs = relay.summary()["jobs"]
    assert (jobs["lost"], jobs[outcome]) == (0, 1)
    assert "outcome" in notes(relay, "99999")[-1][1]
    an_hour_passes(relay)
    ask(relay)  # the count began anew
    assert relay.job("99999")["outcome"] == outcome


def test_two_times_are_not_enough_and_a_word_in_between_begins_the_count_anew(relay):
    hear(relay, "99999", "RUNNING")
    ask(relay)
    an_hour_passes(relay)
    ask(relay)
    assert relay.job("99999")["outcome"] == "pending"
    hear(relay, "99999", "RUNNING", more=1)
    ask(relay)
    an_hour_passes(relay)
    ask(relay)
    assert relay.job("99999")["outcome"] == "pending"
    ask(relay)
    assert relay.job("99999")["outcome"] == "lost"


def test_an_unknown_job_with_two_endings_keeps_its_outcome_and_is_asked_for_no_more(relay):
    for word in ("ERROR", "COMPLETED"):
        hear(relay, "99999", word)
    before = relay.job("99999")
    assert before["conflict"] is True
    assert ask(relay, 3) == [1] * 3
    an_hour_passes(relay)
    assert ask(relay, 2) == [1, 0]
    assert relay.job("99999")["outcome"] == before["outcome"]
    assert relay.summary()["jobs"]["lost"] == 0


# --- closed by hand


def test_an_operator_closes_a_job_and_that_is_audited(relay):
    hear(relay, "99999", "RUNNING")
    answer = post(relay, "/jobs/99999/close?instance=gooddata")
    assert (answer.status_code, answer.json["outcome"]) == (200, "lost")
    assert notes(relay, "99999")[-1] == ("operator", ["outcome"], "closed by test")
    assert audited(relay)[0] == ("test", "job.close", "gooddata/99999")
    assert ask(relay) == [0]
    assert post(relay, "/jobs/99999/close").json["outcome"] == "lost"
    hear(relay, "99999", "RUNNING", more=1)
    assert relay.job("99999")["outcome"] == "pending"


def test_only_who_may_operate_closes_and_only_what_has_not_ended(relay):
    hear(relay, "1", "RUNNING")
    hear(relay, "2", "COMPLETED")
    with relay.services.database.write() as session:
        reader = tokens.create_token(session, READER, "read", 1)
    answers = [
        post(relay, "/jobs/1/close", reader),
        post(relay, "/jobs/0/close"),
        post(relay, "/jobs/2/close"),
    ]
    codes = [(answer.status_code, answer.json["code"]) for answer in answers]
    assert codes == [(403, "forbidden"), (404, "not_found"), (409, "job_ended")]
    assert [relay.job(job)["outcome"] for job in ("1", "2")] == ["pending", "succeeded"]
    assert audited(relay) == []


def test_a_job_is_closed_by_command(relay, tmp_path):
    hear(relay, "99999", "RUNNING")
    done = command(relay, tmp_path, "job", "99999", "--close", "--json")
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (0, "lost"), done.stderr
    missing = command(relay, tmp_path, "job", "0", "--close")
    assert missing.returncode == 2
    assert "there is no job 0" in missing.stderr


# --- submissions of unknown fate


def cut_off(relay: Between, *, taken: bool, rows: bytes = BAD_ROWS) -> None:
    """Upload while the connection breaks before the answer; taken -- whether there is a job."""
    relay.faults(drop_callbacks=True, **{"die_after_upload" if taken else "die_in_upload": 1})
    assert relay.upload(rows).status_code == 502
    assert relay.summary()["unclear_submissions"] == 1


def unclear(relay: Between) -> list[dict[str, object]]:
    return relay.get("/submissions").json["submissions"]


def test_an_upload_that_was_cut_off_is_linked_to_its_job_once_that_is_listed(relay):
    cut_off(relay, taken=True)
    (listed,) = unclear(relay)
    assert (listed["instance"], listed["file"], listed["submitted"]) == (
        "gooddata",
        "/sample.csv",
        4,
    )
    relay.ended_at_vendor(FIRST)
    report = relay.reconciler().one_pass()
    assert (report.found, report.unclear) == (1, [])
    (job,) = relay.get("/jobs").json["jobs"]
    assert (job["file"], job["records"]["submitted"]) == ("/sample.csv", 4)
    assert (job["outcome"], job["learnt_by"]) == ("partial", "poll")
    assert (unclear(relay), relay.summary()["unclear_submissions"]) == ([], 0)
    sources = [source for source, _, _ in notes(relay, job["id"])]
    assert sources == ["submission", "poll"]


def test_a_job_whose_callback_was_faster_is_linked_too(relay):
    relay.faults(die_after_upload=1)
    relay.upload(BAD_ROWS)
    relay.ended(FIRST)
    assert relay.reconciler().one_pass().unclear == []
    assert relay.job(FIRST)["records"]["submitted"] == 4


@pytest.mark.parametrize("facts", [{"object": "lead"}, {"submitted": 5}, {"at": 1_700_000_000_000}])
def test_a_job_of_another_object_count_or_time_is_not_linked(relay, facts):
    cut_off(relay, taken=True)
    with relay.services.database.write() as session:
        session.execute(update(Submission).values(**facts))
    relay.ended_at_vendor(FIRST)
    assert relay.reconciler().one_pass().found == 1
    assert len(unclear(relay)) == 1


def test_the_job_of_another_upload_is_not_linked(relay):
    cut_off(relay, taken=False)
    relay.faults(drop_callbacks=True)
    again = relay.uploaded(BAD_ROWS)
    relay.ended_at_vendor(again)
    relay.reconciler().one_pass(everything=True)
    assert len(unclear(relay)) == 1


def test_a_submission_that_came_to_nothing_is_dismissed_and_that_is_audited(relay, tmp_path):
    cut_off(relay, taken=False)
    (listed,) = unclear(relay)
    with relay.services.database.write() as session:
        reader = tokens.create_token(session, READER, "read", 1)
        other = tokens.create_token(session, "other", "operate", 1, only=["freshbooks"])
    path = f"/submissions/{listed['id']}/dismiss"
    assert [post(relay, path, token).status_code for token in (reader, other)] == [403, 404]
    shown = command(relay, tmp_path, "submissions")
    assert listed["id"] in shown.stdout
    done = command(relay, tmp_path, "submissions", "--dismiss", str(listed["id"]))
    assert done.returncode == 0, done.stderr
    assert audited(relay)[0] == ("test", "submission.dismiss", f"gooddata/{listed['id']}")
    assert (unclear(relay), relay.summary()["unclear_submissions"]) == ([], 0)
    assert relay.reconciler().one_pass().unclear == []
    assert post(relay, path).status_code == 404


def test_a_submission_whose_node_died_is_unclear_after_a_while(relay):
    cut_off(relay, taken=False)
    with relay.services.database.write() as session:
        session.execute(update(Submission).values(state="sending"))
    assert unclear(relay) == []
    with relay.services.database.write() as session:
        session.execute(update(Submission).values(at=Submission.at - 20 * MINUTE))
    assert [each["instance"] for each in unclear(relay)] == ["gooddata"]
