"""Sign-in, sessions and forged forms."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest
from answering import answering, reply
from playwright.sync_api import expect
from visiting import Guest

from receiver.errors import StoreUnavailable
from receiver.instances import sessions, tokens
from receiver.web.dashboard.sign_in import local_path

PAGES = (
    *("/jobs", "/jobs/1", "/jobs.csv", "/events", "/alarms", "/rejections"),
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


def test_a_stranger_is_sent_to_the_door_and_back_where_they_wanted_to_go(receiver):
    for path in PAGES:
        guest = Guest(receiver)
        answer = guest.get(f"{path}?q=1")
        assert answer.status_code == 303, path
        assert answer.headers["Location"].startswith("/?next=/")
        door = guest.get(answer.headers["Location"]).text
        following = re.search(r'name="next" value="(.*?)"', door)[1]
        assert guest.sign_in(next=following).headers["Location"] == f"{path}?q=1"


def test_nobody_is_sent_elsewhere_after_the_door(receiver):
    for path in (
        *("//evil.example", "/\\evil.example", "https://evil.example/", "/\t/evil.example"),
        *("/jobs\nx", "javascript:alert(1)", "jobs", "", "/" + "x" * 5000),
    ):
        assert local_path(path) is None
        assert Guest(receiver).sign_in(next=path).headers["Location"] == "/", path


def test_a_wrong_token_does_not_get_in(receiver):
    for token in (" ", "wrong", "rcv_" + "A" * 43, b"\xff\0", "x" * 10_000):
        guest = Guest(receiver)
        answer = guest.sign_in(token)
        assert answer.status_code == 401, token
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
        assert "Set-Cookie" not in client.get("/", base_url=base_url).headers
        fields = {"token": receiver.token}
        cookie = client.post("/sign-in", base_url=base_url, data=fields).headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
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
    now[0] += sessions.MAX_IDLE_MS
    assert guest.get("/jobs").status_code == 303
    guest.sign_in()
    for _ in range(14):
        assert guest.get("/jobs").status_code == 200
        now[0] += sessions.MAX_IDLE_MS - 1
    now[0] += 14
    assert guest.get("/jobs").status_code == 303
    with receiver.services.database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM sessions").scalar() == 1
    guest.sign_in()
    with receiver.services.database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM sessions").scalar() == 1


OWN = "https://hooks.example.com"
FOREIGN = (
    {},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": ""},
    {"Sec-Fetch-Site": "Same-Origin, none"},
    {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "https://evil.example"},
    {"Origin": "http://hooks.example.com"},
    {"Origin": f"{OWN}:8443"},
    {"Origin": f"{OWN}.evil.example"},
    {"Origin": "https://evil.example", "Referer": f"{OWN}/"},
    {"Referer": f"{OWN}/"},
)
HOME = (
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
    {"Origin": OWN},
)


def changing(receiver, dashboard: bool):
    """Every route that changes something: (method, path)."""
    for rule in receiver.app.url_map.iter_rules():
        methods = (rule.methods or {"POST"}) & {"POST", "PUT", "PATCH", "DELETE"}
        if methods and rule.endpoint.startswith("dashboard.") == dashboard:
            values = {name: 1 if name == "id" else "default" for name in rule.arguments}
            yield min(methods), rule.build(values, append_unknown=False)[1]


def test_nobody_is_signed_in_for_a_page_of_another_site(receiver):
    """Who sends no cookie, and neither header, is no browser: there is nothing to forge."""
    for headers in FOREIGN:
        answer = receiver.client.post("/sign-in", base_url=OWN, headers=headers)
        scripted = not headers.keys() & {"Origin", "Sec-Fetch-Site"}
        assert answer.status_code == (401 if scripted else 403), headers


def test_nothing_is_changed_in_a_session_without_proof_of_its_own_pages(receiver):
    guest, secure = Guest(receiver), {"base_url": OWN}
    signed_in = guest.client.post("/sign-in", data={"token": receiver.token}, **secure)
    assert signed_in.status_code == 303
    routes = list(changing(receiver, dashboard=True))
    assert len(routes) >= 9
    for method, path in routes:
        for headers in FOREIGN:
            answer = guest.client.open(path, method=method, headers=headers, **secure)
            assert answer.status_code == 403, (path, headers)
            assert "nothing was changed" in answer.text
    assert guest.get("/jobs", **secure).status_code == 200  # nor was the session ended
    for headers in HOME:
        answer = guest.client.post("/rejections/verify", headers=headers, **secure)
        assert answer.status_code == 303, headers
    assert guest.client.post("/sign-out", headers=HOME[-1], **secure).status_code == 303


def test_an_origin_is_ours_with_its_scheme_as_the_browser_has_it(make_receiver, make_database):
    for public_url, base_url, origin, status in (
        (None, "http://10.0.0.7:8000", "http://10.0.0.7:8000", 401),
        (None, "http://10.0.0.7:8000", "http://10.0.0.7", 403),
        (None, "http://10.0.0.7:8000", "https://10.0.0.7:8000", 403),
        (OWN, "http://hooks.example.com", OWN, 401),
        (OWN, "http://hooks.example.com", "http://hooks.example.com", 403),
        (OWN, "http://127.0.0.1:8000", "http://127.0.0.1:8000", 401),
    ):
        receiver = make_receiver(make_database("sqlite"), public_url=public_url)
        answer = receiver.app.test_client().post(
            "/sign-in", base_url=base_url, headers={"Origin": origin}, data={"token": "x"}
        )
        assert answer.status_code == status, (public_url, base_url, origin)


def test_all_that_changes_something_elsewhere_takes_no_cookie_at_all(guest):
    """Other routes do not know the session: a forged request would have nothing to ride on."""
    for method, path in changing(guest.receiver, dashboard=False):
        answer = guest.client.open(path, method=method, headers=HOME[0])
        assert answer.status_code == 401, path


def test_every_page_but_the_sign_in_page_wants_a_session(receiver):
    for rule in receiver.app.url_map.iter_rules():
        if not rule.endpoint.startswith("dashboard.") or rule.endpoint == "dashboard.static":
            continue
        values = {name: 1 if name == "id" else "default" for name in rule.arguments}
        path = rule.build(values, append_unknown=False)[1]
        if "GET" in rule.methods and path != "/":
            assert receiver.client.get(path).headers["Location"].startswith("/?next="), path
        if "POST" in rule.methods and rule.endpoint != "dashboard.sign_in":
            answer = receiver.client.post(path, headers=HOME[0])
            assert answer.headers["Location"] == "/", path


def test_every_page_says_what_it_may_load_and_is_not_kept(guest):
    for path in (
        "/",
        "/jobs",
        "/jobs/404",
        "/rejections",
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
        "/rejections",
        "/instances",
        "/events",
        "/instances/default",
    ):
        text = guest.get(path).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! src=\")|javascript:", text), (
            path
        )


def test_a_form_that_is_too_long_is_not_read(guest):
    assert guest.post("/sign-in", token="x" * 100_000).status_code == 413


@pytest.mark.usefixtures("no_time_passes")
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
        assert answer.status_code == (401 if path.startswith("/elements") else 404)
        assert answer.mimetype.endswith("json"), path


def test_a_path_that_is_not_there_is_a_page_though_the_store_is_away(guest, monkeypatch):
    def fail(*_):
        raise StoreUnavailable("gone")

    monkeypatch.setattr("receiver.instances.sessions.find_session", fail)
    answer = guest.get("/nowhere", headers={"Accept": BROWSER})
    assert (answer.status_code, answer.mimetype) == (404, "text/html")


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """A web site of somebody else, on a port of this machine, that posts to any address."""

    def page(request: BaseHTTPRequestHandler) -> None:
        target = request.path.partition("?")[2]
        form = f"<form method=post action={target}><button>Win</button></form>"
        reply(request, 200, form.encode(), {"Content-Type": "text/html"})

    with answering(page) as url:
        yield url.rpartition(":")[2]


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_browser_on_another_site_changes_nothing(dashboard, visit, elsewhere, host):
    """Another port of the same host is the same site, to which even strict cookies go."""
    visitor = visit(dashboard).sign_in()
    for path in ("/sign-out", "/sign-in", "/rejections/verify", "/instances/gooddata/keys/add"):
        page = visitor.page
        page.goto(f"http://{host}:{elsewhere}/?{dashboard.url}{path}")
        page.get_by_role("button", name="Win").click()
        assert "nothing was changed" in page.locator("main").inner_text()
    visitor.faults[:] = [fault for fault in visitor.faults if "403" not in fault]
    page = visitor.open("/jobs")
    assert page.get_by_role("button", name="Sign out").is_visible()


def test_a_link_on_another_site_leads_who_is_signed_in_to_the_page(dashboard, visit, elsewhere):
    visitor = visit(dashboard).sign_in()
    page = visitor.page
    page.goto(f"http://localhost:{elsewhere}/?x")
    page.evaluate("url => { location.href = url }", f"{dashboard.url}/jobs?outcome=partial")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    expect(page).to_have_url(re.compile(r"/jobs\?outcome=partial$"))
