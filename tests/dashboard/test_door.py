"""Sign-in, sessions and forged forms."""

import re

import pytest
from visiting import Guest

from receiver.errors import StoreUnavailable
from receiver.instances import sessions, tokens
from receiver.web.dashboard.sign_in import local

PAGES = (
    *("/jobs", "/jobs/1", "/jobs.csv", "/events", "/alarms", "/refusals"),
    *("/instances", "/instances/x"),
)
HOUR = 3_600_000


def make_token(receiver, name="other", scope="read", **limits):
    with receiver.services.database.write() as session:
        return tokens.create_token(session, name, scope, receiver.services.clock(), **limits)


def test_a_stranger_gets_a_page_whose_first_form_takes_the_token(any_receiver):
    guest = Guest(any_receiver)
    answer = guest.get("/")
    assert answer.status_code == 200
    first = re.search(r"<form.*?</form>", answer.text, re.DOTALL)[0]
    assert 'name="token"' in first
    assert guest.sign_in().headers["Location"] == "/"
    assert "<h1>Overview</h1>" in guest.get("/").text


@pytest.mark.parametrize("path", PAGES)
def test_a_stranger_is_sent_to_the_door_and_back_where_they_wanted_to_go(receiver, path):
    guest = Guest(receiver)
    answer = guest.get(f"{path}?q=1")
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/?next=/")
    door = guest.get(answer.headers["Location"]).text
    following = re.search(r'name="next" value="(.*?)"', door)[1]
    assert guest.sign_in(next=following).headers["Location"] == f"{path}?q=1"


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example/",
        "/\t/evil.example",
        "/jobs\nx",
        "javascript:alert(1)",
        "jobs",
        "",
        "/" + "x" * 5000,
    ],
)
def test_nobody_is_sent_elsewhere_after_the_door(receiver, path):
    assert local(path) is None
    assert Guest(receiver).sign_in(next=path).headers["Location"] == "/"


@pytest.mark.parametrize("token", ["", "wrong", "rcv_" + "A" * 43, b"\xff\0", "x" * 10_000])
def test_a_wrong_token_does_not_get_in(receiver, token):
    guest = Guest(receiver)
    answer = guest.sign_in(token or " ")
    assert answer.status_code == 401
    assert "unknown, expired or revoked" in answer.text
    assert guest.get("/jobs").status_code == 303


def test_a_session_has_a_new_id_each_time_and_only_its_hash_is_kept(receiver):
    guest = Guest(receiver)
    ids = []
    for _ in range(2):
        guest.sign_in()
        ids.append(guest.client.get_cookie("receiver-session").value)
    assert ids[0] != ids[1]
    with receiver.services.database.read() as session:
        kept = session.connection().exec_driver_sql("SELECT * FROM sessions").all()
    assert len(kept) == 1  # the one before ended
    assert not any(each in str(kept) for each in ids)
    assert len(ids[0]) == 43


def test_the_cookie_is_for_http_alone_and_secure_where_the_browser_speaks_tls(
    make_receiver, make_database
):
    for public_url, base_url, secure in (
        (None, "http://127.0.0.1", False),
        (None, "https://hooks.example.com", True),
        ("https://hooks.example.com", "http://hooks.example.com", True),
        ("https://hooks.example.com", "http://127.0.0.1:8000", False),
        ("http://hooks.example.com", "http://hooks.example.com", False),
    ):
        receiver = make_receiver(make_database("sqlite"), public_url=public_url)
        client = receiver.app.test_client()
        door = client.get("/", base_url=base_url)
        cookie = door.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert ("Secure" in cookie) == secure, (public_url, base_url)
        assert cookie.startswith("__Host-") == secure


def test_signing_out_ends_the_session_on_every_node(make_receiver, database_url):
    one, other = make_receiver(database_url), make_receiver(database_url)
    guest = Guest(one)
    guest.sign_in()
    cookie = guest.client.get_cookie("receiver-session").value
    elsewhere = other.app.test_client()
    elsewhere.set_cookie("receiver-session", cookie)
    assert elsewhere.get("/jobs").status_code == 200
    assert guest.post("/sign-out").status_code == 303
    assert elsewhere.get("/jobs").status_code == 303
    assert guest.client.get_cookie("receiver-session") is None


def test_a_revoked_token_ends_its_sessions_at_once(receiver):
    guest = Guest(receiver)
    guest.sign_in(make_token(receiver))
    assert guest.get("/jobs").status_code == 200
    with receiver.services.database.write() as session:
        tokens.revoke_token(session, "other", 1)
    assert guest.get("/jobs").status_code == 303
    assert guest.sign_in().status_code == 303  # the old cookie is in nobody's way


def test_a_session_ends_with_its_token_after_a_week_or_half_a_day_unused(
    make_receiver, make_database
):
    now = [1_800_000_000_000]
    receiver = make_receiver(make_database("sqlite"), clock=lambda: now[0])
    guest = Guest(receiver)
    guest.sign_in(make_token(receiver, expires_at=now[0] + HOUR))
    now[0] += HOUR
    assert guest.get("/jobs").status_code == 303
    guest.sign_in()
    now[0] += sessions.IDLE_MS
    assert guest.get("/jobs").status_code == 303
    guest.sign_in()
    for _ in range(14):
        assert guest.get("/jobs").status_code == 200
        now[0] += sessions.IDLE_MS - 1
    now[0] += 14
    assert guest.get("/jobs").status_code == 303
    with receiver.services.database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM sessions").scalar() == 1
    guest.sign_in()
    with receiver.services.database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM sessions").scalar() == 1


def test_no_form_is_taken_without_its_token(guest):
    """Whatever changes something asks for it, before anything else."""
    routes = [
        rule
        for rule in guest.receiver.app.url_map.iter_rules()
        if rule.endpoint.startswith("dashboard.") and "POST" in rule.methods
    ]
    assert len(routes) >= 9
    for rule in routes:
        values = {name: 1 if name == "id" else "default" for name in rule.arguments}
        path = rule.build(values, append_unknown=False)[1]
        for fields in ({}, {"form_token": "0" * 64}, {"form_token": b"\xff"}):
            assert guest.client.post(path, data=fields).status_code == 403, path
    assert guest.get("/jobs").status_code == 200  # nor was the session ended


def test_all_that_changes_something_takes_a_forms_token_or_no_cookie_at_all(guest):
    """Other routes do not know the session: a forged request would have nothing to ride on."""
    for rule in guest.receiver.app.url_map.iter_rules():
        if rule.methods & {"POST", "PUT", "PATCH", "DELETE"} and not rule.endpoint.startswith(
            "dashboard."
        ):
            method = min(rule.methods & {"POST", "PUT", "PATCH", "DELETE"})
            values = dict.fromkeys(rule.arguments, "default")
            path = rule.build(values, append_unknown=False)[1]
            answer = guest.client.open(path, method=method)
            assert answer.status_code == 401, path


def test_the_token_of_one_form_is_of_no_use_to_another_session(receiver):
    one, other = Guest(receiver), Guest(receiver)
    one.sign_in()
    other.sign_in()
    assert one.client.post("/sign-out", data={"form_token": other.form_token()}).status_code == 403


def test_every_page_says_what_it_may_load_and_is_not_kept(guest):
    for path in (
        "/",
        "/jobs",
        "/jobs/404",
        "/refusals",
        "/instances",
        "/events",
        "/static/dashboard.js",
    ):
        headers = guest.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert (headers["Cache-Control"] == "no-store") == (not path.startswith("/static"))


def test_no_page_holds_code_or_styles_of_its_own(guest):
    guest.receiver.call_back(b'{"id": 1, "status": "COMPLETED", "recordsFailedCount": 2}')
    for path in (
        "/",
        "/jobs",
        "/jobs/1",
        "/refusals",
        "/instances",
        "/events",
        "/instances/default",
    ):
        text = guest.get(path).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! src=\")|javascript:", text), (
            path
        )


def test_a_form_that_is_too_long_is_not_read(guest):
    answer = guest.client.post("/sign-in", data={"token": "x" * 100_000})
    assert answer.status_code == 413


def test_who_tries_wrong_tokens_for_too_long_has_to_wait(make_receiver, make_database):
    receiver = make_receiver(make_database("sqlite"), failed_tokens_a_minute=3)
    guest = Guest(receiver)
    assert [guest.sign_in("wrong").status_code for _ in range(3)] == [401] * 3
    answer = guest.sign_in("wrong")
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert guest.sign_in().status_code == 429


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def test_a_path_that_is_not_there_is_a_page_for_a_browser(guest):
    stranger = Guest(guest.receiver)
    for path in ("/nowhere", "/favicon.ico", "/jobs/1/2/3", "/%00", "/apiary"):
        for who, is_known in ((stranger, False), (guest, True)):
            answer = who.get(path, headers={"Accept": BROWSER})
            assert (answer.status_code, answer.mimetype) == (404, "text/html"), path
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert ("Sign out" in answer.text) == is_known


def test_a_path_that_is_not_there_is_a_problem_for_a_script(guest):
    for path, accepted in {
        "/nowhere": "*/*",
        "/elsewhere": "application/json",
        "/api/v1/nowhere": BROWSER,
        "/elements/api-v2/nowhere": BROWSER,
    }.items():
        answer = guest.get(path, headers={"Accept": accepted})
        assert answer.status_code == 404
        assert answer.mimetype.endswith("json"), path


def test_a_path_that_is_not_there_is_a_page_though_the_store_is_away(guest, monkeypatch):
    def fail(*_):
        raise StoreUnavailable("gone")

    monkeypatch.setattr("receiver.instances.sessions.signed_in", fail)
    answer = guest.get("/nowhere", headers={"Accept": BROWSER})
    assert (answer.status_code, answer.mimetype) == (404, "text/html")
