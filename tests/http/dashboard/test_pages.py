"""What the pages tell, without a browser."""

import csv
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from nodes import eventually
from processes import own_environment
from visiting import Guest

from receiver.instances import keys as signature_keys
from receiver.instances import registry, tokens
from receiver.jobs.failed_records import replace_failed_records
from receiver.jobs.projection import NewObservation
from receiver.lib.clock import DAY_MS, now_ms
from receiver.openconnectors.notifications import Notification
from receiver.openconnectors.signatures import SignatureKey
from receiver.reconcile.claims import Claim, end_errors
from receiver.web.dashboard.formatting import cell

DONE = {"status": "COMPLETED", "recordsCount": 8, "recordsFailedCount": 2}


def call(receiver, **content):
    answer = receiver.call_back(json.dumps({"id": "1", **content}).encode())
    assert answer.status_code == 200
    return answer.json["event"]


def second_job(make_receiver, url):
    """A receiver and a guest who know job 1 of two instances."""
    receiver = make_receiver(url, encryption_keys=(Fernet.generate_key().decode(),))
    key = SignatureKey("other", b"a key for another instance")
    with receiver.services.database.write() as session:
        secret_box = receiver.services.secret_box
        registry.add_instance(session, secret_box, "other", 1)
        signature_keys.add_key(session, secret_box, "other", key.secret, 1)
    call(receiver, **DONE)
    assert receiver.call_back(b'{"id": "1", "status": "RUNNING"}', "other", key).status_code == 200
    guest = Guest(receiver)
    guest.sign_in()
    return receiver, guest


def rows(text):
    return re.findall(r'data-key="(.*?)"', text)


def test_a_job_is_listed_and_shown_on_each_database(any_receiver):
    event = call(any_receiver, **DONE, error="two were bad")
    guest = Guest(any_receiver)
    guest.sign_in()
    listed = guest.get("/jobs").text
    assert rows(listed) == ["default/1"]
    for told in ("partial", "COMPLETED", "8 loaded", "2 failed", "two were bad"):
        assert told in listed
    shown = guest.get("/jobs/1").text
    for told in (
        "but 2 records failed",
        event,
        "set status, outcome, record counts",
        "reported by",
    ):
        assert told in shown
    for period in ("", "?period=24h", "?period=7d", "?period=30d", "?period=x"):
        front = guest.get(f"/{period}").text
        assert re.search(r'outcome=partial&amp;.*?class="value">1<', front, re.DOTALL), period


def test_the_exact_bytes_of_a_callback_come_as_a_file(guest):
    body = (
        b'{"id": "7", "status": "COMPLETED", "x": "<script>alert(1)</script>\xf0\x9f\x98\x80"}\r\n'
    )
    event = guest.receiver.call_back(body).json["event"]
    answer = guest.get(f"/events/{event}/body")
    assert answer.data == body
    assert answer.mimetype == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert "<script>alert" not in guest.get(f"/events/{event}").text


def test_an_event_shows_who_sent_it_and_with_which_headers(guest):
    headers = {"Elements-Webhook-Id": "w-1", "X-Html": "<b>bold</b>", "Token": "a secret"}
    event = guest.receiver.call_back(b"{}", **headers).json["event"]
    page = guest.get(f"/events/{event}").text
    for shown in ("Sent from", "127.0.0.1", "w-1", "&lt;b&gt;bold&lt;/b&gt;", "[masked]"):
        assert shown in page
    assert "a secret" not in page


def test_a_stale_callback_is_shown_as_ignored_and_why(guest):
    call(guest.receiver, **DONE)
    call(guest.receiver, status="RUNNING")
    shown = guest.get("/jobs/1").text
    assert re.search(r"ignored</span>: <bdi>stale: the job was already COMPLETED", shown)


def test_a_conflict_is_shown(guest):
    call(guest.receiver, **DONE)
    call(guest.receiver, status="ERROR")
    assert "Conflict:" in guest.get("/jobs/1").text
    assert ">conflict<" in guest.get("/jobs").text


def test_filters_are_those_of_the_api_and_stay_in_the_url(guest):
    call(guest.receiver, id="10", status="RUNNING")
    call(guest.receiver, id="11", objectName="contact", jobDirection="UPLOAD", **DONE)
    call(guest.receiver, id="12", status="ERROR")
    for query, found in {
        "": ["default/12", "default/11", "default/10"],
        "outcome=partial&outcome=failed": ["default/12", "default/11"],
        "status=RUNNING": ["default/10"],
        "object=contact&direction=UPLOAD": ["default/11"],
        "instance=default&q=2": ["default/12"],
        "q=": ["default/12", "default/11", "default/10"],
        "updated_after=2020-01-01T00:00Z&updated_before=2020-01-02T00:00": [],
        "expires_before=2099-01-01T00:00:00Z": ["default/12", "default/11"],
        "show=expiring": [],
        "show=overdue": [],
        "show=lost": [],
    }.items():
        answer = guest.get(f"/jobs?{query}")
        assert answer.status_code == 200, query
        assert rows(answer.text) == found, query
        assert [row[0] for row in csv.reader(io.StringIO(guest.get(f"/jobs.csv?{query}").text))][
            1:
        ] == [each.partition("/")[2] for each in found]
    chips = guest.get("/jobs?outcome=failed&q=1").text
    assert 'href="/jobs?q=1"' in chips
    assert 'href="/jobs?outcome=failed"' in chips


@pytest.mark.parametrize(
    "query",
    [
        "what=1",
        "outcome=odd",
        "updated_after=yesterday",
        "cursor=x",
        "limit=0",
        "q=1&q=2",
        "show=x",
    ],
)
def test_a_filter_that_has_no_sense_is_refused_in_words(guest, query):
    answer = guest.get(f"/jobs?{query}")
    assert answer.status_code == 400
    assert answer.mimetype == "text/html"
    assert "<h1>A parameter is wrong</h1>" in answer.text


def test_pages_lead_on_to_older_jobs_and_back(guest):
    for number in range(5):
        call(guest.receiver, id=str(100 + number), **DONE)
    first = guest.get("/jobs?limit=2&outcome=partial").text
    seen = rows(first)
    older = re.search(r'rel="next" href="(.*?)"', first)[1].replace("&amp;", "&")
    assert "outcome=partial" in older
    second = guest.get(older).text
    seen += rows(second)
    third = guest.get(re.search(r'rel="next" href="(.*?)"', second)[1].replace("&amp;", "&")).text
    seen += rows(third)
    assert seen == [f"default/{number}" for number in (104, 103, 102, 101, 100)]
    assert 'rel="next"' not in third
    newer = re.search(r'rel="prev" href="(.*?)"', third)[1].replace("&amp;", "&")
    assert rows(guest.get(newer).text) == rows(second)


def test_empty_and_nothing_matches_and_an_error_have_words_of_their_own(guest, monkeypatch):
    assert "No jobs yet" in guest.get("/jobs").text
    assert "No job matches" in guest.get("/jobs?q=1").text
    assert "Nothing was rejected in the last hour" in guest.get("/rejections").text
    assert "The quarantine is empty" in guest.get("/rejections").text
    assert "No rejected delivery matches" in guest.get("/rejections?reason=missing").text
    guest.receiver.services.database.close()
    database = guest.receiver.services.database.engine.url.database
    with Path(database).open("r+b") as file:
        file.write(b"no database")
    answer = guest.get("/jobs")
    assert answer.status_code == 503
    assert "The database does not answer" in answer.text
    assert 'href="/jobs' in answer.text


def test_an_id_that_several_instances_have_is_a_choice(make_receiver, make_database):
    _, guest = second_job(make_receiver, make_database("sqlite"))
    answer = guest.get("/jobs/1")
    assert answer.status_code == 409
    assert set(re.findall(r'href="/jobs/1\?instance=(\w+)"', answer.text)) == {"default", "other"}
    assert guest.get("/jobs/1?instance=other").status_code == 200


def test_a_token_of_one_instance_sees_no_other(make_receiver, make_database):
    receiver, _ = second_job(make_receiver, make_database("sqlite"))
    receiver.call_back(b"{}", "default", SignatureKey("wrong", b"a key nobody has"))
    with receiver.services.database.write() as session:
        token = tokens.create_token(session, "limited", "operate", 1, only=["other"])
    event = receiver.get("/events?instance=default").json["events"][0]["id"]
    rejected = eventually(lambda: receiver.get("/rejections").json["rejections"])[0]["id"]
    guest = Guest(receiver)
    guest.sign_in(token)
    assert rows(guest.get("/jobs").text) == ["other/1"]
    assert rows(guest.get("/jobs.csv").text) == []
    assert "default" not in guest.get("/jobs.csv").text
    assert guest.get("/jobs/1").status_code == 200
    assert guest.get("/jobs/1?instance=default").status_code == 403
    assert guest.get("/jobs?instance=default").status_code == 403
    assert guest.get(f"/events/{event}").status_code == 404
    assert guest.get(f"/events/{event}/body").status_code == 404
    assert guest.get(f"/rejections/{rejected}").status_code == 404
    assert guest.get(f"/rejections/{rejected}/body").status_code == 404
    assert guest.get("/instances/default").status_code == 403
    assert guest.get("/instances/default/keys/add").status_code == 403
    assert guest.get("/rejections/verify?instance=default").status_code == 403
    for path in ("/", "/rejections", "/events", "/instances"):
        assert "default" not in re.sub(r"<(option|code).*?</\1>", "", guest.get(path).text), path


@pytest.mark.parametrize(
    "path",
    [
        "/jobs/1",
        "/jobs/%00",
        "/events/1",
        "/rejections/1",
        "/instances/x",
        "/rejections/99999999999999999999",
        "/jobs/1/errors",
        "/jobs/1?instance=%00",
    ],
)
def test_what_is_not_there_is_a_page_too(guest, path):
    answer = guest.get(path)
    assert answer.status_code in (404, 409)
    assert answer.mimetype == "text/html"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_no_cell_of_the_csv_is_a_formula(start):
    assert cell(f"{start}cmd|' /C calc'!A0")[0] == "'"


def test_the_csv_says_what_the_jobs_say(guest):
    call(guest.receiver, id="5", objectName='=HYPERLINK("http://evil.example")', **DONE)
    call(guest.receiver, id="6", status="ERROR", error='with "quotes", commas\nand lines')
    text = guest.get("/jobs.csv").text
    assert all(line.startswith('"') for line in text.splitlines() if not line.startswith("and"))
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in found] == ["6", "5"]
    assert found[1]["object"] == '\'=HYPERLINK("http://evil.example")'
    assert (found[1]["loaded"], found[1]["failed"]) == ("8", "2")
    assert found[0]["message"] == 'with "quotes", commas\nand lines'


def test_the_csv_has_all_jobs_however_many(guest, monkeypatch):
    monkeypatch.setattr("receiver.web.dashboard.jobs.CSV_PAGE", 2)
    for number in range(7):
        call(guest.receiver, id=str(number), **DONE)
    found = csv.DictReader(io.StringIO(guest.get("/jobs.csv").text, newline=""))
    assert [row["id"] for row in found] == list("6543210")
    found = csv.DictReader(io.StringIO(guest.get("/jobs.csv?show=expiring").text, newline=""))
    assert list(found) == []


def test_failed_records_are_grouped_and_listed(guest):
    call(guest.receiver, **DONE)
    with guest.receiver.services.database.write() as session:
        entries = [(json.dumps({"line": line}), f"cause {line % 3}") for line in range(60)]
        end_errors(session, Claim("default", "1", -1))
        replace_failed_records(session, "default", "1", entries)
    shown = guest.get("/jobs/1").text
    assert len(re.findall(r'cause=cause\+\d">20<', shown)) == 3
    first = guest.get("/jobs/1/errors").text
    assert cells(first) == [str(line) for line in range(50)]
    following = re.search(r'rel="next" href="(.*?)"', first)[1].replace("&amp;", "&")
    assert cells(guest.get(following).text) == [str(line) for line in range(50, 60)]
    of_one_cause = guest.get("/jobs/1/errors?cause=cause+2").text
    assert cells(of_one_cause) == [str(line) for line in range(2, 60, 3)]
    assert "no failed records" in guest.get("/jobs/1/errors?cause=another").text


def cells(text):
    return re.findall(r"<td><bdi>(\d+)</bdi></td>", text)


def test_failed_records_have_the_columns_that_they_have(guest):
    call(guest.receiver, **DONE)
    entries = [
        '{"lineNumber": 4, "message": "b", "record": {"email": "<b>", "age": 1234567890123456789}}',
        '{"message": null, "more": [1, {"x": 2}], "record": "plain"}',
        '"only a text"',
        "[]",
        '{"big": ' + "9" * 5000 + "}",
    ]
    with guest.receiver.services.database.write() as session:
        end_errors(session, Claim("default", "1", -1))
        causes = [(entry, "a cause") for entry in entries]
        replace_failed_records(session, "default", "1", causes)
    page = guest.get("/jobs/1/errors").text
    assert "<b>" not in page
    answer = guest.get("/jobs/1/errors.csv")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="errors-1.csv"'
    head, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    assert head == ["Row", "message", "record.email", "record.age", "more", "record"]
    assert rows[0] == ["4", "b", "<b>", "1234567890123456789", "", ""]
    assert rows[1] == ["", "", "", "", '[1, {"x": 2}]', "plain"]
    assert [row[-1] for row in rows[2:]] == ["only a text", "'[]"[1:], entries[4]]


def test_failed_rows_are_cut_out_of_the_file_that_was_uploaded(guest):
    call(guest.receiver, **DONE)
    with guest.receiver.services.database.write() as session:
        end_errors(session, Claim("default", "1", -1))
        causes = [(json.dumps({"row": row}), "a cause") for row in (2, 9_000)]
        replace_failed_records(session, "default", "1", causes)
    assert 'href="/jobs/1/failed-rows?instance=default"' in guest.get("/jobs/1").text
    path = "/jobs/1/failed-rows"
    assert "2 failed rows" in guest.get(path).text
    rows = [f"{n},a name\r\n" for n in range(1, 10_001)]  # above what other forms may hold

    def post(*rows: str):
        content = "".join(("id,name\r\n", *rows)).encode()
        return guest.post(path, file=(io.BytesIO(content), "contacts.csv"))

    answer = post(*rows)
    assert (answer.status_code, answer.text) == (200, f"id,name\r\n{rows[1]}{rows[8_999]}")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="failed-1.csv"'
    for wrong, why in ((rows[:3], "1 of 2 failed rows are not in it"), (["1\n"], "as many fields")):
        answer = post(*wrong)
        assert (answer.status_code, why in answer.text) == (409, True)
    assert guest.post(path, file="no file").status_code == 409


def test_a_page_of_an_unforeseen_fault_tells_no_details(guest, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("what was sent")

    monkeypatch.setattr("receiver.web.dashboard.jobs.list_jobs", fail)
    answer = guest.get("/jobs")
    assert answer.status_code == 500
    assert "what was sent" not in answer.text
    assert "Traceback" not in answer.text
    assert f"under {answer.headers['X-Request-ID']}." in answer.text


def test_what_was_refused_lately_is_counted_by_reason(guest):
    for instance, headers in (("default", {}), ("nobody", {}), ("nobody", {})):
        guest.receiver.client.post(f"/callbacks/{instance}", data=b"x", headers=headers)
    told = "In the last hour: 3 deliveries, of which 2 unknown instance, 1 missing."
    eventually(lambda: told in re.sub("<.*?>", "", guest.get("/rejections").text))


def test_files_that_expire_are_those_of_uploads_too_and_the_overview_says_so(guest):
    ended = now_ms() - 5 * DAY_MS // 2
    for direction in ("UPLOAD", "DOWNLOAD"):
        call(guest.receiver, id=direction, completionTime=ended, jobDirection=direction, **DONE)
    assert "2 jobs' files expire within a day, of uploads too" in html.unescape(guest.get("/").text)
    assert sorted(rows(guest.get("/jobs?show=expiring").text)) == [
        "default/DOWNLOAD",
        "default/UPLOAD",
    ]


def test_a_search_for_an_objects_name_finds_its_jobs(guest):
    call(guest.receiver, id="10", objectName="contact", jobDirection="UPLOAD", **DONE)
    call(guest.receiver, id="11", status="RUNNING")
    answer = guest.get("/jobs?q=contact&outcome=partial")
    assert answer.headers["Location"] == "/jobs?outcome=partial&object=contact"
    assert rows(guest.get(answer.headers["Location"]).text) == ["default/10"]
    assert "No job matches" in guest.get("/jobs?q=contacts").text


def test_a_search_for_a_part_of_a_files_name_finds_its_jobs(any_receiver):
    told = Notification("bulk_job", job="7", status="CREATED", source="submission", file="/May.csv")
    any_receiver.services.intake.observe(NewObservation("default", told))
    call(any_receiver, id="8", status="RUNNING")
    guest = Guest(any_receiver)
    guest.sign_in()
    answer = guest.get("/jobs?q=May.c")
    assert answer.headers["Location"].startswith("/jobs?file=May.c&updated_after=")
    assert rows(guest.get(answer.headers["Location"]).text) == ["default/7"]
    assert [job["id"] for job in any_receiver.get("/jobs?file=y.csv").json["jobs"]] == ["7"]
    assert "No job matches" in guest.get("/jobs?q=may.csv").text


def test_an_event_that_cannot_be_read_says_why_and_where(guest):
    for body, why in {
        b'{"id": 1, "status": "\xff"}': "byte 21 is 0xff",
        b'{"id": 1, "x": "\xc3\xa9" oops}': "at byte 20 (line 1)",
        b'{"id": 1, "status": ' + b"[" * 70: "more than 64 levels",
        b'{"id": "a b", "status": "RUNNING"}': "&#34;id&#34;: &#34;a b&#34;",
        b'{"id": 1, "status": {}}': "&#34;status&#34;: {}",
    }.items():
        event = guest.receiver.call_back(body).json["event"]
        page = guest.get(f"/events/{event}").text
        assert "unreadable" in page, body
        assert why in page, body


@pytest.mark.parametrize("query", ["updated_before=AAAA", "cursor=x", "show=x", "status=%00"])
def test_a_csv_of_what_cannot_be_asked_is_refused(guest, query):
    assert guest.get(f"/jobs.csv?{query}").status_code == 400


def test_events_are_searched_for_a_text(guest):
    call(guest.receiver, **DONE, note="a needle")
    call(guest.receiver, id="2", status="RUNNING")
    page = guest.get("/events?body=needle&kind=&header=").text
    assert re.findall(r'href="/jobs/(\d+)', page) == ["1"]
    assert 'value="needle"' in page
    assert (
        "No event matches" in guest.get("/events?body=needle&received_after=2999-01-01T00:00").text
    )


def test_of_a_long_timeline_the_newest_entries_are_shown_and_where_the_rest_is(guest):
    for number in range(130):
        call(guest.receiver, status="RUNNING", error=f"step {number}")
    page = guest.get("/jobs/1").text
    assert page.count('<li class="from-callback') == 100
    assert "30 older entries left out" in page
    assert "receiver job 1 --instance default --timeline" in page
    assert len(page) < 90_000


STARTED = """
from receiver.app import create_app
from receiver.instances import tokens

app = create_app()
with app.extensions["receiver"].database.write() as session:
    token = tokens.create_token(session, "test", "operate", 1)
app.jinja_env.loader.get_source = None
client = app.test_client()
print(client.get("/").status)
client.post("/sign-in", data={"token": token}, headers={"Sec-Fetch-Site": "same-origin"})
print(client.get("/").status)
"""


@pytest.mark.slow
def test_a_process_that_has_started_reads_no_template_for_its_first_page(make_database):
    """Compiling them took ten times as long as the page."""
    environment = own_environment(RECEIVER_DATABASE_URL=make_database("sqlite"))
    command = [sys.executable, "-c", STARTED]
    assert subprocess.check_output(command, env=environment, text=True) == "200 OK\n200 OK\n"
