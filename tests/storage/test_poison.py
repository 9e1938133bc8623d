"""Verified bodies that cannot be read, or read oddly, are kept byte for byte and hurt nothing."""

import hashlib

from corpus import HOSTILE, UNREADABLE

GOOD = b'{"id": "good", "status": "COMPLETED", "recordsCount": 1, "recordsFailedCount": 0}'
LISTS = ("/jobs", "/jobs?expires_before=9999-12-31T00:00:00Z", "/summary")


def test_whatever_is_in_a_verified_body_it_is_kept_and_hurts_nothing_else(any_receiver):
    for name, body, kind in UNREADABLE + HOSTILE:
        answer = any_receiver.call_back(body)
        assert (name, answer.status_code) == (name, 200)
        path = f"/events/{answer.json['event']}"
        event = any_receiver.get(path).json
        assert (name, event["kind"], event["size"]) == (name, kind, len(body))
        assert (name, event["sha256"]) == (name, hashlib.sha256(body).hexdigest())
        assert (name, any_receiver.get(f"{path}/body").data) == (name, body)
        assert (name, event["job"] is not None) == (name, kind == "bulk_job")
        of_job = (f"/jobs/{event['job']}", f"/jobs/{event['job']}/events") if event["job"] else ()
        for path in (*of_job, *LISTS):
            assert (name, path, any_receiver.get(path).status_code) == (name, path, 200)
    assert any_receiver.call_back(GOOD).json["duplicate"] is False
    assert any_receiver.get("/jobs/good").json["outcome"] == "succeeded"
    listed = any_receiver.get("/jobs?limit=1000")
    jobs = {event["job"] for event in any_receiver.get("/events?limit=1000").json["events"]}
    assert {job["id"] for job in listed.json["jobs"]} == jobs - {None}
    assert any_receiver.get("/summary").json["unreadable_events"] == sum(
        kind == "unreadable" for *_, kind in UNREADABLE + HOSTILE
    )
