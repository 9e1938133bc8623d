"""What the pages tell of alarms, and of answers of ours that fail."""

import json
import re

import pytest
from visiting import Guest, eventually

from receiver.alarms import watcher as alarms
from receiver.background import record_node
from receiver.instances import tokens
from receiver.jobs.erasure import erase as erase_job

MINUTE = 60_000


def raise_alarm(receiver, kind="failed", subject="default", examples=(), **facts):
    now = receiver.services.clock()
    with receiver.services.database.write() as session:
        row = alarms.make_alarm(kind, subject, now - 5 * MINUTE, facts.pop("detail", "so it is"))
        row.examples, row.last_seen_at = json.dumps(examples), now
        for name, value in facts.items():
            setattr(row, name, value)
        session.add(row)


def plain(text):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", text))


def test_open_alarms_are_shown_with_where_to_look_and_cleared_ones_below(any_receiver):
    guest = Guest(any_receiver)
    guest.sign_in()
    assert "Alarm checks are not running" in guest.get("/alarms").text
    raise_alarm(any_receiver, "overdue", count=1234, examples=["7", "a/b"])
    raise_alarm(any_receiver, "unreadable", examples=["0af1"])
    raise_alarm(any_receiver, "failing", "callbacks", examples=["node:1"])
    raise_alarm(any_receiver, "silent", cleared_at=any_receiver.services.clock())
    still, over = guest.get("/alarms").text.split('id="h-cleared"')
    assert 'href="/jobs?show=overdue&amp;instance=default"' in still
    assert 'href="/jobs/a%2Fb?instance=default"' in still
    assert 'href="/events/0af1"' in still
    for told in (
        "jobs are overdue",
        "1,234",
        "the receiver does not accept callbacks",
        "node:1",
        "so it is",
    ):
        assert told in plain(still)
    assert "no callbacks are coming in" in over
    assert "no callbacks are coming in" not in still
    front = plain(guest.get("/").text)
    assert (
        "3 alarms open : the receiver does not accept callbacks; jobs are overdue; an event cannot"
        in front
    )


def test_nothing_is_wrong_is_said_only_while_somebody_watches(guest):
    now = guest.receiver.services.clock()
    assert "Nothing is wrong." not in guest.get("/alarms").text
    with guest.receiver.services.database.write() as session:
        assert alarms.claim_watch(session, "somebody", now, 10 * MINUTE, force=False)
    told = guest.get("/alarms").text
    assert "Nothing is wrong." in told
    assert "Alarm checks are not running" not in told
    assert "open</strong></a>" not in guest.get("/").text


def test_a_token_sees_the_alarms_of_its_own_instances(any_receiver):
    with any_receiver.services.database.write() as session:
        token = tokens.create_token(session, "limited", "read", 1, only=["mine"])
    for kind, subject in (("failed", "mine"), ("failed", "theirs"), ("failing", "callbacks")):
        raise_alarm(any_receiver, kind, subject, detail=f"{kind} {subject}")
    guest = Guest(any_receiver)
    guest.sign_in(token)
    told = guest.get("/alarms").text
    assert "failed mine" in told
    assert "theirs" not in told
    assert "failing callbacks" not in told
    assert "1 alarm open" in plain(guest.get("/").text)


def test_an_alarm_of_a_kind_that_is_not_known_yet_is_shown(guest):
    raise_alarm(guest.receiver, "brand_new", detail="of another release")
    assert "of another release" in guest.get("/alarms").text
    assert "brand_new" in guest.get("/").text


def test_our_own_failures_start_the_clock_until_the_vendor_gives_up(any_receiver):
    """Unless a callback of the instance was taken since."""
    guest = Guest(any_receiver)
    guest.sign_in()
    schedule = sum(any_receiver.services.settings.vendor_retry_seconds) * 1000
    now = any_receiver.services.clock()

    def fail(since):
        with any_receiver.services.database.write() as session:
            record_node(session, "node:1", any_receiver.services.clock(), since, 3)

    pages = ("/", "/instances", "/instances/default")
    assert not any("gives up" in guest.get(path).text for path in pages)
    fail(now - 7 * MINUTE)
    for path in pages:
        told = guest.get(path).text
        assert "callbacks are answered with errors" in told.lower(), path
        assert f'data-left="{now - 7 * MINUTE + schedule}"' in told, path
    any_receiver.call_back(b'{"id": "1", "status": "RUNNING"}')
    eventually(lambda: "gives up" not in guest.get("/instances/default").text)
    assert "gives up" not in guest.get("/").text


@pytest.mark.parametrize("since", [None, 1])
def test_a_process_that_is_gone_or_well_starts_no_clock(guest, since):
    now = guest.receiver.services.clock()
    with guest.receiver.services.database.write() as session:
        record_node(session, "node:1", now if since is None else now - 10 * MINUTE, since, 3)
    assert "gives up" not in guest.get("/").text


def test_the_page_of_a_job_tells_that_it_was_erased(guest):
    guest.receiver.call_back(b'{"id": "1", "status": "ERROR", "error": "of a person"}')
    assert "Erased" not in guest.get("/jobs/1").text
    now = guest.receiver.services.clock()
    with guest.receiver.services.database.write() as session:
        erase_job(session, "1", "default", now)
    told = guest.get("/jobs/1").text
    assert "<dt>Erased</dt>" in told
    assert "of a person" not in told
    assert "of a person" not in guest.get("/jobs").text


def test_the_list_follows_a_job_however_little_of_it_changes(guest):
    """What is rendered once is kept, and must not be kept for too long."""
    for number in range(3):
        guest.receiver.call_back(b'{"id": "1", "status": "RUNNING", "error": "step %d"}' % number)
    guest.receiver.call_back(b'{"id": "1", "status": "ERROR", "error": "seen"}')
    assert "seen" in guest.get("/jobs").text
    with guest.receiver.services.database.write() as session:
        run = session.connection().exec_driver_sql
        run("UPDATE jobs SET registers = replace(registers, 'seen', 'mind')")
    assert "mind" in guest.get("/jobs").text
