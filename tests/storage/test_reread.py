"""`receiver reread`: what was stored unread is merged as if it had been read when it came."""

import json
from typing import Any

import pytest
from builders import bulk
from sqlalchemy import text

from receiver.cli.commands import run

UNREAD = (
    "UPDATE events SET kind = 'unreadable', job = '', status = NULL, changed = NULL, note = NULL",
    "DELETE FROM jobs",
    "DELETE FROM counts",
)
BODIES = [
    bulk("1", "RUNNING"),
    bulk("1", "COMPLETED", recordsCount=3, recordsFailedCount=1),
    bulk("2", "COMPLETED", recordsCount=2, objectName="contact"),
    bulk("3", "CREATED"),
    b'{"eventId": "x", "events": []}',
    b"\xff no JSON",
]


@pytest.fixture
def command(database_url, monkeypatch, capfd):
    monkeypatch.setenv("RECEIVER_DATABASE_URL", database_url)

    def run_line(line: str) -> dict[str, Any]:
        assert run([*line.split(), "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    return run_line


def forget_reading(receiver) -> None:
    """Leave the events as a release would that could read none of them."""
    with receiver.services.database.write() as session:
        for statement in UNREAD:
            session.execute(text(statement))


def shown(receiver) -> dict[str, Any]:
    """All that the API tells, but when jobs changed last."""
    jobs = receiver.get("/jobs").json["jobs"]
    for job in jobs:
        del job["updated_at"]
    return {
        "jobs": sorted(jobs, key=lambda job: job["id"]),
        "timelines": [receiver.get(f"/jobs/{job}/events").json for job in "123"],
        "events": receiver.get("/events").json,
        "summary": receiver.get("/summary").json,
    }


def test_events_are_merged_as_if_they_had_been_read_when_they_came(any_receiver, command):
    for body in [*BODIES, BODIES[0], BODIES[-1]]:
        assert any_receiver.call_back(body).status_code == 200
    before = shown(any_receiver)
    (latest, *_) = (job["updated_at"] for job in any_receiver.get("/jobs").json["jobs"])
    forget_reading(any_receiver)
    assert any_receiver.get("/summary").json["unreadable_events"] == len(BODIES)
    assert command("reread --dry-run") == {"readable": 5}
    assert any_receiver.get("/jobs").json["jobs"] == []
    assert command("reread") == {"readable": 5, "merged": 5}
    assert shown(any_receiver) == before
    # Whoever asks for what changed since then learns of all of it.
    news = any_receiver.get(f"/jobs?updated_after={latest}").json["jobs"]
    assert {job["id"] for job in news} == {"1", "2", "3"}
    assert command("reread") == {"readable": 0}
    assert shown(any_receiver) == before
    assert any_receiver.call_back(BODIES[0]).json["duplicate"] is True


def test_an_event_that_came_again_and_was_read_is_still_one(any_receiver, command):
    event = any_receiver.call_back(BODIES[1]).json["event"]
    any_receiver.call_back(BODIES[1])
    forget_reading(any_receiver)
    again = any_receiver.call_back(BODIES[1]).json
    assert again["duplicate"] is False
    assert command("reread") == {"readable": 1, "merged": 1}
    (listed,) = any_receiver.get("/events").json["events"]
    assert (listed["id"], listed["deliveries"]) == (again["event"], 3)
    assert any_receiver.get("/jobs/1").json["events"] == 1
    assert any_receiver.get(f"/events/{event}").status_code == 404


def test_it_is_of_its_own_instance_alone(any_receiver, command, monkeypatch):
    monkeypatch.setenv("RECEIVER_ENCRYPTION_KEYS", "0" * 43 + "=")
    any_receiver.call_back(BODIES[1])
    forget_reading(any_receiver)
    with any_receiver.services.database.write() as session:
        session.execute(text("UPDATE events SET instance = 'removed'"))
    any_receiver.call_back(bulk("1", "RUNNING"))
    command("reread")
    jobs = any_receiver.get("/jobs").json["jobs"]
    assert {(job["instance"], job["outcome"]) for job in jobs} == {
        ("default", "pending"),
        ("removed", "partial"),
    }


def test_what_was_pruned_stays_unread(any_receiver, command):
    any_receiver.call_back(BODIES[1])
    forget_reading(any_receiver)
    with any_receiver.services.database.write() as session:
        session.execute(text("UPDATE events SET body = NULL"))
    assert command("reread") == {"readable": 0}
