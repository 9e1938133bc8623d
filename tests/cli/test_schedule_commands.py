"""`receiver schedules`, on a database that no receiver serves; and the same by the API."""

import json

import pytest
import structlog

from receiver.instances import registry, tokens
from receiver.instances.encryption import SecretBox

GOOD = {
    "cron": "0 2 * * *",
    "tz": "Europe/Berlin",
    "start_grace": "30m",
    "run_grace": "2h",
    "instance": "default",
}
BAD = {
    "five fields": {"cron": "0 0 2 * * *"},
    "fields are needed": {"cron": "nightly"},
    "bad hour": {"cron": "0 25 * * *"},
    "no such month has": {"cron": "0 2 31 2 *"},
    "never due": {"cron": "0 2 */31 * 1#2"},
    "due next on 2044-02-29; a schedule must be due within 8 years": {"cron": "0 2 * 2 MON#5"},
    "no such time zone": {"tz": "Europe/Nowhere"},
    "start grace '0m'": {"start_grace": "0m"},
    "run grace '-2h'": {"run_grace": "-2h"},
    "shorter than the start grace": {"run_grace": "20m"},
    "the start grace is 90m and must be shorter than 1h": {
        "cron": "0 * * * *",
        "start_grace": "90m",
        "run_grace": "30m",
    },
    "the run grace is 2h and must be shorter than 2h": {"cron": "0 */2 * * *"},
    "must be shorter than 1098d": {"cron": "0 2 29 2 *", "run_grace": "999999999d"},
    "no instance 'nobody'": {"instance": "nobody"},
    "an object is": {"object": ""},
}


@pytest.fixture
def command(type_line, make_database, make_receiver, monkeypatch):
    """Run a command; give what it printed. `command.receiver` is on the same database."""
    url = make_database("sqlite")
    monkeypatch.setenv("RECEIVER_DATABASE_URL", url)
    monkeypatch.setenv("EVENT_NOTIFICATION_SIGNATURE_KEY", "a key that is long enough")
    type_line.receiver = make_receiver(url)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return type_line


def add(name: str, **terms: str) -> str:
    options = [f"--{option.replace('_', '-')} '{value}'" for option, value in terms.items()]
    return f"schedules add {name} {' '.join(options)}"


def ask(receiver, method: str, path: str, token: str | None = None, **body):
    headers = {"Authorization": f"Bearer {token or receiver.token}"}
    answer = receiver.client.open(
        f"/api/v1{path}", method=method, json=body or None, headers=headers
    )
    return answer.status_code, answer.json


def test_a_schedule_from_its_first_day_to_its_last(command):
    assert command("schedules list") == "none\n"
    assert "nightly added; due next at " in command(add("nightly", **GOOD, object="contact"))
    shown = json.loads(command("schedules show nightly --json"))
    assert {name: shown[name] for name in GOOD} == GOOD
    assert (shown["state"], shown["job"], shown["object"]) == ("waiting", None, "contact")
    assert shown["next_due_local"][10:19] == "T02:00:00"
    assert ask(command.receiver, "GET", "/schedules/nightly") == (200, shown)
    assert ask(command.receiver, "GET", "/schedules") == (200, {"schedules": [shown]})
    assert "Europe/Berlin" in command("schedules list")
    assert "--yes" in command("schedules remove nightly", 2)
    command("schedules remove nightly --yes")
    for line in ("schedules show nightly", "schedules remove nightly --yes"):
        assert command(line, 2) == "receiver: there is no schedule nightly\n"
    done = [entry["action"] for entry in json.loads(command("audit --json"))["entries"]]
    assert done == ["schedule.remove", "schedule.add"]


@pytest.mark.parametrize("reason", BAD)
def test_a_mistake_is_one_line_and_a_400_that_names_it(command, reason):
    terms = GOOD | BAD[reason]
    printed = command(add("nightly", **terms), 2)
    assert reason in printed
    assert printed.count("\n") == 1
    status, problem = ask(command.receiver, "POST", "/schedules", name="nightly", **terms)
    assert (status, f"receiver: {problem['detail']}\n") == (400, printed)


def test_a_name_is_taken_once(command):
    command(add("nightly", **GOOD))
    taken = "there is a schedule nightly already"
    assert command(add("nightly", **GOOD), 2) == f"receiver: {taken}\n"
    status, problem = ask(command.receiver, "POST", "/schedules", name="nightly", **GOOD)
    assert (status, problem["detail"]) == (409, taken)


def test_a_token_reaches_the_schedules_of_its_instances_and_their_alarms(command):
    receiver = command.receiver
    made = {}
    with receiver.services.database.write() as session:
        registry.add_instance(session, SecretBox(()), "other", 1)
        for name, scope, only in (
            ("a", "operate", "default"),
            ("b", "operate", "other"),
            ("c", "read", "default"),
        ):
            made[name] = tokens.create_token(session, name, scope, 1, only=(only,))
    body = {"name": "nightly", **GOOD}
    assert ask(receiver, "POST", "/schedules", made["b"], **body)[0] == 403
    assert ask(receiver, "POST", "/schedules", made["c"], **body)[0] == 403
    assert ask(receiver, "POST", "/schedules", made["a"], **body)[0] == 200
    for method in ("GET", "DELETE"):
        assert ask(receiver, method, "/schedules/nightly", made["b"])[0] == 404
    assert ask(receiver, "GET", "/schedules", made["b"]) == (200, {"schedules": []})
    assert ask(receiver, "DELETE", "/schedules/nightly", made["a"])[0] == 200
    assert ask(receiver, "GET", "/schedules", made["a"]) == (200, {"schedules": []})
