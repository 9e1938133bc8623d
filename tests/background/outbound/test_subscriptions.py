"""What subscriptions are told: each change once it is committed, signed, in order, on record."""

import json
import re
import threading
from base64 import b64encode
from datetime import UTC, datetime

import pytest
import servers
from builders import bulk
from cryptography.fernet import Fernet
from nodes import DEADLINE
from nodes import eventually as until
from sqlalchemy import update
from standardwebhooks import Webhook

from receiver.alarms.handling import list_alarms
from receiver.alarms.watcher import Watcher
from receiver.database.models import JobRow
from receiver.database.models.outbound import OutboundDelivery, Subscription
from receiver.instances import tokens
from receiver.lib.clock import DAY_MS, MINUTE_MS, now_ms
from receiver.outbound.queue import PAUSES_SECONDS, Message, enqueue
from receiver.outbound.sender import MAX_TESTS

KEYS = (Fernet.generate_key().decode(),)
ALLOWED = frozenset({"127.0.0.1", "localhost"})
ENDED = {"recordsFailedCount": 1, "recordsCount": 3, "objectName": "contact"}


class Told:
    """A receiver and its subscriptions, by the API; its time is the test's, on SQLite."""

    def __init__(self, make_receiver, url: str, encryption_keys: tuple[str, ...] = KEYS) -> None:
        self.now = now_ms()
        options = {"encryption_keys": encryption_keys, "forward_allow": ALLOWED}
        self.receiver = make_receiver(url, clock=lambda: self.now, **options)
        services = self.receiver.services
        self.database, self.sender = services.database, services.sender
        used = services.settings, self.database, self.sender.send
        self.watcher = Watcher(*used, lambda: self.now)

    def later(self, minutes: float) -> None:
        self.now += round(minutes * MINUTE_MS)

    def look(self) -> None:
        self.watcher.check()
        self.sender.drain()

    def ask(self, method: str, path: str, content: object = None, token: str | None = None):
        headers = {"Authorization": f"Bearer {token or self.receiver.token}"}
        asked = self.receiver.client.open(
            f"/api/v1{path}", method=method, json=content, headers=headers
        )
        return asked.status_code, asked.json

    def subscribe(self, url: str, name: str = "crm", **facts: object) -> str:
        status, made = self.ask("POST", "/subscriptions", {"name": name, "url": url, **facts})
        assert status == 200, made
        return made["secret"]

    def deliveries(self, query: str = "") -> list[dict]:
        return self.ask("GET", f"/deliveries{query}")[1]["deliveries"]

    def states(self, query: str = "") -> list[tuple[str, str]]:
        return [(each["type"], each["state"]) for each in self.deliveries(query)][::-1]


@pytest.fixture
def told(make_receiver, database_url) -> Told:
    return Told(make_receiver, database_url)


@pytest.fixture
def here(make_receiver, make_database) -> Told:
    return Told(make_receiver, make_database("sqlite"))


@pytest.fixture
def target():
    with servers.client() as made:
        yield made


def sent(target) -> list[tuple[str, dict]]:
    return [(told["type"], told["data"]) for body, _ in target.posted if (told := json.loads(body))]


def is_signed(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    """Whether a secret signed it, however long ago: the library's `verify` takes minutes only."""
    at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    signature = Webhook(secret).sign(headers["webhook-id"], at, body.decode())
    return signature in headers["webhook-signature"].split()


def test_the_end_of_a_job_is_told_once_signed_and_as_the_api_shows_it(told, target):
    secret = told.subscribe(target.url)
    told.receiver.call_back(bulk("7", "RUNNING"))
    for _ in range(2):  # a repeat changes nothing
        told.receiver.call_back(bulk("7", "COMPLETED", **ENDED))
    job = told.receiver.get("/jobs/7").json
    told.receiver.call_back(bulk("7", "RUNNING", note="late"))
    assert told.sender.drain() is True
    ((body, headers),) = target.posted
    content = Webhook(secret).verify(body, headers)
    (entry,) = told.deliveries()
    assert (content["data"], job["outcome"]) == (job, "partial")
    assert (content["type"], content["timestamp"]) == ("job.ended", entry["at"])
    assert (entry["webhook_id"], entry["job"]) == (headers["webhook-id"], "7")
    assert [each["status"] for each in entry["attempts"]] == [200]


def test_what_became_of_an_ended_job_later_is_told_to_those_who_want_it(told, target):
    told.subscribe(target.url, on=["ended", "changed"], outcomes=["failed"])
    told.subscribe(f"{target.url}&all", name="all", on=["changed"])
    told.receiver.call_back(bulk("1", "ERROR"))
    told.receiver.call_back(bulk("1", "COMPLETED"))  # a conflict: failed no longer
    told.receiver.call_back(bulk("1", "COMPLETED", message="more words"))
    told.receiver.call_back(bulk("2", "COMPLETED"))
    told.sender.drain()
    assert told.states("?subscription=crm") == [
        ("job.ended", "delivered"),
        ("job.changed", "delivered"),
    ]
    assert told.states("?subscription=all") == [("job.changed", "delivered")]
    changed = [data for type_, data in sent(target) if type_ == "job.changed"]
    assert [(data["outcome"], data["conflict"]) for data in changed] == 2 * [("succeeded", True)]


@pytest.mark.parametrize(
    ("choice", "jobs"),
    [
        ({}, ["a", "b", "c"]),
        ({"instances": ["default"], "objects": ["contact"]}, ["a"]),
        ({"instances": ["other"]}, []),
        ({"outcomes": ["failed", "partial"]}, ["a", "b"]),
        ({"on": ["changed", "overdue", "alarm"]}, []),
    ],
)
def test_only_what_was_chosen_is_told(here, target, choice, jobs):
    here.subscribe(target.url, **choice)
    here.receiver.call_back(bulk("a", "COMPLETED", **ENDED))
    here.receiver.call_back(bulk("b", "ERROR", objectName="account"))
    here.receiver.call_back(bulk("c", "COMPLETED"))
    here.sender.drain()
    assert sorted(data["id"] for _, data in sent(target)) == jobs


def test_a_job_that_is_overdue_is_told_once_and_an_alarm_as_it_comes_and_goes(told, target):
    told.subscribe(target.url, on=["overdue", "alarm"])
    told.receiver.call_back(bulk("7", "RUNNING"))
    if not told.database.is_sqlite:  # which has a clock of its own
        with told.database.write() as session:
            session.execute(update(JobRow).values(first_seen_at=1))
    told.later(20)
    told.look()
    told.look()
    overdue = [data for type_, data in sent(target) if type_ == "job.overdue"]
    assert [(data["id"], data["overdue"]) for data in overdue] == [("7", True)]
    raised = [data["kind"] for type_, data in sent(target) if type_ == "alarm.raised"]
    assert "overdue" in raised
    assert len(raised) == len(set(raised))
    if told.database.is_sqlite:
        told.receiver.call_back(bulk("7", "COMPLETED"))
        told.later(10)
        told.look()
        told.later(10)
        told.look()
        assert sent(target)[-1][0] == "alarm.resolved"


def test_formats(here, target):
    for name in ("cloudevents", "slack"):
        here.subscribe(f"{target.url}&{name}", name=name, format=name)
    facts = {"routing_key": "R" * 32, "format": "pagerduty"}
    assert here.subscribe(f"{target.url}&pager", name="pager", **facts) is None
    here.receiver.call_back(bulk("1", "ERROR", objectName="<a&b>"))
    here.sender.drain()
    bodies = {}
    for body, headers in target.posted:
        told = json.loads(body)
        bodies["slack" if "text" in told else "pager" if "payload" in told else "event"] = told
        type_ = headers["content-type"]
        assert type_ == f"application/{'cloudevents+' if 'specversion' in told else ''}json"
    assert bodies["slack"] == {"text": "Job 1 of default (&lt;a&amp;b&gt;) ended: failed"}
    assert {name: bodies["pager"][name] for name in ("routing_key", "event_action")} == {
        "routing_key": "R" * 32,
        "event_action": "trigger",
    }
    event = bodies["event"]
    assert (event["specversion"], event["type"], event["subject"]) == ("1.0", "job.ended", "1")
    assert event["data"] == here.receiver.get("/jobs/1").json
    here.receiver.call_back(bulk("1", "COMPLETED"))
    with here.database.read() as session:
        stored = session.query(OutboundDelivery).all()
        assert all(b"RRRR" not in row.body for row in stored)


@pytest.mark.parametrize("number", ["1e400", "9" * 5000])
def test_a_number_of_any_size_is_sent_on_in_every_format(here, target, number):
    for name in ("standard", "cloudevents", "slack"):
        here.subscribe(f"{target.url}&{name}", name=name, format=name)
    facts = {"routing_key": "R" * 32, "format": "pagerduty"}
    here.subscribe(f"{target.url}&pager", name="pager", **facts)
    facts = f'"status":"ERROR","objectName":"{5000 * "x"}","callback-payload":[{number}]'
    here.receiver.call_back(f'{{"id":"1",{facts}}}'.encode())
    assert here.sender.drain()
    bodies = [body for body, _ in target.posted]
    assert sum(b'"callback_payload":[%b]' % number.encode() in body for body in bodies) == 3
    (slack,) = [body for body in bodies if body.startswith(b'{"text"')]
    assert len(slack) < 1100


def test_an_alarm_says_how_severe_it_is_and_what_to_do_in_every_format(here, target):
    here.subscribe(f"{target.url}&slack", name="slack", format="slack", on=["alarm"])
    facts = {"routing_key": "R" * 32, "format": "pagerduty", "on": ["alarm"]}
    here.subscribe(f"{target.url}&pager", name="pager", **facts)
    here.receiver.call_back(bulk("1", "ERROR"))
    here.look()
    told = [json.loads(body) for body, _ in target.posted]
    (text,) = [one["text"] for one in told if "text" in one]
    assert text.startswith(
        "WARNING default: jobs failed or lost records\nWhat to do: See the causes"
    )
    assert text.endswith("Runbook: docs/runbook.md#jobs-failed")
    (event,) = [one for one in told if "payload" in one]
    assert event["dedup_key"] == "default/failed"
    assert event["payload"]["severity"] == "warning"
    assert event["payload"]["custom_details"]["runbook"] == "docs/runbook.md#jobs-failed"


def test_two_secrets_sign_while_one_replaces_the_other(here, target):
    old = here.subscribe(target.url)
    new = here.ask("POST", "/subscriptions/crm/rotate-secret")[1]["secret"]
    here.receiver.call_back(bulk("1"))
    here.sender.drain()
    here.later(24 * 60)
    here.receiver.call_back(bulk("2"))
    here.sender.drain()
    once, after = ([is_signed(s, body, h) for s in (old, new)] for body, h in target.posted)
    assert (once, after) == ([True, True], [False, True])


def test_a_jobs_deliveries_keep_their_order(here, target):
    here.subscribe(target.url, on=["ended", "changed"])
    target.statuses = [500]
    here.receiver.call_back(bulk("1", "ERROR"))
    here.sender.drain()
    here.receiver.call_back(bulk("1", "COMPLETED"))
    here.receiver.call_back(bulk("2", "ERROR"))
    here.sender.drain()
    assert [(t, d["id"]) for t, d in sent(target)] == [("job.ended", "1"), ("job.ended", "2")]
    here.later(1)
    here.sender.drain()
    assert [t for t, d in sent(target) if d["id"] == "1"] == [
        *("job.ended", "job.ended", "job.changed")
    ]
    first, _, again, _ = [(body, headers["webhook-id"]) for body, headers in target.posted]
    assert first == again  # at each attempt, whatever became of the job meanwhile


def test_one_that_is_gone_or_fails_for_days_is_disabled_and_an_alarm_says_so(here, target):
    gone, failing = (here.subscribe(f"{target.url}&{name}", name) for name in ("gone", "failing"))
    assert gone != failing
    here.ask("PATCH", "/subscriptions/failing", {"enabled": False})
    target.statuses = [410]
    here.receiver.call_back(bulk("1"))
    here.sender.drain()
    here.ask("PATCH", "/subscriptions/failing", {"enabled": True})
    here.receiver.call_back(bulk("2"))
    target.statuses = 100 * [503]
    for pause in (0, *PAUSES_SECONDS):
        here.later(pause * 1.1 / 60)
        here.sender.drain()
    assert _disabled(here) == {"gone": "gone", "failing": None}  # not for one delivery
    here.now += 5 * DAY_MS
    here.receiver.call_back(bulk("3"))
    for pause in (0, *PAUSES_SECONDS):
        here.later(pause * 1.1 / 60)
        here.sender.drain()
    assert _disabled(here) == {"gone": "gone", "failing": "failing"}
    here.look()
    with here.database.read() as session:
        open_ = list_alarms(session, None, only_open=True)
        assert {row.subject for row in open_ if row.kind == "undeliverable"} == {"gone", "failing"}
    # Enabled again, all that failed is sent, whoever's fault it was.
    target.statuses = []
    target.posted.clear()
    here.ask("PATCH", "/subscriptions/failing", {"enabled": True})
    again = "/deliveries/retry?since=2001-01-01T00:00:00Z"
    assert here.ask("POST", f"{again}&dry_run=true")[1] == {"deliveries": 3}
    assert here.ask("POST", again)[1] == {"deliveries": 2}
    here.sender.drain()
    assert sorted(data["id"] for _, data in sent(target)) == ["2", "3"]


def _disabled(here: Told) -> dict[str, str | None]:
    listed = here.ask("GET", "/subscriptions")[1]["subscriptions"]
    return {each["name"]: each["disabled_for"] for each in listed}


def test_a_dead_host_that_10_000_deliveries_wait_for_holds_up_nobody_else(here, target):
    here.subscribe("http://127.0.0.1:9/closed")
    here.subscribe(target.url.replace("127.0.0.1", "localhost"), name="alive")
    dead = (
        Message("subscription", "http://127.0.0.1:9/closed", b"{}", f"m{i}", subscription="crm")
        for i in range(10_000)
    )
    with here.database.write() as session:
        enqueue(session.connection(), dead, here.now - 1)
    here.receiver.call_back(bulk("1"))
    here.sender.step()
    until(lambda: target.posted, "the delivery to who is alive")


def test_removed_with_deliveries_under_way(here, target):
    here.subscribe(target.url)
    here.receiver.call_back(bulk("1"))
    assert here.ask("DELETE", "/subscriptions/crm")[0] == 200
    here.receiver.call_back(bulk("2"))
    here.sender.drain()
    assert target.posted == []
    assert here.ask("GET", "/subscriptions")[1] == {"subscriptions": []}


def test_a_delivery_is_sent_again_with_its_id_and_to_the_url_of_now(here, target):
    here.subscribe("http://127.0.0.1:9/closed")
    here.receiver.call_back(bulk("1"))
    here.sender.drain()
    assert here.ask("PATCH", "/subscriptions/crm", {"url": target.url})[0] == 200
    here.later(1)
    here.sender.drain()
    (entry,) = here.deliveries()
    assert [each["status"] for each in entry["attempts"]] == [None, 200]
    assert here.ask("POST", f"/deliveries/{entry['id']}/retry")[1] == {"deliveries": 1}
    here.sender.drain()
    assert len({headers["webhook-id"] for _, headers in target.posted}) == 1
    assert len(target.posted) == 2


def test_who_may_see_and_change_what(here, target):
    here.subscribe(target.url, instances=["default"])
    here.subscribe(target.url, name="all")
    with here.database.write() as session:
        of_other = tokens.create_token(session, "other", "operate", 1, only=["other"])
        of_default = tokens.create_token(session, "default", "operate", 1, only=["default"])
        reads = tokens.create_token(session, "reads", "read", 1)
    statuses = {
        "reads": here.ask("GET", "/subscriptions", token=reads)[0],
        "other": here.ask("GET", "/subscriptions/crm", token=of_other)[0],
        "default": here.ask("GET", "/subscriptions/crm", token=of_default)[0],
        "all": here.ask("DELETE", "/subscriptions/all", token=of_default)[0],
        "widened": here.ask("PATCH", "/subscriptions/crm", {"instances": []}, of_default)[0],
        "unlimited": here.ask("POST", "/subscriptions", _NEW, of_default)[0],
    }
    assert statuses == {
        "reads": 403,
        "other": 404,
        "default": 200,
        "all": 404,
        "widened": 403,
        "unlimited": 403,
    }
    listed = here.ask("GET", "/subscriptions", token=of_default)[1]["subscriptions"]
    assert [each["name"] for each in listed] == ["crm"]


@pytest.mark.parametrize("how", ["removed", "narrowed"])
def test_what_was_sent_of_another_instance_is_neither_shown_nor_sent_on(told, target, how):
    told.subscribe("http://127.0.0.1:9/closed", instances=["default", "other"])
    told.receiver.call_back(bulk("1"))
    (entry,) = told.deliveries()
    with told.database.write() as session:
        of_other = tokens.create_token(session, "other", "operate", 1, only=["other"])
    if how == "removed":
        told.ask("DELETE", "/subscriptions/crm")
        new = {"name": "crm", "url": target.url, "instances": ["other"]}
        assert told.ask("POST", "/subscriptions", new, of_other)[0] == 200
    else:
        told.ask("PATCH", "/subscriptions/crm", {"instances": ["other"]})
        told.ask("PATCH", "/subscriptions/crm", {"url": target.url}, of_other)
    assert told.ask("GET", "/deliveries", token=of_other)[1]["deliveries"] == []
    assert told.ask("POST", f"/deliveries/{entry['id']}/retry", token=of_other)[0] == 404
    again = "/deliveries/retry?since=2001-01-01T00:00:00Z"
    assert told.ask("POST", again, token=of_other)[1] == {"deliveries": 0}
    told.ask("POST", again)  # by somebody who reaches both
    told.sender.drain()
    assert target.posted == []
    assert "limited to other instances" in told.deliveries()[0]["attempts"][0]["error"]


_NEW = {"name": "new", "url": "https://hooks.example.com/"}


def test_what_a_subscription_cannot_be(here):
    here.subscribe("https://crm.example.com/")
    for change, status in (
        ({"url": "http://hooks.example.com/"}, 400),
        ({"url": "https://user@hooks.example.com/"}, 400),
        ({"name": "a/b"}, 400),
        ({"on": []}, 400),
        ({"format": "pagerduty"}, 400),
        ({"colour": "red"}, 400),
        ({"url": "https://168.63.129.16/"}, 400),
        ({"url": "https://[::1]/"}, 400),
        ({"objects": 101 * ["contact"]}, 400),
        ({"url": f"https://hooks.example.com/{2000 * 'a'}"}, 400),
        ({"name": "crm"}, 409),
        ({}, 200),
    ):
        answered, problem = here.ask("POST", "/subscriptions", {**_NEW, **change})
        assert answered == status, (change, problem)


def test_without_encryption_keys_a_409_says_what_to_set(make_receiver, make_database):
    without = Told(make_receiver, make_database("sqlite"), encryption_keys=())
    answered, problem = without.ask("POST", "/subscriptions", _NEW)
    assert (answered, problem["code"]) == (409, "not_possible")
    assert "RECEIVER_ENCRYPTION_KEYS is needed" in problem["detail"]
    assert "restart it" in problem["detail"]
    assert without.ask("GET", "/subscriptions")[1] == {"subscriptions": []}


def test_no_id_is_more_than_a_database_can_be_asked_for(told):
    paths = {
        f"/{kind}/{id_}{rest}": method
        for id_ in ("a%00b", "%F0%9F%98%80", "9" * 3000)
        for kind, rest, method in (
            ("subscriptions", "", "GET"),
            ("subscriptions", "/test", "POST"),
            ("deliveries", "/retry", "POST"),
            ("submissions", "/dismiss", "POST"),
        )
    }
    answers = {path: told.ask(method, path)[0] for path, method in paths.items()}
    assert answers == dict.fromkeys(paths, 404)


def test_so_many_tests_at_once_that_pages_still_have_their_threads(here, target, monkeypatch):
    free, asked, answers = threading.Event(), threading.Semaphore(0), []
    here.subscribe(target.url)
    send = here.sender.send

    def hanging(message: Message):
        asked.release()
        assert free.wait(DEADLINE)
        return send(message)

    def test() -> tuple:
        return here.ask("POST", "/subscriptions/crm/test")

    monkeypatch.setattr(here.sender, "send", hanging)
    threads = [threading.Thread(target=lambda: answers.append(test())) for _ in range(MAX_TESTS)]
    for thread in threads:
        thread.start()
        assert asked.acquire(timeout=DEADLINE)
    status, problem = test()
    free.set()
    for thread in threads:
        thread.join()
    assert (status, problem["code"]) == (503, "overloaded")
    assert [answer[1]["status"] for answer in answers] == MAX_TESTS * [200]
    assert test()[1]["delivered"] is True


def test_secrets_are_encrypted_and_nothing_shows_them(here, target, capsys):
    secret = here.subscribe(target.url)
    with here.database.read() as session:
        row = session.get(Subscription, "crm")
        assert b64encode(row.secret).decode() not in secret
        box = here.receiver.services.secret_box
        assert b64encode(box.decrypt(("crm", "subscription"), row.secret)).decode() in secret
    shown = json.dumps([here.ask("GET", f"/{path}")[1] for path in ("subscriptions", "deliveries")])
    assert secret.removeprefix("whsec_") not in shown
    assert not re.search("whsec_", shown + capsys.readouterr().err)
