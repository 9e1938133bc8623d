"""Whoever fetched a file through us need not be told that it will expire."""

import pytest

from receiver.alarms.conditions import active_conditions
from receiver.lib.clock import MINUTE_MS, now_ms


def wrong(relay):
    """What is wrong in two days and a half."""
    then = now_ms() + 60 * 60 * MINUTE_MS
    with relay.services.database.read() as session:
        found = active_conditions(session, relay.services.settings, then)
        return [(one.kind, one.examples) for one in found if one.kind == "expiring"]


def by_relay(relay, job_id, _folder):
    path = f"/bulk/{job_id}/contact"
    assert relay.vendors("HEAD", path).status_code == 200
    assert wrong(relay) == [("expiring", (job_id,))]
    assert relay.vendors("GET", path).status_code == 200


def by_reconciler(relay, _job_id, folder):
    assert relay.reconciler().one_pass(results=folder).results == 1


@pytest.mark.parametrize("fetch", [by_relay, by_reconciler])
def test_a_file_that_was_fetched_is_no_cause_for_alarm(relay, tmp_path, fetch):
    relay.ended(relay.uploaded())
    job_id = relay.vendors("POST", "/bulk/download", json={"objectName": "contact"}).json()["id"]
    relay.ended(job_id)
    assert wrong(relay) == [("expiring", (job_id,))]
    fetch(relay, job_id, tmp_path)
    assert wrong(relay) == []
