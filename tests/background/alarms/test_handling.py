"""What is told again of an open alarm: new jobs, each hour at most; less once it is handled."""

import pytest
from sqlalchemy import insert
from test_alarms import told
from watched import Ward

from receiver.database.audit import list_entries
from receiver.database.models import UsualTime
from receiver.instances import tokens
from receiver.lib.clock import MINUTE_MS

RAISED, CLEARED = ("raised", "overdue"), ("cleared", "overdue")


@pytest.fixture
def late(ward):
    """A receiver of which a job is overdue, and that was told."""
    return made_late(ward)


def made_late(ward):
    with ward.database.write() as session:
        session.execute(insert(UsualTime).values(instance="default", object="", ms=MINUTE_MS))
        ward.token = tokens.create_token(session, "anna", "operate", ward.now)
    ward.job("1", "RUNNING")
    ward.looks(2)
    return ward


def act(ward, what, id_="1", status=200):
    """Handle an alarm by the API; return it."""
    authorization = {"Authorization": f"Bearer {ward.token}"}
    answer = ward.receiver.client.post(f"/api/v1/alarms/{id_}/{what}", headers=authorization)
    assert answer.status_code == status, answer.text
    return answer.json


def news(webhook):
    """What was told of the overdue jobs."""
    return [line[:2] for line in told(webhook) if line[1] == "overdue"]


def end(ward, *jobs):
    for job in jobs:
        ward.job(job, "COMPLETED", recordsCount=1, recordsFailedCount=0)
    ward.looks(12)


@pytest.mark.slow
def test_new_jobs_of_an_open_alarm_are_told_at_most_each_hour(late, webhook):
    assert news(webhook) == [RAISED]
    late.job("2", "RUNNING")
    late.looks(50)
    late.job("3", "RUNNING")
    late.looks(9)
    assert news(webhook) == [RAISED]
    late.looks(3)
    assert news(webhook) == [RAISED] * 2
    late.looks(130)  # nothing is new
    assert news(webhook) == [RAISED] * 2
    late.job("4", "RUNNING")
    late.looks(2)
    end(late, "1", "2", "3", "4")
    assert news(webhook) == [*[RAISED] * 3, CLEARED]


def test_what_is_affected_when_an_alarm_is_acknowledged_is_no_news_and_what_comes_later_is(
    late, webhook, office
):
    late.job("2", "RUNNING")
    late.looks(2)
    alarm = act(late, "acknowledge?note=asked%20the%20vendor")
    assert (alarm["state"], alarm["handled_by"]) == ("acknowledged", "anna")
    late.looks(90, each=10)
    assert news(webhook) == [RAISED]
    late.job("3", "RUNNING")
    late.looks(2)
    assert news(webhook) == [RAISED] * 2
    assert "Acknowledged by anna" in office.mails[-1].get_content()
    assert "asked the vendor" in office.mails[-1].get_content()
    end(late, "1", "2", "3")
    assert news(webhook)[2:] == [CLEARED]
    late.job("4", "RUNNING")
    late.looks(7)
    assert late.shown()[0] | {"state": "open", "handled_by": None} == late.shown()[0]
    assert news(webhook)[3:] == [RAISED]
    act(late, "acknowledge", status=404)  # it is resolved, and another came


@pytest.mark.slow
def test_a_snoozed_alarm_is_told_once_the_time_is_over_if_it_is_open_and_its_end_always(
    late, webhook
):
    alarm = act(late, "snooze?minutes=120")
    assert (alarm["state"], alarm["snoozed_until"][:4]) == ("snoozed", alarm["raised_at"][:4])
    late.looks(60)
    late.job("2", "RUNNING")
    late.looks(59)
    assert news(webhook) == [RAISED]
    late.looks(1)
    assert news(webhook) == [RAISED] * 2
    assert late.shown()[0]["state"] == "open"
    act(late, "snooze?minutes=43200")
    end(late, "1", "2")
    assert news(webhook) == [RAISED, RAISED, CLEARED]


def test_acknowledging_ends_a_snooze_and_a_clock_that_was_ahead_makes_none_longer(late, webhook):
    act(late, "snooze?minutes=60")
    act(late, "acknowledge")
    late.looks(70, each=10)
    assert news(webhook) == [RAISED]
    late.later(365 * 24 * 60)
    act(late, "snooze?minutes=43200")
    late.later(-365 * 24 * 60)
    late.looks(1)
    assert news(webhook) == [RAISED] * 2


@pytest.mark.slow
def test_two_nodes_tell_of_new_jobs_once_and_go_by_what_either_was_asked(
    make_receiver, make_database, told, webhook
):
    url = make_database("sqlite")
    one, other = made_late(Ward(make_receiver, url, **told)), Ward(make_receiver, url, **told)
    other.token = one.token

    def look(minutes):
        for _ in range(minutes):
            for node in (one, other):
                node.now = one.now + (MINUTE_MS if node is one else 0)
                node.watcher.check(force=True)
                node.sender.drain()

    one.job("2", "RUNNING")
    look(61)
    assert news(webhook) == [RAISED] * 2
    act(other, "snooze?minutes=60")
    one.job("3", "RUNNING")
    look(59)
    assert news(webhook) == [RAISED] * 2
    look(1)
    assert news(webhook) == [RAISED] * 3


def test_what_cannot_be_is_rejected(late):
    for query in ("", "?minutes=soon", "?minutes=43201", "?minutes=0"):
        act(late, f"snooze{query}", status=400)
    for note in ("%00", 501 * "x"):
        act(late, f"acknowledge?note={note}", status=400)
    assert late.shown()[0]["state"] == "open"


def test_who_handled_an_alarm_is_in_the_audit_and_only_who_reaches_it_can(late):
    for number in ("2", "0", "-1", "x", "9" * 30, "%C2%B2"):
        act(late, "acknowledge", number, 404)
    act(late, "snooze?minutes=60")
    with late.database.write() as session:
        late.token = tokens.create_token(session, "elsewhere", "operate", 1, only=["other"])
    act(late, "acknowledge", status=404)
    assert late.receiver.get("/alarms", late.token).json["alarms"] == []
    with late.database.write() as session:
        late.token = tokens.create_token(session, "reader", "read", 1)
    act(late, "acknowledge", status=403)
    with late.database.read() as session:
        (entry,) = list_entries(session, 10)
    assert (entry.actor, entry.action, entry.subject) == ("anna", "alarm.snooze", "overdue/default")
    assert entry.detail == f"until {late.shown()[0]['snoozed_until']}"


def test_alarms_are_listed_page_by_page(late):
    late.reject()
    late.job("5", "ERROR")
    late.looks(1)
    every = late.shown()
    pages, path = [], "/alarms?open=true&limit=1"
    while path:
        page = late.receiver.get(path).json
        pages += page["alarms"]
        path = page["next"] and f"/alarms?open=true&limit=1&cursor={page['next']}"
    assert len(every) == 3
    assert [alarm["id"] for alarm in pages] == [alarm["id"] for alarm in every]
    assert {alarm["severity"] for alarm in every} == {"critical", "warning"}
    measured = late.receiver.client.get("/metrics").text
    assert 'receiver_open_alarms{severity="critical"} 1.0' in measured
    assert 'receiver_open_alarms{severity="warning"} 2.0' in measured
    for alarm in every:
        assert alarm["action"]
        assert alarm["runbook"].startswith("docs/runbook.md#")
