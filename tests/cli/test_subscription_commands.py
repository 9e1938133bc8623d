"""`receiver subscriptions`, `deliveries` and `replay`, on a database that no receiver serves."""

import json

import pytest
import structlog
from builders import bulk
from cryptography.fernet import Fernet
from standardwebhooks import Webhook
from targets import hook

KEY = Fernet.generate_key().decode()


@pytest.fixture
def target():
    with hook() as made:
        yield made


@pytest.fixture
def command(type_line, make_database, make_receiver, monkeypatch):
    """Run a command; give what it printed. `command.receiver` is on the same database."""
    url = make_database("sqlite")
    allowed = {"encryption_keys": (KEY,), "forward_allow": frozenset({"127.0.0.1"})}
    for name, value in (
        ("DATABASE_URL", url),
        ("ENCRYPTION_KEYS", KEY),
        ("FORWARD_ALLOW", "127.0.0.1"),
    ):
        monkeypatch.setenv(f"RECEIVER_{name}", value)
    type_line.receiver = make_receiver(url, **allowed)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return type_line


def test_a_subscription_from_its_secret_to_its_end(command, target):
    secret = command(f"subscriptions add crm --url {target.url} --on ended --on changed").strip()
    assert "accepted: 204" in command("subscriptions test crm")
    headers, body = target.posted.pop()
    assert Webhook(secret).verify(body, headers)["type"] == "subscription.test"
    assert "already" in command(f"subscriptions add crm --url {target.url}", 2)
    (listed,) = json.loads(command("subscriptions list --json"))["subscriptions"]
    assert (listed["name"], listed["on"], listed["disabled_at"]) == (
        "crm",
        ["changed", "ended"],
        None,
    )
    assert command("subscriptions rotate-secret crm").startswith("whsec_")
    command("subscriptions disable crm")
    command.receiver.call_back(bulk("1"))
    assert json.loads(command("deliveries --json")) == {"deliveries": []}
    command("subscriptions enable crm")
    target.statuses = [503]
    assert "not accepted: 503" in command("subscriptions test crm", 6)
    command("subscriptions remove crm --yes")
    assert "no subscription crm" in command("subscriptions test crm", 2)
    entries = json.loads(command("audit --json"))["entries"]
    done = [each["action"] for each in entries if each["subject"] == "crm"]
    assert done == [
        f"subscription.{what}" for what in ("remove", "enable", "disable", "rotate", "add")
    ]


def test_what_was_sent_is_listed_sent_again_and_replayed_once_counted(command, target):
    command(f"subscriptions add crm --url {target.url}")
    receiver = command.receiver
    for job, status in (("1", 503), ("2", 410)):
        receiver.call_back(bulk(job))
        target.statuses = [status]
        receiver.services.sender.drain()
    receiver.call_back(bulk("3", "RUNNING"))
    (failing,) = json.loads(command("subscriptions list --json"))["subscriptions"]
    assert (failing["disabled_for"], failing["failing_since"][-1]) == ("gone", "Z")
    listed = json.loads(command("deliveries --failed --json"))["deliveries"]
    assert {each["state"] for each in listed} <= {"failed", "cancelled"}
    assert 410 in [attempt["status"] for each in listed for attempt in each["attempts"]]
    again = "deliveries retry --failed --since 1d"
    assert command(f"{again} --dry-run") == "2 deliveries would be sent again\n"
    assert "add --yes" in command(again, 2)
    command("subscriptions enable crm")
    assert command(f"{again} --yes") == "2 deliveries sent again\n"
    target.statuses = [204]
    target.posted.clear()
    receiver.services.sender.drain()
    assert sorted(json.loads(body)["data"]["id"] for _, body in target.posted) == ["1", "2"]
    number = json.loads(command("deliveries --json"))["deliveries"][0]["id"]
    assert command(f"deliveries retry {number}") == f"delivery {number} is sent again\n"
    receiver.services.sender.drain()
    before = receiver.get("/jobs/1").json
    target.posted.clear()
    assert (
        command("replay --instance default --since 1h --dry-run") == "2 deliveries would be sent\n"
    )
    assert command("replay --job 1 --yes") == "1 delivery queued\n"
    receiver.services.sender.drain()
    ((_, body),) = target.posted
    assert (json.loads(body)["replay"], json.loads(body)["data"]) == (True, before)
    assert receiver.get("/jobs/1").json == before


@pytest.mark.parametrize(
    "line",
    [
        "subscriptions add crm --url http://crm.example.com/",
        "subscriptions add crm --url https://crm.example.com/ --format pagerduty",
        "subscriptions enable crm",
        "deliveries retry 17",
        "deliveries retry",
        "deliveries retry --failed",
        "deliveries retry --failed --since soon",
        "replay --instance default",
        "replay --since 1d",
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, line):
    assert command(line, 2).count("\n") == 1
