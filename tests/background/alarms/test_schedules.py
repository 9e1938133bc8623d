"""A job that is expected and does not start, or does not end, raises one alarm for its due time."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from builders import bulk, examples
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update
from watched import Ward

from receiver.alarms.handling import list_alarms
from receiver.database.models.alarms import Schedule
from receiver.instances.registry import add_instance
from receiver.lib.clock import DAY_MS, HOUR_MS, MINUTE_MS, now_ms, to_ms
from receiver.schedules.check import judge_schedules, save
from receiver.schedules.registry import Terms, add_schedule, make_schedule, remove_schedule
from receiver.schedules.times import due_times, last_due

NIGHT = {"cron": "0 2 * * *", "tz": "UTC", "start_grace": "30m", "run_grace": "2h"}
COUNTS = {"recordsCount": 1, "recordsFailedCount": 0}


@pytest.fixture
def night(ward):
    """A receiver at noon, where a job is expected at two each night."""
    ward.now = to_ms("2026-11-01T12:00Z")
    expect(ward)
    return ward


def expect(ward, **terms):
    body = {"name": "nightly", "instance": "default", **NIGHT, **terms}
    assert ask(ward, "POST", "/schedules", body).status_code == 200


def ask(ward, method, path, body=None):
    headers = {"Authorization": f"Bearer {ward.receiver.token}"}
    return ward.receiver.client.open(f"/api/v1{path}", method=method, json=body, headers=headers)


def look_at(ward, *moments):
    """Look at these times, and let no more than that happen."""
    for moment in moments:
        ward.now = to_ms(moment)
        ward.look()


def alarms(ward, *, only_open=False):
    """The alarms of schedules that were ever raised, or are open."""
    with ward.database.read() as session:
        rows = list_alarms(session, None, only_open=only_open)
        return [row.kind for row in rows if row.subject == "nightly"]


def state(ward):
    return ward.receiver.get("/schedules/nightly").json["state"]


def test_a_job_that_never_starts_is_reported_once_over_all_nodes_and_once_it_has_come(
    night, webhook
):
    other = night.another()
    for minute in range(0, 60, 5):
        night.now = to_ms(f"2026-11-02T02:{minute:02}:00Z")
        for watcher in (night.watcher, other):
            watcher.check(force=True)
        night.sender.drain()
        assert state(night) == ("waiting" if minute < 30 else "missed")
    assert len(webhook.posted) == 1
    assert b"no job of default started for 2026-11-02 02:00 UTC" in webhook.posted[0][1]
    night.job("1", "RUNNING")
    look_at(night, "2026-11-02T03:00Z", "2026-11-02T03:05Z")
    assert state(night) == "late_to_start"
    assert (len(webhook.posted), alarms(night, only_open=True)) == (2, [])
    assert alarms(night) == ["schedule_missed"]


def test_a_job_that_does_not_end_is_reported_and_over_at_its_end(night):
    night.now = to_ms("2026-11-02T02:10Z")
    night.job("1", "RUNNING")
    look_at(night, "2026-11-02T03:59Z")
    assert (state(night), alarms(night)) == ("on_time", [])
    look_at(night, "2026-11-02T04:00Z")
    assert (state(night), alarms(night)) == ("running_late", ["schedule_late"])
    night.job("1", "COMPLETED", **COUNTS)
    look_at(night, "2026-11-02T04:10Z", "2026-11-02T04:20Z")
    shown = night.receiver.get("/schedules/nightly").json
    assert (shown["state"], shown["job"]) == ("on_time", "1")
    names = ("due_at", "last_due_at", "started_at", "next_due_at")
    assert tuple(shown[name] for name in names) == tuple(
        f"2026-11-{at}:00.000Z" for at in ("02T02:00", "02T02:00", "02T02:10", "03T02:00")
    )
    assert alarms(night, only_open=True) == []


def test_the_next_due_time_that_is_fulfilled_ends_the_alarm_of_one_that_was_not(night):
    look_at(night, "2026-11-02T02:30Z", "2026-11-02T20:00Z", "2026-11-03T02:05Z")
    assert (state(night), alarms(night, only_open=True)) == ("missed", ["schedule_missed"])
    shown = night.receiver.get("/schedules/nightly").json
    assert (shown["due_at"], shown["last_due_at"]) == (None, "2026-11-03T02:00:00.000Z")
    night.job("1", "RUNNING")
    look_at(night, "2026-11-03T02:06Z", "2026-11-03T02:12Z")
    assert (state(night), alarms(night, only_open=True)) == ("on_time", [])


def test_a_second_night_that_is_missed_is_reported_once_more(night, webhook):
    for day, reports in ((2, 1), (3, 2)):
        look_at(night, f"2026-11-0{day}T02:29Z")
        assert len(webhook.posted) == reports - 1
        look_at(night, *(f"2026-11-0{day}T{at}Z" for at in ("02:30", "02:40", "12:00", "23:00")))
        assert len(webhook.posted) == reports
    assert alarms(night) == ["schedule_missed"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql18"])
def test_jobs_of_the_object_count_from_when_the_vendor_made_them(
    make_receiver, make_database, kind
):
    receiver = make_receiver(make_database(kind))
    due = now_ms() // MINUTE_MS * MINUTE_MS - HOUR_MS
    for id_, minutes, object_, status in (
        ("before", -1, "contact", "RUNNING"),
        ("other", 5, "account", "RUNNING"),
        ("1", -0.1, "contact", "RUNNING"),  # by a clock that is six seconds behind
        ("2", 31, "contact", "RUNNING"),
        ("3", 7, "contact", "COMPLETED"),
    ):
        made = {"createdDate": due + round(minutes * MINUTE_MS), "objectName": object_, **COUNTS}
        assert receiver.call_back(bulk(id_, status, **made)).status_code == 200
    at = datetime.fromtimestamp(due / 1000, UTC)
    terms = NIGHT | {"name": "n", "instance": "default", "cron": f"{at.minute} {at.hour} * * *"}
    with receiver.services.database.write() as session:
        for object_, jobs in (("contact", ["1"]), (None, ["other", "1"]), ("never", [])):
            one = make_schedule(Terms(**terms, object=object_), due - 1)
            add_schedule(session, one, receiver.services.settings)
            (verdict,) = judge_schedules(session, due + 2 * HOUR_MS)
            assert (sorted(verdict.jobs), verdict.missed) == (sorted(jobs), None if jobs else due)
            remove_schedule(session, "n")


@pytest.fixture
def two(make_receiver, make_database):
    """Two instances, each with a subscription to its alarms; at night, a job of one is expected."""
    keys = (Fernet.generate_key().decode(),)
    ward = Ward(make_receiver, make_database("sqlite"), encryption_keys=keys)
    ward.now = to_ms("2026-11-01T12:00Z")
    with ward.database.write() as session:
        add_instance(session, ward.receiver.services.secret_box, "other", ward.now)
    expect(ward)
    for name in ("default", "other"):
        crm = {"name": name, "url": "https://crm.invalid/", "instances": [name], "on": ["alarm"]}
        assert ask(ward, "POST", "/subscriptions", crm).status_code == 200
    return ward


def test_its_alarm_is_for_tokens_and_subscriptions_of_its_instance_alone(two):
    look_at(two, "2026-11-02T02:30Z")
    assert queued(two, "default") == ["alarm.raised"]
    assert queued(two, "other") == []
    assert (visible(two, "default"), visible(two, "other")) == (["schedule_missed"], [])


def test_the_alarm_of_a_schedule_that_was_removed_is_resolved_for_its_instance_alone(two):
    look_at(two, "2026-11-02T02:30Z")
    assert ask(two, "DELETE", "/schedules/nightly").status_code == 200
    expect(two, instance="other", cron="31 2 * * *", start_grace="1m")
    look_at(two, "2026-11-02T02:32Z")
    assert queued(two, "default") == ["alarm.raised"]
    look_at(two, "2026-11-02T02:35Z")
    assert queued(two, "default") == ["alarm.resolved", "alarm.raised"]
    assert queued(two, "other") == ["alarm.raised"]
    for instance in ("default", "other"):
        assert visible(two, instance) == ["schedule_missed"]


def queued(ward, subscription):
    """What was queued for a subscription, the latest first."""
    deliveries = ask(ward, "GET", f"/deliveries?subscription={subscription}").json["deliveries"]
    return [each["type"] for each in deliveries]


def visible(ward, instance):
    with ward.database.read() as session:
        return [row.kind for row in list_alarms(session, frozenset({instance}), only_open=False)]


def test_after_an_outage_or_a_step_forward_only_the_latest_due_time_counts(night):
    night.now = to_ms("2027-03-01T02:05Z")
    night.job("1", "COMPLETED", **COUNTS)
    look_at(night, "2027-03-02T02:10Z")
    assert alarms(night) == []
    look_at(night, "2027-06-02T09:00Z")
    assert alarms(night) == ["schedule_missed"]


def test_a_schedule_whose_zone_is_gone_is_said_and_the_others_are_judged(night):
    expect(night, name="another", cron="0 1 * * *", tz="Europe/Berlin")
    gone = update(Schedule).where(Schedule.name == "nightly").values(tz="Europe/Gone")
    with night.database.write() as session:
        session.execute(gone)
    look_at(night, "2026-11-02T02:30Z")
    assert alarms(night, only_open=True) == ["schedule_broken"]
    assert ("schedule_missed", "another", 1) in night.alarms()
    states = {
        each["name"]: (each["state"], each["next_due_at"])
        for each in night.receiver.get("/schedules").json["schedules"]
    }
    assert states == {
        "another": ("missed", "2026-11-03T00:00:00.000Z"),
        "nightly": ("broken", None),
    }
    with night.database.write() as session:
        session.execute(gone.values(tz="UTC"))
    look_at(night, "2026-11-02T02:31Z", "2026-11-02T02:36Z")
    assert (state(night), alarms(night, only_open=True)) == ("missed", ["schedule_missed"])


@pytest.mark.parametrize("back", [10 * MINUTE_MS, 20 * HOUR_MS])
def test_a_clock_that_steps_back_reports_nothing_twice(night, back):
    night.receiver.services.health.beat(night.database, alive=True)
    look_at(night, "2026-11-02T02:31Z", "2026-11-02T02:40Z")
    for _ in range(2):
        night.now -= back
        night.look()
        assert alarms(night, only_open=True) == ["schedule_missed"]
    look_at(night, "2026-11-02T02:29Z", "2026-11-02T02:31Z", "2026-11-02T12:00Z")
    assert alarms(night) == ["schedule_missed"]


def test_a_clock_that_was_far_ahead_for_a_moment_stops_nothing(night):
    look_at(night, "2030-01-01T12:00Z", "2026-11-01T20:00Z")
    assert (state(night), alarms(night, only_open=True)) == ("waiting", [])
    look_at(night, "2026-11-02T02:31Z")
    assert alarms(night, only_open=True) == ["schedule_missed"]


# The hour from two to three does not exist on the first of these days, and comes twice on the
# other.
DAYS = [
    ("Europe/Berlin", "2027-03-28"),
    ("Europe/Berlin", "2027-10-31"),
    ("America/New_York", "2027-03-14"),
    ("America/New_York", "2027-11-07"),
]


@pytest.mark.parametrize(("zone", "day"), DAYS)
@pytest.mark.parametrize("comes", [False, True])
def test_the_days_of_the_change_of_clocks_have_one_due_time(ward, zone, day, comes):
    date = datetime.fromisoformat(day).date()
    due = first_at(zone, date, 2, 30)
    ward.now = due - 3 * HOUR_MS
    expect(ward, cron="30 2 * * *", tz=zone)
    for minutes in (-61, -1, 0, 10, 29, 30, 59, 61, 90, 130, 700):
        ward.now = due + minutes * MINUTE_MS
        if comes and minutes == 10:
            ward.job("1", "COMPLETED", **COUNTS)
        ward.look()
        assert (state(ward) == "missed") == (not comes and minutes >= 30)
    assert alarms(ward) == ([] if comes else ["schedule_missed"])


def first_at(zone, date, hour, minute):
    """The first minute of a day at which a clock of the zone shows a time, or a later one."""
    at = datetime.combine(date, time(), UTC) - timedelta(days=1)
    while at.astimezone(ZoneInfo(zone)).replace(tzinfo=None) < datetime.combine(
        date, time(hour, minute)
    ):
        at += timedelta(minutes=1)
    return round(at.timestamp() * 1000)


times = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
near_a_change = st.builds(
    lambda place, minutes: (
        datetime.fromisoformat(f"{place[1]}T05:00Z") + timedelta(minutes=minutes)
    ),
    st.sampled_from(DAYS),
    st.integers(-600, 600),
)
moments = (times | near_a_change).map(lambda at: round(at.timestamp() * 1000))
zones = st.sampled_from(sorted({zone for zone, _ in DAYS}))


@settings(max_examples=examples(300), deadline=None)
@given(zones, moments, st.integers(0, 23), st.integers(0, 59))
def test_each_day_has_one_due_time_by_whatever_clock(zone, at, hour, minute):
    today = datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).date()
    due = [first_at(zone, today - timedelta(days=days), hour, minute) for days in (0, 1)]
    cron = f"{minute} {hour} * * *"
    assert last_due(cron, zone, at) == max(each for each in due if each <= at)


fields = st.sampled_from(["*", "*/20", "0", "30", "15,45", "2-3"])


@settings(max_examples=examples(600), deadline=None)
@given(zones, moments, fields, st.sampled_from(["*", "*/2", "1,2", "2", "2-3"]))
def test_the_due_time_before_and_the_one_after_have_none_between_them(zone, at, minute, hour):
    cron = f"{minute} {hour} * * *"
    before, after = last_due(cron, zone, at), next(due_times(cron, zone, at))
    assert before <= at < after
    assert next(due_times(cron, zone, before)) == after
    assert (last_due(cron, zone, after - 1), last_due(cron, zone, after)) == (before, after)


# How far time goes on until a check, and how far the clock is back then, in quarters of an hour.
checks = st.lists(st.tuples(st.integers(0, 12 * 24), st.integers(0, 23 * 4)), max_size=12)


@settings(
    max_examples=examples(120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(DAYS), checks)
def test_each_due_time_is_judged_once_whenever_checks_run(ward, place, checks):
    zone, day = place
    now = latest = to_ms(f"{day}T00:00Z") - 2 * DAY_MS
    terms = {"name": "nightly", "instance": "default", **NIGHT, "cron": "30 2 * * *", "tz": zone}
    with ward.database.write() as session:
        session.execute(delete(Schedule))
        add_schedule(session, make_schedule(Terms(**terms), now), ward.settings)
        for on, back in checks:
            now += on * 15 * MINUTE_MS
            seen = now - back * 15 * MINUTE_MS
            latest = max(latest, seen)
            (verdict,) = judge_schedules(session, seen)
            save(session, [verdict])
            due = last_due(terms["cron"], zone, latest - 30 * MINUTE_MS)
            assert verdict.missed == (due if due > verdict.schedule.created_at else None)
