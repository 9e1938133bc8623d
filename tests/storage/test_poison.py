"""Verified bodies that cannot be read, or read oddly, are kept byte for byte and hurt nothing."""

from corpus import HOSTILE, UNREADABLE

GOOD = b'{"id": "good", "status": "COMPLETED", "recordsCount": 1, "recordsFailedCount": 0}'


def test_whatever_is_in_a_verified_body_it_is_kept_and_hurts_nothing_else(any_receiver):
    for name, body, kind in UNREADABLE + HOSTILE:
        answer = any_receiver.call_back(body)
        assert (name, answer.status_code) == (name, 200)
        event = f"/events/{answer.json['event']}"
        assert (name, any_receiver.get(event).json["kind"]) == (name, kind)
        assert (name, any_receiver.get(f"{event}/body").data) == (name, body)
    assert any_receiver.call_back(GOOD).json["duplicate"] is False
    assert any_receiver.get("/jobs/good").json["outcome"] == "succeeded"
    listed = any_receiver.get("/jobs?limit=1000")
    jobs = {event["job"] for event in any_receiver.get("/events?limit=1000").json["events"]}
    assert {job["id"] for job in listed.json["jobs"]} == jobs - {None}
    assert any_receiver.get("/summary").json["unreadable_events"] == sum(
        kind == "unreadable" for *_, kind in UNREADABLE + HOSTILE
    )
