"""Who has only the overview, at three in the morning, learns the cause and the next command."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from incidents import INCIDENTS, Night
from nodes import eventually
from sqlalchemy import event


@contextmanager
def full_disk(night: Night) -> Iterator[None]:
    """The file may not grow."""
    engine = night.services.database.engine
    night.services.database.close()  # a process without connections, as after its start
    event.listen(engine, "connect", lambda made, _: made.execute("PRAGMA max_page_count = 1"))
    eventually(lambda: night.call(night.now, "gooddata", night.large()).status_code == 503)
    yield


@contextmanager
def database_away(night: Night) -> Iterator[None]:
    night.services.database.close()
    Path(night.database_url.removeprefix("sqlite:///")).write_bytes(b"no database")
    yield


FAULTS = {"": lambda _: nullcontext(), "disk": full_disk, "database": database_away}


@pytest.mark.parametrize("number", INCIDENTS)
def test_the_overview_names_the_cause_and_the_next_command(number, make_database):
    incident = INCIDENTS[number]
    night, tokens = incident.make(make_database("sqlite"))
    client = night.app.test_client()
    origin = {"Sec-Fetch-Site": "same-origin"}
    client.post("/sign-in", data={"token": tokens["operate"]}, headers=origin)
    with FAULTS[incident.fault](night):
        page = re.sub(r'<p id="gone".*?</p>', "", client.get("/").text, flags=re.DOTALL)
        runbook = client.get("/runbook").text
    night.close()
    told = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", page))
    assert incident.cause in told
    assert re.search(rf"<code>{incident.command}\b", page)
    entries = set(re.findall(r'href="/runbook#(.*?)"', page))
    assert entries
    assert entries <= set(re.findall(r'<h2 id="(.*?)"', runbook))
