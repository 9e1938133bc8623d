"""What the pages tell of alarms, and of answers of ours that fail."""

import json
import re

import pytest
from builders import NOW
from cryptography.fernet import Fernet
from visiting import Guest, eventually

from receiver.alarms import watcher as alarms
from receiver.background import record_node
from receiver.instances import tokens
from receiver.jobs.erasure import erase_job
from receiver.subscriptions.registry import Choice, Subscription, add_subscription

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
    raise_alarm(any_receiver, "overdue", count=1234, examples=["7", "a/b"])
    raise_alarm(any_receiver, "unreadable", examples=["0af1"])
    raise_alarm(any_receiver, "failing", "callbacks", examples=["node:1"])
    raise_alarm(any_receiver, "schedule_late", "nightly", examples=["8"], instance="default")
    raise_alarm(any_receiver, "silent", cleared_at=any_receiver.services.clock())
    still, over = guest.get("/alarms").text.split('id="h-resolved"')
    assert 'href="/jobs?show=overdue&amp;instance=default"' in still
    assert 'href="/jobs/a%2Fb?instance=default"' in still
    assert 'href="/jobs/8?instance=default"' in still
    assert 'href="/events/0af1"' in still
    for told in ("Jobs are overdue", "1,234", "Callbacks are not accepted", "node:1", "So it is"):
        assert told in plain(still)
    assert "No callbacks are coming in" in over
    assert "No callbacks are coming in" not in still


def test_the_overview_says_first_what_is_wrong_and_what_to_do(any_receiver):
    guest = Guest(any_receiver)
    guest.sign_in()
    raise_alarm(any_receiver, "overdue", count=12, examples=["7"])
    raise_alarm(any_receiver, "failing", "callbacks", examples=["node:1"])
    front = guest.get("/").text
    problems = re.findall(r'<li class="problem.*?</li>', front, re.DOTALL)
    first, second = map(plain, problems)
    for told in ("critical", "Callbacks are not accepted", "callbacks", "5 min ago"):
        assert told in first
    assert "What to do: Run receiver doctor on every node" in first
    assert "Runbook: The database is down" in first
    for told in ("warning", "Jobs are overdue", "default", "12 affected", "receiver reconcile"):
        assert told in second
    assert 'href="/jobs?show=overdue&amp;instance=default"' in problems[1]


def test_what_is_wrong_by_the_counts_is_said_though_no_alarm_says_so(guest):
    """Nobody may be checking for alarms."""
    assert "problem" not in guest.get("/").text
    guest.receiver.client.post("/callbacks/default", data=b"x")
    eventually(lambda: "Signatures are wrong" in guest.get("/").text)
    raise_alarm(guest.receiver, "rejected")
    assert guest.get("/").text.count("Signatures are wrong") == 1


def test_every_page_says_when_alarms_are_not_checked_or_nobody_is_notified(
    make_receiver, make_database
):
    url, secret = "https://alarms.example.com/", "whsec_" + "A" * 32
    nobody, unchecked = "No alarm destination is configured", "Alarm checks are not running"
    for settings, watched, told in (
        ({}, False, {nobody, unchecked}),
        ({}, True, {nobody}),
        ({"alarm_url": url, "alarm_secret": secret}, False, {unchecked}),
        ({"alarm_url": url, "alarm_secret": secret}, True, set()),
    ):
        receiver = make_receiver(make_database("sqlite"), **settings)
        guest = Guest(receiver)
        guest.sign_in()
        if watched:
            watch(receiver)
        for path in ("/", "/jobs", "/events", "/rejections", "/alarms", "/instances"):
            page = guest.get(path).text
            banners = re.findall(r'<p class="banner.*?<strong>(.*?)</strong>', page, re.DOTALL)
            assert (len(banners), set(banners)) == (len(told), told), path


@pytest.mark.parametrize(("seconds", "is_told"), [(30, False), (50, True)])
def test_who_checked_and_died_is_given_the_time_to_be_followed(
    make_receiver, make_database, seconds, is_told
):
    receiver = make_receiver(make_database("sqlite"), clock=lambda: NOW)
    with receiver.services.database.write() as session:
        assert alarms.claim_watch(session, "dead", NOW - seconds * 1000, 0, force=True)
    guest = Guest(receiver)
    guest.sign_in()
    assert ("checks are not running" in guest.get("/").text) == is_told


def watch(receiver):
    with receiver.services.database.write() as session:
        now = receiver.services.clock()
        assert alarms.claim_watch(session, "somebody", now, 10 * MINUTE, force=False)


def test_an_empty_dashboard_says_the_first_steps(guest):
    told = guest.get("/").text
    for command in ("instances add", "trigger --url", "submit sample.csv"):
        assert f"receiver {command}" in told
    guest.receiver.call_back(b'{"id": "1", "status": "RUNNING"}')
    assert "First steps" not in guest.get("/").text


def test_nothing_is_wrong_is_said_only_while_somebody_watches(guest):
    guest.receiver.call_back(b'{"id": "1", "status": "RUNNING"}')
    assert "No open alarms." not in guest.get("/alarms").text
    assert "No open problems." not in guest.get("/").text
    watch(guest.receiver)
    assert "No open alarms." in guest.get("/alarms").text
    assert "No open problems." in guest.get("/").text


def test_a_token_sees_the_alarms_of_its_own_instances(any_receiver):
    with any_receiver.services.database.write() as session:
        token = tokens.create_token(session, "limited", "read", 1, only=["mine"])
    for kind, subject in (("failed", "mine"), ("failed", "theirs"), ("failing", "callbacks")):
        raise_alarm(any_receiver, kind, subject, detail=f"{kind} {subject}")
    guest = Guest(any_receiver)
    guest.sign_in(token)
    for told in (guest.get("/alarms").text, guest.get("/").text):
        assert "<bdi>mine</bdi>" in told
        assert "theirs" not in told
        assert "Callbacks are not accepted" not in told


def test_an_alarm_of_a_kind_that_is_not_known_yet_is_shown(guest):
    raise_alarm(guest.receiver, "brand_new", detail="of another release")
    assert "Of another release" in guest.get("/alarms").text
    for path in ("/alarms", "/"):
        assert "Brand_new" in guest.get(path).text


def test_an_alarm_is_acknowledged_and_snoozed_by_whoever_may_operate(guest):
    raise_alarm(guest.receiver, "overdue", count=3)
    for action, state in (
        ("acknowledge", "Acknowledged by test"),
        ("snooze?duration=2h", "Snoozed until 20"),
    ):
        assert f'href="/alarms/1/{action}"' in guest.get("/alarms").text
        assert "jobs are overdue" in guest.get(f"/alarms/1/{action}").text
        assert guest.post(f"/alarms/1/{action}").status_code == 303
        assert state in plain(guest.get("/alarms").text)
        assert state.partition(" ")[0].lower() in plain(guest.get("/").text)
    assert 'href="/alarms/1/acknowledge"' in guest.get("/alarms").text  # in the snooze's place
    for path, status in (("2/acknowledge", 404), ("1/snooze", 400), ("1/snooze?duration=x", 400)):
        assert guest.post(f"/alarms/{path}").status_code == status
    with guest.receiver.services.database.write() as session:
        reader = tokens.create_token(session, "reader", "read", 1)
    guest.sign_in(reader)
    assert "/acknowledge" not in guest.get("/alarms").text
    assert guest.post("/alarms/1/acknowledge").status_code == 403


def test_who_sends_alarms_to_a_subscription_has_a_destination(make_receiver, database_url):
    receiver = make_receiver(database_url, encryption_keys=(Fernet.generate_key().decode(),))
    guest, services = Guest(receiver), receiver.services
    guest.sign_in()
    assert "No alarm destination" in guest.get("/").text
    for number, on in enumerate((["ended"], ["overdue", "alarm"])):
        one = Subscription(
            name=f"s{number}",
            url="https://hooks.example.com/",
            format="standard",
            choice=Choice(on=on),
            created_at=1,
        )
        with services.database.write() as session:
            add_subscription(session, services.secret_box, services.safe_http, one)
        assert ("No alarm destination" in guest.get("/").text) == (number == 0)


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
    assert not any("it gives up" in guest.get(path).text for path in pages)
    fail(now - 7 * MINUTE)
    for path in pages:
        told = guest.get(path).text
        assert "callbacks are answered with errors" in told.lower(), path
        assert f'data-left="{now - 7 * MINUTE + schedule}"' in told, path
    any_receiver.call_back(b'{"id": "1", "status": "RUNNING"}')
    eventually(lambda: "it gives up" not in guest.get("/instances/default").text)
    assert "it gives up" not in guest.get("/").text


@pytest.mark.parametrize("since", [None, 1])
def test_a_process_that_is_gone_or_well_starts_no_clock(guest, since):
    now = guest.receiver.services.clock()
    with guest.receiver.services.database.write() as session:
        record_node(session, "node:1", now if since is None else now - 10 * MINUTE, since, 3)
    assert "it gives up" not in guest.get("/").text


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
    for number in range(3):
        guest.receiver.call_back(b'{"id": "1", "status": "RUNNING", "error": "step %d"}' % number)
    guest.receiver.call_back(b'{"id": "1", "status": "ERROR", "error": "seen"}')
    assert "seen" in guest.get("/jobs").text
    with guest.receiver.services.database.write() as session:
        run = session.connection().exec_driver_sql
        run("UPDATE jobs SET registers = replace(registers, 'seen', 'mind')")
    assert "mind" in guest.get("/jobs").text


def test_the_page_stays_light_however_many_alarms_were_resolved(guest):
    for number in range(60):
        raise_alarm(guest.receiver, "failed", f"i{number}", cleared_at=NOW)
    raise_alarm(guest.receiver, "overdue")
    page = guest.get("/alarms").text
    assert "Jobs are overdue" in page
    assert page.count('class="c-alarm"') == 25
    assert "receiver alarms --limit" in page
