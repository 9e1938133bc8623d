"""What operators may do by hand, against the vendor's stand-in; what readers may not."""

import hashlib
import hmac
import json
import os
import re
from collections import Counter
from types import SimpleNamespace

import commands
import pytest
from builders import KEY
from fakes import Between, between, made_elsewhere, until
from playwright.sync_api import expect
from targets import hook
from visiting import Guest

from receiver.callbacks.diagnosis import reason_words
from receiver.database import audit
from receiver.errors import SignatureError
from receiver.instances import keys as signature_keys
from receiver.instances import registry, tokens
from receiver.jobs.projection import NewObservation
from receiver.openconnectors.notifications import Notification
from receiver.openconnectors.signatures import HEADER, SignatureKey, sign

NEW = SignatureKey("new", b"a key that nobody here knows yet")
ACTS = (
    "/jobs/1/ask",
    "/jobs/1/close",
    "/instances/gooddata/resend",
    "/instances/gooddata/test",
    "/instances/gooddata/keys/add",
    "/instances/gooddata/keys/{key}/retire",
    "/rejections/verify",
    "/rejections/{refusal}/verify",
    "/alarms/1/acknowledge",
    "/alarms/1/snooze",
    "/subscriptions/crm/test",
    "/subscriptions/crm/switch",
    "/subscriptions/crm/retry",
    "/subscriptions/crm/deliveries/1/retry",
)


@pytest.fixture
def desk(make_database):
    """A receiver, the vendor's stand-in, and a guest who may operate."""
    with between(make_database("sqlite"), forward_allow=frozenset({"127.0.0.1"})) as receiver:
        guest = Guest(receiver)
        guest.sign_in()
        yield SimpleNamespace(receiver=receiver, guest=guest)


def press(guest: Guest, path: str, **fields: str):
    """Look at what would be done, do it, and give the page that follows."""
    first = guest.get(path)
    assert first.status_code == 200, first.text
    assert "This will happen:" in first.text
    answer = guest.post(path, **fields)
    if answer.status_code == 303:
        return guest.get(answer.headers["Location"])
    return answer


def noted(receiver: Between) -> list[tuple[str, str, str]]:
    """Who did what to what, as the audit has it, oldest first."""
    with receiver.services.database.read() as session:
        found = audit.list_entries(session, 100)[::-1]
    return [(entry.actor, entry.action, entry.subject) for entry in found]


def test_a_subscription_is_seen_tested_enabled_and_sent_what_failed(desk):
    receiver, guest = desk.receiver, desk.guest
    with hook() as target:
        made = {"name": "crm", "url": target.url}
        headers = {"Authorization": f"Bearer {receiver.token}"}
        answer = receiver.client.post("/api/v1/subscriptions", json=made, headers=headers)
        assert answer.status_code == 200
        target.statuses = [410, 204]
        receiver.ended(receiver.uploaded())
        receiver.services.sender.drain()
        page = guest.get("/subscriptions/crm").text
        assert "Disabled since" in page
        assert re.search(r"410 in \d+ ms", page)
        assert "disabled (gone)" in guest.get("/subscriptions").text
        assert "accepted: 204" in notice(press(guest, "/subscriptions/crm/test"))
        assert notice(press(guest, "/subscriptions/crm/switch")) == "crm is enabled."
        assert ": 1 delivery." in notice(press(guest, "/subscriptions/crm/retry"))
        receiver.services.sender.drain()
        page = guest.get("/subscriptions/crm").text
        again = re.search(r"/subscriptions/crm/deliveries/\d+/retry", page)[0]
        assert "is sent again" in notice(press(guest, again))


def test_a_schedule_is_seen_with_its_state_and_its_next_time_in_both_zones(desk):
    assert "receiver schedules add NAME" in desk.guest.get("/schedules").text
    terms = {"cron": "30 14 1 7 *", "tz": "Asia/Tokyo", "start_grace": "30m", "run_grace": "2h"}
    body = {"name": "yearly", "instance": "gooddata", **terms}
    headers = {"Authorization": f"Bearer {desk.receiver.token}"}
    answer = desk.receiver.client.post("/api/v1/schedules", json=body, headers=headers)
    assert answer.status_code == 200
    page = desk.guest.get("/schedules").text
    for seen in ("waiting", r"01 Jul 20\d\d 14:30 JST, Asia/Tokyo", ">20..-07-01 05:30</time> UTC"):
        assert re.search(seen, page), seen


def notice(page) -> str:
    return re.search(r'class="notice".*?<bdi>(.*?)</bdi>', page.text)[1]


def refuse(receiver: Between, body: bytes, signature: str, instance: str = "gooddata") -> int:
    answer = receiver.client.post(f"/callbacks/{instance}", data=body, headers={HEADER: signature})
    assert answer.status_code == 401
    # Quarantined after the answer.
    return until(lambda: newest_rejection(receiver, instance, signature, body))


def newest_rejection(receiver: Between, instance: str, signature: str, body: bytes) -> int | None:
    with receiver.services.database.read() as session:
        query = "SELECT id, instance, signature, body FROM rejections ORDER BY id DESC LIMIT 1"
        row = session.connection().exec_driver_sql(query).first()
    same = row and (row[1], bytes(row[2]).decode(), bytes(row[3])) == (instance, signature, body)
    return row[0] if same else None


def keys_of(receiver: Between, instance: str = "gooddata") -> list[dict]:
    with receiver.services.database.read() as session:
        return signature_keys.list_keys(session, instance)


def only_known(receiver: Between, job: str) -> None:
    told = Notification("bulk_job", job=job, status="CREATED", source="poll")
    receiver.services.intake.observe(NewObservation("gooddata", told))


def test_the_vendor_is_asked_and_the_timeline_says_who_wanted_it(desk):
    job = made_elsewhere(desk.receiver)
    desk.receiver.ended_at_vendor(job)
    only_known(desk.receiver, job)
    before = desk.receiver.asked("GET /bulk/{id}/status", job)
    page = press(desk.guest, f"/jobs/{job}/ask?instance=gooddata")
    assert notice(page) == "The vendor answered COMPLETED."
    assert "asked for by test" in page.text
    assert "succeeded" in page.text
    assert desk.receiver.job(job)["learnt_by"] == "poll"
    assert notice_is_gone(desk.guest, f"/jobs/{job}")
    assert before == 0
    assert noted(desk.receiver) == [("test", "job.ask", f"gooddata/{job}")]


def notice_is_gone(guest: Guest, path: str) -> bool:
    return 'class="notice"' not in guest.get(path).text


def test_a_job_is_given_up_and_any_later_word_of_the_vendor_opens_it_again(desk):
    only_known(desk.receiver, "424242")
    page = press(desk.guest, "/jobs/424242/close")
    assert notice(page) == "Job 424242 is closed as lost."
    assert "closed by test" in page.text
    assert desk.receiver.job("424242")["outcome"] == "lost"
    assert desk.guest.get("/jobs/424242/close").status_code == 404
    assert noted(desk.receiver) == [("test", "job.close", "gooddata/424242")]
    desk.receiver.call_back(b'{"id": 424242, "status": "COMPLETED"}', "gooddata")
    assert desk.receiver.job("424242")["outcome"] == "succeeded"


def test_a_vendor_that_is_left_alone_is_asked_by_nobody_and_the_page_says_until_when(desk):
    only_known(desk.receiver, "424242")
    pacer = desk.receiver.services.reconciler.pacer
    pacer.wait_turn("gooddata")
    pacer.open_circuit("gooddata", "it failed", retry_after=120)
    answer = press(desk.guest, "/jobs/424242/ask?instance=gooddata")
    assert answer.status_code == 503
    assert 110 < int(answer.headers["Retry-After"]) <= 120
    assert desk.receiver.asked("GET /bulk/{id}/status", "424242") == 0


def test_a_vendor_that_says_no_is_told_of_and_changes_nothing(desk):
    only_known(desk.receiver, "424242")
    answer = press(desk.guest, "/jobs/424242/ask?instance=gooddata")
    assert answer.status_code == 404
    assert "The vendor rejected the request" in answer.text
    assert desk.receiver.job("424242")["outcome"] == "pending"


def _failing(_environ, start):
    start("500 no", [("Content-Length", "0")])
    return [b""]


def test_what_the_vendor_queued_is_sent_again(make_database):
    with between(make_database("sqlite"), retries=0) as receiver:

        def deaf(environ, start):
            calls_back = environ["PATH_INFO"].startswith("/callbacks")
            return (_failing if calls_back else receiver.app)(environ, start)

        receiver.answer_with(deaf)
        held = receiver.sandbox.stage.deliveries
        for state in ("failed", "queued"):  # the first has its subscription deactivated
            job = receiver.uploaded()
            until(lambda state=state: held.listing({"status": state}))
        receiver.answer_with(receiver.app)
        guest = Guest(receiver)
        guest.sign_in()
        page = press(guest, "/instances/gooddata/resend")
        assert notice(page) == "The vendor was asked to send 1 again."
        assert receiver.ended(job)["learnt_by"] == "callback"
        assert "has no queued deliveries" in notice(press(guest, "/instances/gooddata/resend"))
        assert noted(receiver)[-2:] == [("test", "deliveries.resend", "gooddata")] * 2


def test_a_test_callback_goes_through_the_public_url(desk):
    page = press(desk.guest, "/instances/gooddata/test")
    assert notice(page) == "The test callback was verified and stored."
    found = desk.receiver.get("/events?kind=other").json["events"]
    assert [event["instance"] for event in found] == ["gooddata"]
    assert noted(desk.receiver) == [("test", "instance.test", "gooddata")]


def test_a_test_callback_that_does_not_get_through_is_told_of(desk):
    desk.receiver.answer_with(_failing)
    answer = press(desk.guest, "/instances/gooddata/test")
    assert answer.status_code == 502
    assert "did not arrive" in answer.text
    assert "answered 500, not as a receiver; look at the URL and the proxy" in answer.text


def test_a_key_is_rotated_and_its_secret_is_never_shown(desk):
    page = press(desk.guest, "/instances/gooddata/keys/add", secret=NEW.secret.decode())
    assert "is accepted from now on" in notice(page)
    assert NEW.secret.decode() not in page.text
    new, old = keys_of(desk.receiver)
    for key in (NEW, KEY):
        body = key.secret[:9]
        answer = desk.receiver.call_back(body, "gooddata", key)
        assert answer.status_code == 200
    page = press(desk.guest, f"/instances/gooddata/keys/{old['id']}/retire")
    assert notice(page) == f"{old['id']} is retired: callbacks signed with it are rejected."
    assert desk.receiver.call_back(b"1", "gooddata", KEY).status_code == 401
    assert desk.receiver.call_back(b"2", "gooddata", NEW).status_code == 200
    assert noted(desk.receiver) == [
        ("test", "key.add", f"gooddata/{new['id']}"),
        ("test", "key.retire", f"gooddata/{old['id']}"),
    ]
    last = desk.guest.get(f"/instances/gooddata/keys/{new['id']}/retire").text
    assert "It is the last one" in last
    assert desk.guest.get(f"/instances/gooddata/keys/{old['id']}/retire").status_code == 404
    assert desk.guest.post(f"/instances/freshbooks/keys/{new['id']}/retire").status_code == 404


def test_a_key_that_cannot_be_used_is_refused_in_words(desk):
    for secret, told in (("", "is empty"), (KEY.secret.decode(), "has this key already")):
        answer = press(desk.guest, "/instances/gooddata/keys/add", secret=secret)
        assert answer.status_code == 409
        assert told in answer.text
        assert KEY.secret.decode() not in answer.text
    assert len(keys_of(desk.receiver)) == 1


def test_a_short_key_or_one_of_another_instance_is_warned_of(desk):
    page = press(desk.guest, "/instances/gooddata/keys/add", secret="short")
    assert "It is 5 bytes long; at least 16 are recommended" in notice(page)
    page = press(desk.guest, "/instances/freshbooks/keys/add", secret="short")
    assert "gooddata has the same key" in notice(page)


def test_a_refusal_is_explained_as_an_operator_would(desk):
    with desk.receiver.services.database.write() as session:
        other = signature_keys.add_key(
            session, desk.receiver.services.secret_box, "freshbooks", NEW.secret, 1
        )
        old = signature_keys.add_key(
            session, desk.receiver.services.secret_box, "gooddata", b"an old key of gooddata", 2
        )
        signature_keys.retire_key(session, old, None, 3)
    body = b'{"id": 1, "status": "COMPLETED"}'
    hexed = "sha256=" + hmac.digest(KEY.secret, body, hashlib.sha256).hex()
    for number, (sent, signature, told) in enumerate(
        (
            (body, hexed, "the digest is hex; it must be base64"),
            (body, sign(body, NEW), "the key of another instance"),
            (body, sign(body, SignatureKey("o", b"an old key of gooddata")), f"retired key {old}"),
            (body + b"\n", sign(body, KEY), "The body was changed on its way"),
            (body.replace(b" ", b""), sign(body, KEY), "something re-encoded it"),
            (body, "sha256=" + "A" * 43 + "=", "No key of this instance"),
            (body, "what?", "44 characters of base64"),
        )
    ):
        refused = refuse(desk.receiver, sent, signature)
        page = desk.guest.get(f"/rejections/{refused}").text
        assert told in page, number
        assert told in desk.guest.get("/rejections").text, number
        assert desk.guest.get(f"/rejections/{refused}/body").data == sent
    assert "(freshbooks)" in desk.guest.get("/rejections").text
    assert other


def test_rejections_of_every_kind_add_up_wherever_they_are_counted(desk, tmp_path):
    receiver, body = desk.receiver, b"{}"
    digest = hmac.digest(KEY.secret, body, hashlib.sha256).hex()
    with receiver.services.database.write() as session:
        registry.add_instance(session, receiver.services.secret_box, "bare", 1)
    sent = {
        "missing": {},
        "malformed": {"headers": {HEADER: "sha256=short"}},
        "hex_digest": {"headers": {HEADER: f"sha256={digest}"}},
        "algorithm": {"headers": {HEADER: f"sha1={digest}"}},
        "bad_signature": {"headers": {HEADER: sign(body, NEW)}},
        "no_key": {"path": "/callbacks/bare", "headers": {HEADER: sign(body, NEW)}},
        "unknown_instance": {"path": "/callbacks/nobody"},
        "truncated": {"environ_overrides": {"CONTENT_LENGTH": "9"}},
        "too_large": {"data": b"x" * (receiver.services.settings.max_body_bytes + 1)},
    }
    counted_only = {"unknown_instance", "truncated", "too_large"}
    assert sent.keys() == counted_only | {error.reason for error in SignatureError.__subclasses__()}
    for times, request in enumerate(sent.values(), 1):
        for _ in range(times):
            delivery = {"path": "/callbacks/gooddata", "data": body, **request}
            assert receiver.client.post(**delivery).status_code in {400, 401, 413}
    expected = {reason: times for times, reason in enumerate(sent, 1)}
    until(lambda: receiver.summary()["rejections_1h"] == sum(expected.values()))
    quarantined = {reason: n for reason, n in expected.items() if reason not in counted_only}

    def told(page: dict) -> tuple[dict[str, int], dict[str, int]]:
        return page["last_hour"], Counter(entry["reason"] for entry in page["rejections"])

    assert told(receiver.get("/rejections?limit=1000").json) == (expected, quarantined)
    (tmp_path / "token").write_text(receiver.token)
    line = ("rejections", "--json", "--url", receiver.url, "--token-file", "token")
    done = commands.run(line, tmp_path, dict(os.environ))
    assert told(json.loads(done.stdout)) == (expected, quarantined)
    text = re.sub("<.*?>", "", desk.guest.get("/rejections").text)
    assert f"In the last hour: {sum(expected.values())} deliveries" in text
    for reason, times in expected.items():
        assert f" {times} {reason_words(reason)}" in text
    assert len(re.findall('class="c-at" data-label', desk.guest.get("/rejections").text)) == 21


def test_refused_deliveries_enter_once_their_key_was_put_right(any_database_desk):
    desk = any_database_desk
    bodies = [b'{"id": %d, "status": "COMPLETED"}' % number for number in range(1, 4)]
    ids = [refuse(desk.receiver, body, sign(body, NEW)) for body in bodies]
    foreign = refuse(desk.receiver, b"{}", "sha256=" + "A" * 43 + "=")
    page = press(desk.guest, f"/rejections/{ids[0]}/verify")
    assert "still not right" in notice(page)
    press(desk.guest, "/instances/gooddata/keys/add", secret=NEW.secret.decode())
    assert "right by now" in desk.guest.get(f"/rejections/{ids[0]}").text
    page = press(desk.guest, f"/rejections/{ids[0]}/verify")
    assert "is stored as an event" in notice(page)
    assert desk.guest.get(f"/rejections/{ids[0]}").status_code == 404
    # One came again by itself meanwhile: still one event.
    assert desk.receiver.call_back(bodies[1], "gooddata", NEW).status_code == 200
    page = press(desk.guest, "/rejections/verify?instance=gooddata")
    assert notice(page) == "2 of 3 were verified and stored as events."
    left = [int(each["id"]) for each in desk.receiver.get("/rejections").json["rejections"]]
    assert left == [foreign]
    events = desk.receiver.get("/events?kind=bulk_job").json["events"]
    assert sorted((event["job"], event["deliveries"]) for event in events) == [
        ("1", 1),
        ("2", 2),
        ("3", 1),
    ]
    assert desk.receiver.get("/jobs/3").json["outcome"] == "succeeded"
    entered = [f"gooddata/{each['id']}" for each in events]
    told = [subject for _, action, subject in noted(desk.receiver) if action == "rejection.verify"]
    assert sorted(told) == sorted(entered)


@pytest.fixture
def any_database_desk(database_url):
    with between(database_url) as receiver:
        guest = Guest(receiver)
        guest.sign_in()
        yield SimpleNamespace(receiver=receiver, guest=guest)


def test_who_may_only_look_sees_no_buttons_and_cannot_act(desk):
    desk.receiver.call_back(b'{"id": 1, "status": "RUNNING"}', "gooddata")
    refused = refuse(desk.receiver, b"{}", "what?")
    with desk.receiver.services.database.write() as session:
        token = tokens.create_token(session, "looker", "read", 1)
    reader = Guest(desk.receiver)
    reader.sign_in(token)
    pages = ("/jobs/1", "/instances/gooddata", "/rejections", f"/rejections/{refused}")
    acts = re.compile("Ask the vendor now|Verify again|Add a key|>Retire<|Send a test|Re-send")
    for path in pages:
        assert acts.search(desk.guest.get(path).text), path
        assert not acts.search(reader.get(path).text), path
    key = keys_of(desk.receiver)[0]["id"]
    for path in ACTS:
        there = path.format(key=key, refusal=refused)
        assert reader.get(there).status_code == 403, there
        assert reader.post(there, secret="x" * 20).status_code == 403, there
    for of_operators in ("/subscriptions", "/subscriptions/crm", "/schedules"):
        assert reader.get(of_operators).status_code == 403, of_operators
    assert len(keys_of(desk.receiver)) == 1
    assert keys_of(desk.receiver)[0]["retired_at"] is None


@pytest.mark.slow
def test_an_operator_presses_buttons_in_a_browser(desk, visit):
    job = made_elsewhere(desk.receiver)
    desk.receiver.ended_at_vendor(job)
    only_known(desk.receiver, job)
    dashboard = SimpleNamespace(url=desk.receiver.url, operate=desk.receiver.token)
    page = visit(dashboard).sign_in().open(f"/jobs/{job}")
    page.get_by_role("link", name="Ask the vendor now").click()
    expect(page.get_by_text("One request is sent to the vendor")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator(".timeline li")).to_have_count(1)
    page.get_by_role("link", name="Ask the vendor now").click()
    page.get_by_role("button", name="Ask now").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("The vendor answered COMPLETED"))
    expect(page.locator(".timeline li")).to_have_count(2)
    page.get_by_role("link", name="Instances").click()
    page.get_by_role("link", name="gooddata").click()
    page.get_by_role("link", name="Send a test callback").click()
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("status")).to_contain_text("verified and stored")
    assert until(lambda: desk.receiver.get("/events?kind=other").json["events"])


def test_the_api_verifies_again_too_for_tokens_that_may_act(desk):
    refuse(desk.receiver, b"{}", sign(b"{}", NEW))
    refuse(desk.receiver, b"1", sign(b"1", NEW), "freshbooks")
    with desk.receiver.services.database.write() as session:
        reader = tokens.create_token(session, "looker", "read", 1)
        secret_box = desk.receiver.services.secret_box
        for name in ("gooddata", "freshbooks"):
            signature_keys.add_key(session, secret_box, name, NEW.secret, 2)

    def ask(query: str = "", token: str = desk.receiver.token):
        headers = {"Authorization": f"Bearer {token}"}
        path = f"/api/v1/rejections/verify-again{query}"
        return desk.receiver.client.post(path, headers=headers)

    assert ask(token=reader).status_code == 403
    assert ask("?reason=missing").status_code == 400
    assert ask("?instance=gooddata").json == {"looked": 1, "verified": 1}
    assert ask().json == {"looked": 1, "verified": 1}
    assert ask().json == {"looked": 0, "verified": 0}
    assert [action for _, action, _ in noted(desk.receiver)] == ["rejection.verify"] * 2


def test_the_command_line_has_them_verified_again(desk, tmp_path):
    refuse(desk.receiver, b"{}", sign(b"{}", NEW))
    with desk.receiver.services.database.write() as session:
        signature_keys.add_key(
            session, desk.receiver.services.secret_box, "gooddata", NEW.secret, 2
        )
    (tmp_path / "token").write_text(desk.receiver.token)
    where = ("--url", desk.receiver.url, "--token-file", "token")

    def verify(*words: str):
        line = ("rejections", "--verify-again", *words, *where)
        return commands.run(line, tmp_path, dict(os.environ))

    for told in ("1 of 1 are verified and stored", "0 of 0 are verified and stored"):
        done = verify()
        assert (done.returncode, done.stdout.strip()) == (0, told), done.stderr
    assert verify("--reason", "x").returncode == 2
