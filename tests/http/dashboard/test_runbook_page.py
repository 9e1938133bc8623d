"""Whoever is on call gets by a click from an alarm or a banner to the runbook's entry, and back."""

import re
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from nodes import eventually
from test_alarms_page import raise_alarm
from visiting import Guest

from receiver.alarms.kinds import KINDS
from receiver.errors import StoreUnavailable
from receiver.instances.registry import add_instance
from receiver.schedules.registry import Terms, add_schedule, make_schedule
from receiver.subscriptions.registry import Choice, Subscription, add_subscription, disable

TEMPLATES = Path(__file__).parents[3] / "receiver/web/dashboard/templates"


def entries(guest):
    """Each entry's HTML by its anchor."""
    page = guest.get("/runbook")
    assert page.status_code == 200
    found = re.findall(r'<section.*?<h2 id="(.*?)">.*?</h2>(.*?)</section>', page.text, re.DOTALL)
    return dict(found)


def linked(page):
    return set(re.findall(r'href="/runbook#(.*?)"', page))


@pytest.mark.parametrize("kind", KINDS)
def test_an_alarm_leads_to_its_entry_and_that_back(guest, kind):
    raise_alarm(guest.receiver, kind)
    for path in ("/", "/alarms"):
        problem = re.search(r'<li class="problem.*?</li>', guest.get(path).text, re.DOTALL)
        (entry,) = linked(problem[0])
        assert f'<a href="/alarms">{KINDS[kind].title}</a>' in entries(guest)[entry]


def test_each_banner_leads_to_its_entry_and_that_back(guest):
    base = (TEMPLATES / "base.html").read_text()
    banners = re.findall(r'<p [^>]*class="banner.*?</p>', base, re.DOTALL)
    assert len(banners) == 4
    for banner in banners:
        words = re.search("<strong>(.*?)</strong>", banner)[1] or "the receiver does not answer"
        anchors = re.findall(r"\b(?:[a-z]+-){3,}[a-z]+\b", banner)
        assert anchors, banner
        for anchor in anchors:
            back = f'<a href="/">{words[0].lower()}{words[1:]}</a>'
            assert back in entries(guest)[anchor]


def test_what_is_wrong_on_a_page_says_what_to_do_and_leads_to_its_entry(
    make_receiver, make_database
):
    key = Fernet.generate_key().decode()
    guest = Guest(make_receiver(make_database("sqlite"), encryption_keys=(key,)))
    guest.sign_in()
    services = guest.receiver.services
    used = services.secret_box, services.safe_http
    facts = {"url": "https://crm.example.com/", "format": "standard", "choice": Choice()}
    with services.database.write() as session:
        add_subscription(session, *used, Subscription(name="crm", created_at=0, **facts))
        disable(session, "crm", "gone", 0)
        add_instance(session, services.secret_box, "bare", 0)
        graces = {"start_grace": "30m", "run_grace": "2h"}
        nightly = make_schedule(Terms(name="x", instance="bare", cron="0 2 * * *", **graces), 0)
        add_schedule(session, nightly, services.settings)
        nightly.state = "missed"
    guest.receiver.call_back(b"not json")
    guest.receiver.client.post("/callbacks/default", data=b"{}")
    event = guest.receiver.get("/events").json["events"][0]["id"]
    (rejection,) = eventually(lambda: guest.receiver.get("/rejections").json["rejections"])
    for path, entry in {
        "/subscriptions/crm": "deliveries-failing",
        "/schedules": "an-expected-job-did-not-start",
        f"/events/{event}": "an-event-cannot-be-read",
        f"/rejections/{rejection['id']}": "callbacks-stopped",
    }.items():
        page = guest.get(path).text
        assert "<strong>What to do:</strong>" in page, path
        assert entry in linked(page) & entries(guest).keys(), path
    bare = guest.get("/instances/bare").text
    assert "Add the one that is set at the vendor with the button above" in bare
    assert "receiver instances set bare --element-token-file" in bare


def test_each_link_of_the_runbook_leads_somewhere(guest):
    page = guest.get("/runbook").text
    for path, anchor in set(re.findall(r'href="([^"#]*)#?([^"]*)"', page)):
        assert guest.get(path or "/runbook").status_code == 200, path
        assert not anchor or f'id="{anchor}"' in page, anchor


def test_the_runbook_is_read_while_the_database_is_away(receiver, monkeypatch):
    """Who is signed in is not known then: just this entry is needed."""

    def fail(*_):
        raise StoreUnavailable("gone")

    guest = Guest(receiver)
    guest.sign_in()
    monkeypatch.setattr("receiver.instances.sessions.find_session", fail)
    away = guest.get("/jobs")
    assert away.status_code == 503
    for entry in linked(away.text):
        assert "the database does not answer" in entries(guest)[entry]
