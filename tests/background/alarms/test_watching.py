"""Watching by command, by several at once, and what is no longer unfetched."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import commands
import pytest
from builders import KEY
from nodes import eventually
from sqlalchemy import select
from watched import WRITTEN_SECRET, Ward

from receiver.alarms.watcher import claim_watch, lock_watch
from receiver.app import _app
from receiver.database.models.alarms import Fetch, Node, Watch
from receiver.database.models.outbound import OutboundDelivery
from receiver.errors import StoreError
from receiver.lib.clock import MINUTE_MS, now_ms
from receiver.reconcile.claims import note_fetched
from receiver.settings import Settings


@pytest.fixture
def command(tmp_path, make_database, make_receiver, webhook):
    """Run a command beside a receiver that had a job fail; give (exit code, output)."""
    url = make_database("sqlite")
    ward = Ward(make_receiver, url)
    ward.job("1\u002e2", "ERROR")

    def run(*words, **environment):
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "RECEIVER_DATABASE_URL": url,
            "EVENT_NOTIFICATION_SIGNATURE_KEY": KEY.secret.decode(),
            **environment,
        }
        made = commands.run(words, tmp_path, variables)
        assert "Traceback" not in made.stderr, made.stderr
        return made.returncode, made.stdout

    run.database = ward.database
    run.told = {
        "RECEIVER_ALARM_URL": webhook.url,
        "RECEIVER_ALARM_SECRET": WRITTEN_SECRET,
        "RECEIVER_FORWARD_ALLOW": "127.0.0.1",
    }
    return run


@pytest.mark.slow
def test_a_look_by_command_tells_and_is_listed(command, webhook):
    assert command("alarms") == (0, "none\n")
    for _ in range(2):
        assert command("watch", "--once", **command.told)[0] == 0
    assert len(webhook.posted) == 1
    with command.database.read() as session:
        assert session.scalars(select(Watch)).one().until == 0  # given back
    code, listed = command("alarms", "--json")
    (alarm,) = json.loads(listed)["alarms"]
    assert (code, alarm["kind"], alarm["subject"]) == (0, "failed", "default")
    assert (alarm["examples"], alarm["cleared_at"]) == (["1.2"], None)
    assert alarm["notified_at"] >= alarm["raised_at"]
    assert (alarm["severity"], alarm["title"]) == ("warning", "jobs failed or lost records")
    for words in (("--open",), ("ack", "1", "--note", "at it"), ("snooze", "1", "--for", "2h")):
        code, listed = command("alarms", *words)
        assert code == 0
        assert re.search(
            "1: See the causes: `receiver job|acknowledged by cli:|snoozed until 2", listed
        )
    assert json.loads(command("alarms", "--json")[1])["alarms"][0]["state"] == "snoozed"
    for words in (("ack", "2"), ("snooze", "1", "--for", "soon"), ("snooze", "1", "--for", "40d")):
        assert command("alarms", *words)[0] == 2


def test_a_look_that_cannot_tell_says_so_by_its_exit_code(command, webhook):
    webhook.statuses = [500]
    assert command("watch", "--once", **command.told)[0] == 6


def test_a_server_checks_though_nobody_is_to_be_notified(make_database, make_receiver, monkeypatch):
    url = make_database("sqlite")
    ward = Ward(make_receiver, url)
    ward.job("1", "ERROR")
    monkeypatch.setattr("receiver.app.PERIOD_SECONDS", 0.01)
    _, background = _app(Settings(database_url=url), now_ms, None, None)
    background.start()
    try:
        assert eventually(ward.alarms) == [("failed", "default", 1)]
    finally:
        background.close()


def test_half_of_a_setting_stops_it(command):
    assert command("watch", "--once", RECEIVER_ALARM_URL="https://a.example")[0] == 2


def test_watchers_at_the_same_time_tell_once(make_receiver, database_url, told, webhook):
    ward = Ward(make_receiver, database_url, **told)
    ward.job("1", "ERROR")
    watchers = [ward.another() for _ in range(4)]

    def watch(watcher):
        for _ in range(5):
            try:
                watcher.check(force=True)
            except StoreError:
                continue  # two at once on SQLite: one waited for too long

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(watch, watchers))
    ward.look()
    assert len(webhook.posted) == 1
    with ward.database.read() as session:
        assert {row.tries for row in session.query(OutboundDelivery)} == {1}


def test_who_lost_the_watch_meanwhile_writes_nothing(ward):
    with ward.database.write() as session:
        assert claim_watch(session, "one", ward.now, 60_000, force=False)
        assert not claim_watch(session, "other", ward.now, 60_000, force=False)
        assert lock_watch(session, "one")
    with ward.database.write() as session:
        assert claim_watch(session, "other", ward.now, 60_000, force=True)
        assert not lock_watch(session, "one")
        assert lock_watch(session, "other")
        assert claim_watch(session, "one", ward.now + 60_000, 60_000, force=False)


def failing_since(ward):
    with ward.database.read() as session:
        return [row.failing_since for row in session.query(Node)]


def test_a_fault_of_ours_lasts_until_a_callback_is_taken(ward):
    health, since = ward.receiver.services.health, ward.now
    for status in (500, 200, 500, 401, 503, 405):
        health.answered(status)
        health.beat(ward.database, alive=True)
        ward.later(5)
    health.beat(ward.database, alive=True)
    assert failing_since(ward) == [since + 10 * MINUTE_MS]
    health.answered(200)
    health.beat(ward.database, alive=True)
    assert failing_since(ward) == [None]


def test_an_outage_of_the_database_is_over_when_it_can_be_written_again(ward):
    health, since = ward.receiver.services.health, ward.now
    health.answered(503)
    ward.later(1)
    health.beat(ward.database, alive=True)
    assert failing_since(ward) == [since]
    ward.later(1)
    health.beat(ward.database, alive=True)
    assert failing_since(ward) == [None]


def test_a_writer_that_has_stopped_is_a_failure_without_any_callback(ward):
    health, since = ward.receiver.services.health, ward.now
    for _ in range(3):
        health.beat(ward.database, alive=False)
        ward.later(10)
    assert failing_since(ward) == [since]


def test_what_is_done_is_forgotten(ward, webhook):
    ward.job("1", "ERROR")
    with ward.database.write() as session:
        note_fetched(session, "1", "default", ward.now)
    ward.looks(2)
    ward.later(401 * 24 * 60)
    ward.looks(7)
    ward.later(401 * 24 * 60)
    ward.look()
    with ward.database.read() as session:
        assert session.query(Fetch).count() == 0
    assert ward.alarms() == []
