"""Whoever is on call gets by a click from an alarm or a banner to the runbook's entry, and back."""

import re
from pathlib import Path

import pytest
from test_alarms_page import raise_alarm
from visiting import Guest

from receiver.alarms.kinds import KINDS
from receiver.errors import StoreUnavailable

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
