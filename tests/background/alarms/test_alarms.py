"""Each alarm is told once when its cause is there, and once more when it is gone."""

import json
import re
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from builders import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, update
from standardwebhooks import Webhook
from targets import post_office
from watched import SECRET, WRITTEN_SECRET, Ward

from receiver.alarms.channels import contents, messages
from receiver.alarms.conditions import MAX_EXAMPLES
from receiver.alarms.handling import list_alarms
from receiver.alarms.kinds import KINDS
from receiver.alarms.watcher import make_alarm
from receiver.background import record_node
from receiver.database.engine import Database
from receiver.database.models import Facet, JobRow, Pace, UsualTime
from receiver.database.models.outbound import OutboundDelivery
from receiver.errors import StoreUnavailable
from receiver.jobs.projection import NewObservation
from receiver.lib.clock import MINUTE_MS
from receiver.openconnectors.notifications import Notification
from receiver.reconcile.claims import note_fetched
from receiver.settings import Settings

HOUR = 60


def told(webhook):
    """What the webhook was told, in order: (raised or cleared, kind, subject, count)."""
    said = []
    for _, body in webhook.posted:
        content = json.loads(body)["data"]
        for what in ("raised", "cleared"):
            said += [(what, one["kind"], one["subject"], one["count"]) for one in content[what]]
    return said


def silence(ward):
    ward.job("1", "RUNNING")
    ward.looks(20, each=4)


def break_silence(ward):
    ward.job("1", "COMPLETED", recordsCount=1, recordsFailedCount=0)


def overdue(ward):
    with ward.database.write() as session:
        session.execute(insert(UsualTime).values(instance="default", object="", ms=MINUTE_MS))
    ward.job("1", "RUNNING")
    ward.looks(3)


def wrong_signature(ward):
    ward.reject()
    ward.looks(1)


def unreadable(ward):
    assert ward.receiver.call_back(b"{").status_code == 200
    ward.looks(1)


def failure(ward):
    ward.job("1", "COMPLETED", recordsCount=7, recordsFailedCount=3)
    ward.looks(1)


def expiring(ward):
    done = {"recordsCount": 1, "recordsFailedCount": 0, "jobDirection": "DOWNLOAD"}
    ward.job("1", "COMPLETED", **done)
    ward.later(49 * HOUR)
    ward.looks(1)


def fetch(ward):
    with ward.database.write() as session:
        note_fetched(session, "1", "default", ward.now)


def failing_node(ward):
    services = ward.receiver.services
    services.health.answered(503)
    for _ in range(20):
        ward.later(2)
        services.health.answered(503)
        services.health.beat(ward.database, alive=True)
        ward.look()


def mended_node(ward):
    services = ward.receiver.services
    services.health.answered(200)
    ward.meanwhile = lambda: services.health.beat(ward.database, alive=True)


def nobody(ward):
    with ward.database.write() as session:
        record_node(session, "node:1", ward.now, None, 0)
    ward.looks(33, each=3)


def somebody(ward):
    def live():
        with ward.database.write() as session:
            record_node(session, "node:2", ward.now, None, 0)

    ward.meanwhile = live
    live()


def held_back(ward):
    with ward.database.write() as session:
        pace = {"next_at": 0, "failures": 0, "blocked_until": 0, "queued_asked_at": ward.now}
        session.add(Pace(instance="default", queued=4, **pace))
    ward.looks(1)


def sent_again(ward):
    with ward.database.write() as session:
        session.execute(update(Pace).values(queued=0))


def lost(ward):
    told = {"job": "1", "status": "COMPLETED", "reported": 7, "failed": 0}
    for source in ("submission", "poll"):
        notification = Notification("bulk_job", source=source, **told)
        ward.receiver.services.intake.observe(
            NewObservation("default", notification, callback_due=True)
        )
    ward.looks(1)


def vendor_away(ward):
    with ward.database.write() as session:
        until = ward.now + 9 * MINUTE_MS
        session.add(Pace(instance="default", next_at=0, failures=3, blocked_until=until))
    ward.looks(1)


def vendor_back(ward):
    with ward.database.write() as session:
        session.execute(update(Pace).values(failures=0, blocked_until=0))


def clock_stepped(ward):
    beat(ward)
    ward.later(2 * 24 * HOUR)
    beat(ward)
    ward.looks(1)


def beat(ward):
    ward.receiver.services.health.beat(ward.database, alive=True)


def clock_put_right(ward):
    ward.later(-2 * 24 * HOUR)
    ward.meanwhile = lambda: beat(ward)


def nothing(_ward):
    """What happened is over by itself, after an hour."""


CAUSES = {
    "silent": (silence, break_silence, "default", 1),
    "overdue": (overdue, break_silence, "default", 1),
    "rejected": (wrong_signature, nothing, "default", 1),
    "unreadable": (unreadable, nothing, "default", 1),
    "failed": (failure, nothing, "default", 1),
    "expiring": (expiring, fetch, "default", 1),
    "queued": (held_back, sent_again, "default", 4),
    "lost": (lost, nothing, "default", 1),
    "vendor": (vendor_away, vendor_back, "default", 1),
    "clock": (clock_stepped, clock_put_right, "database", 1),
    "failing": (failing_node, mended_node, "callbacks", 17),
    "failing, all of them": (nobody, somebody, "receiver", 1),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_an_alarm_is_told_once_when_its_cause_is_there_and_once_when_it_is_gone(
    ward, webhook, office, cause
):
    make, unmake, subject, count = CAUSES[cause]
    kind = cause.partition(",")[0]
    ward.look()
    assert told(webhook) == []
    make(ward)
    assert ("raised", kind, subject, count) in told(webhook)
    ward.looks(8, each=2)
    unmake(ward)
    ward.looks(8, each=2)
    ward.later(HOUR)
    ward.looks(8, each=2)
    mine = [line for line in told(webhook) if line[1] == kind and line[2] == subject]
    assert [what for what, *_ in mine] == ["raised", "cleared"]
    assert ward.alarms() == []
    assert len(office.mails) == len(webhook.posted)


def test_wrong_signatures_are_over_soon_after_right_ones_come_again(ward, webhook):
    wrong_signature(ward)
    assert ward.alarms() == [("rejected", "default", 1)]
    assert ward.receiver.call_back(b'{"receiver_test": {}}').status_code == 200  # signed by us
    ward.looks(10)
    assert ward.alarms() == [("rejected", "default", 1)]
    ward.reject()
    ward.job("1", "COMPLETED", recordsCount=1, recordsFailedCount=0)  # which of them was first?
    ward.looks(10)
    assert ward.alarms() == [("rejected", "default", 2)]
    ward.job("2", "COMPLETED", recordsCount=1, recordsFailedCount=0)
    ward.looks(6)
    assert told(webhook)[-1] == ("cleared", "rejected", "default", 2)
    ward.reject()
    ward.looks(1)
    assert ("rejected", "default", 3) in ward.alarms()


def test_a_stray_wrong_delivery_beside_many_right_ones_is_no_alarm(ward):
    def right(number: int) -> None:
        ward.job(f"{ward.now}-{number}", "COMPLETED", recordsCount=1, recordsFailedCount=0)

    for number in range(10):
        right(number)
    ward.reject()
    ward.look()
    assert ward.alarms() == []
    ward.reject()  # two to ten are no strays
    ward.look()
    assert ward.alarms() == [("rejected", "default", 2)]
    for number in range(10, 20):
        right(number)
    ward.looks(6)
    assert ward.alarms() == []
    ward.looks(10)  # what was right is long ago
    ward.reject()
    ward.look()
    assert ward.alarms() == [("rejected", "default", 3)]


def test_silence_is_measured_by_how_long_an_instance_usually_waits(ward):
    for job in range(5):  # of fewer nothing is learnt
        ward.job(str(job), "RUNNING")
        ward.later(14)
        ward.job(str(job), "COMPLETED", recordsCount=1, recordsFailedCount=0)
        ward.looks(3)
    ward.job("long", "RUNNING")
    ward.later(49)
    ward.look()
    assert ("silent", "default", 1) not in ward.alarms()
    ward.later(11)
    ward.look()
    assert ("silent", "default", 1) in ward.alarms()


def test_a_wait_begins_with_the_job_however_long_ago_the_last_event_was(ward):
    ward.job("1", "COMPLETED", recordsCount=1, recordsFailedCount=0)
    ward.looks(1)
    ward.later(5 * 24 * HOUR)
    ward.looks(2)
    made = Notification("bulk_job", job="2", status="CREATED", source="submission")
    submission = NewObservation("default", made, callback_due=True)
    ward.receiver.services.intake.observe(submission)
    ward.looks(14)
    assert ward.alarms() == []
    ward.looks(3)
    assert ward.alarms() == [("silent", "default", 1), ("overdue", "default", 1)]


def test_many_jobs_of_one_cause_are_one_alarm_with_their_number_and_a_few_of_them(ward, webhook):
    for job in range(100):
        ward.job(str(job), "ERROR", error="x" * 10_000)
    ward.looks(12)
    assert told(webhook) == [("raised", "failed", "default", 100)]
    ((_, body),) = webhook.posted
    assert len(json.loads(body)["data"]["raised"][0]["examples"]) == MAX_EXAMPLES
    assert len(body) < 2_000
    ward.job("later", "ERROR")
    ward.looks(2)
    assert ward.alarms() == [("failed", "default", 101)]
    assert len(webhook.posted) == 1


def test_what_flickers_is_one_alarm(ward, webhook):
    for turn in range(6):
        ward.job(str(turn), "ERROR")
        ward.looks(1)
        ward.later(57)
        ward.looks(4)  # not seen by the last two
    # Each hour it is told again, for its new jobs; it never ends.
    assert {what for what, *_ in told(webhook)} == {"raised"}
    with ward.database.read() as session:
        assert len(list_alarms(session, None, only_open=False)) == 1


def test_whatever_goes_wrong_there_is_one_notice_in_five_minutes(ward, webhook):
    wrong_signature(ward)
    unreadable(ward)
    failure(ward)
    assert [len(json.loads(body)["data"]["raised"]) for _, body in webhook.posted] == [1]
    ward.looks(5)
    assert [len(json.loads(body)["data"]["raised"]) for _, body in webhook.posted] == [1, 2]


def test_a_notice_is_bounded_though_all_instances_fail_at_once(ward, webhook, office):
    numbers = range(1_000)
    facet = {"outcome": "failed", "callback_lost": False}
    job = {"registers": "{}", "revision": 0, "events": 0, "callback_due": True, "under_way": False}
    job |= {"first_seen_at": ward.now, "updated_at": ward.now}
    with ward.database.write() as session:
        facets = [facet | {"facet": number, "instance": f"{number:064}"} for number in numbers]
        session.execute(insert(Facet), facets)
        places = [{"facet": n, "instance": f"{n:064}", "id": f"{n:0200}"} for n in numbers]
        session.execute(insert(JobRow), [job | place for place in places])
    ward.looks(1)
    ((_, body),) = webhook.posted
    content = json.loads(body)["data"]
    assert (len(content["raised"]), content["left_out"], content["open"]) == (25, 975, 1_000)
    assert len(body) < 32_768
    (mail,) = office.mails
    assert len(mail["Subject"]) < 300
    assert "975 more" in mail.get_content()


def test_who_watches_is_followed_within_a_minute_once_gone(ward):
    other = ward.another()
    ward.look()
    ward.job("1", "ERROR")
    ward.later(0.5)
    other.check()
    assert ward.alarms() == []
    ward.later(0.5)
    other.check()
    assert ward.alarms() == [("failed", "default", 1)]


def test_who_stops_watching_is_followed_at_once(ward):
    other = ward.another()
    ward.look()
    ward.job("1", "ERROR")
    other.release()  # of what it does not hold
    other.check()
    assert ward.alarms() == []
    ward.watcher.release()
    other.check()
    assert ward.alarms() == [("failed", "default", 1)]


def test_each_recipient_of_a_mail_has_a_delivery_of_its_own(make_receiver, make_database, office):
    settings_ = {"alarm_mail_to": ("grey@example.com", "ops@example.com"), "smtp_url": office.url}
    office.answers["grey@example.com"] = "450 greylisted"
    ward = Ward(make_receiver, make_database("sqlite"), **settings_)
    failure(ward)
    assert [mail["To"] for mail in office.mails] == ["ops@example.com"]
    del office.answers["grey@example.com"]
    ward.looks(1)
    assert sorted(mail["To"] for mail in office.mails) == ["grey@example.com", "ops@example.com"]
    office.answers["grey@example.com"] = "550 no such mailbox"
    ward.later(HOUR)
    ward.looks(8)  # and it is cleared
    with ward.database.read() as session:
        rows = session.scalars(select(OutboundDelivery).order_by(OutboundDelivery.id)).all()
        to_grey = [(row.tries, row.state) for row in rows if "grey" in row.target]
        assert to_grey == [(2, "delivered"), (1, "failed")]


def test_who_is_no_longer_named_is_told_no_more(make_receiver, make_database, told, webhook):
    url = make_database("sqlite")
    webhook.statuses = [500]
    before = Ward(make_receiver, url, **told)
    failure(before)
    after = Ward(make_receiver, url, **{**told, "alarm_url": webhook.url + "/other"})
    after.now = before.now
    after.looks(2)
    assert len(webhook.posted) == 1


def test_the_clock_that_was_ahead_for_a_moment_leaves_no_alarm_open_for_long(ward, webhook):
    year = 366 * 24 * HOUR
    ward.later(year)
    ward.job("1", "ERROR")
    ward.looks(1)
    ward.later(-year)
    ward.looks(1)
    assert ("failed", "default", 1) in ward.alarms() or ward.alarms() == []
    ward.later(2 * HOUR)
    ward.looks(8)
    assert [kind for kind, *_ in ward.alarms() if kind != "failed"] == []
    ward.job("2", "ERROR")
    ward.looks(7)
    assert told(webhook)[-1][:3] == ("raised", "failed", "default")


def test_after_a_restart_nothing_is_told_again(ward, webhook):
    failure(ward)
    ward.watcher = ward.another()
    ward.later(5)
    ward.looks(5)
    assert told(webhook) == [("raised", "failed", "default", 1)]


def test_who_is_named_later_is_told_of_what_is_still_wrong(make_receiver, make_database, told):

    url = make_database("sqlite")
    ward = Ward(make_receiver, url)
    failure(ward)
    assert ward.alarms() == [("failed", "default", 1)]
    later = Ward(make_receiver, url, **told)
    later.now = ward.now
    later.later(5)
    later.look()
    with later.database.read() as session:
        (alarm,) = list_alarms(session, None, only_open=True)
        assert alarm.notified_at == later.now


def test_a_webhook_is_signed_as_standard_webhooks_has_it(ward, webhook):
    failure(ward)
    ((headers, body),) = webhook.posted
    assert Webhook(WRITTEN_SECRET).verify(body.decode(), headers) == json.loads(body)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook("whsec_" + 44 * "A").verify(body.decode(), headers)
    assert headers["webhook-id"].startswith("msg_")
    assert SECRET.decode() not in str(headers)


def test_one_who_cannot_be_told_does_not_keep_it_from_the_other(ward, webhook, office):
    office.answer = "451 try later"
    failure(ward)
    assert (len(webhook.posted), len(office.mails)) == (1, 0)
    office.answer = "250 taken"
    ward.looks(3)
    assert (len(webhook.posted), len(office.mails)) == (1, 1)
    assert office.mails[0]["To"] == "ops@example.com"
    assert "default: jobs failed or lost records" in office.mails[0]["Subject"]
    assert "- 1" in office.mails[0].get_content()


def test_a_private_address_is_not_told_unless_it_is_allowed(
    make_receiver, make_database, told, webhook
):

    ward = Ward(
        make_receiver,
        make_database("sqlite"),
        **{
            **told,
            "alarm_url": webhook.url.replace("http:", "https:"),
            "forward_allow": frozenset(),
        },
    )
    failure(ward)
    assert webhook.posted == []


def test_a_password_is_given_to_the_server_that_asks(make_receiver, make_database):

    with post_office("me") as office:
        settings_ = {
            "alarm_mail_to": ("a@example.com", "b@example.com"),
            "alarm_mail_from": "receiver@example.com",
            "smtp_url": office.url,
            "smtp_password": "canary",
        }
        failure(Ward(make_receiver, make_database("sqlite"), **settings_))
        assert office.logins == [(b"me", b"canary")] * 2
    mails = sorted((mail["From"], mail["To"]) for mail in office.mails)
    assert mails == [("receiver@example.com", f"{who}@example.com") for who in "ab"]


def test_a_database_that_fails_for_long_is_told_of_once_and_so_is_its_return(
    ward, webhook, make_receiver, monkeypatch
):
    ward.look()
    other = ward.another()
    other.check()
    whole = Database.write

    def broken(*_args, **_options):
        raise StoreUnavailable("gone")

    monkeypatch.setattr(Database, "write", broken)
    for _ in range(12):
        ward.later(5)
        for watcher in (ward.watcher, other):
            with pytest.raises(StoreUnavailable):
                watcher.check()
    assert told(webhook) == [("raised", "failing", "database", 1)]
    monkeypatch.setattr(Database, "write", whole)
    ward.looks(10)
    assert told(webhook)[1:] == [("cleared", "failing", "database", 1)]


def test_alarms_are_those_of_the_database_whatever_it_is(
    make_receiver, database_url, told, webhook
):

    ward = Ward(make_receiver, database_url, **told)
    ward.job("1", "ERROR")
    assert ward.receiver.call_back(b"{").status_code == 200
    ward.reject()
    ward.job("2", "RUNNING")
    with ward.database.write() as session:
        session.execute(
            update(JobRow)
            .where(JobRow.instance == "default", JobRow.id == "2")
            .values(first_seen_at=1)
        )
        record_node(session, "n", 1, None, 0)
    for _ in range(2):
        ward.look()
        ward.another().check(force=True)
    kinds = {kind for kind, *_ in ward.alarms()}
    assert kinds == {"failed", "unreadable", "rejected", "overdue", "failing"}
    assert len(webhook.posted) == 1


ids = st.text(max_size=30)
RUNBOOK = Path(__file__).parents[3] / "docs/runbook.md"
RECIPIENTS = Settings(alarm_mail_to=("a@example.com",), alarm_url="https://a.example.com/")


@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(subject=ids, examples=st.lists(ids, max_size=3), detail=ids, kind=st.sampled_from([*KINDS]))
def test_whatever_an_alarm_says_it_can_be_written(subject, examples, detail, kind):
    alarm = make_alarm(kind, subject, 1, detail)
    alarm.examples = json.dumps(examples)
    posted, mailed = messages(RECIPIENTS, contents(None, [alarm], [], 1), 1, "msg_1")
    (entry,) = json.loads(posted.body)["data"]["raised"]
    assert entry["action"]
    mail = message_from_bytes(mailed.body, policy=policy.default)
    assert mail["Subject"].isprintable()
    assert KINDS[kind].action[:20] in mail.get_content()


def test_each_kind_says_what_it_means_what_to_do_and_the_runbook_says_more_and_names_it():
    entries = re.findall(r"^## (.*)\n\n(.*(?:\n.+)*)", RUNBOOK.read_text(), re.MULTILINE)
    first = {title.lower().replace(" ", "-").replace(",", ""): line for title, line in entries}
    for name, kind in KINDS.items():
        assert kind.severity in ("critical", "warning"), name
        assert f"*{kind.title}* ({kind.severity})" in first[kind.runbook], name
        assert "`" in kind.action, name  # the next command
        for sentence in (kind.meaning, kind.action):
            assert sentence[0].isupper(), name
            assert sentence.endswith("."), name
