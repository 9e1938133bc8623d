"""What deploy/ has for Prometheus and Grafana fits what the receiver measures, and fires."""

import json
import re
import subprocess
from pathlib import Path

import debian
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

import receiver
from receiver import metrics
from receiver.alarms.kinds import KINDS

# What the receiver alarms of as well, by the name it has there; and what only Prometheus sees.
ALARMS = {
    "ReceiverDatabaseDown": "failing",
    "CallbacksStopped": "silent",
    "CallbacksRejected": "rejected",
    "CallbacksAnsweredWithErrors": "failing",
    "JobTooOld": "overdue",
    "DeliveriesWait": "undeliverable",
    "ScheduledJobMissed": "schedule_missed",
    "ScheduledJobLate": "schedule_late",
    "JobsOverdue": "overdue",
    "CallbacksLost": "lost",
    "EventsUnreadable": "unreadable",
    "JobsFailed": "failed",
    "FilesExpire": "expiring",
}
OTHERS = {"ReceiverNotScraped", "ReceiverNodeDown", "QueueGrows", "CommitsSlow", "DiskAlmostFull"}
ANY_CRITICAL = "CriticalAlarmOpen"

ROOT = Path(receiver.__file__).parents[1]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
FIRED = Path(__file__).with_name("alerts-test.yaml")
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def rules():
    return yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]


def declared():
    """The names under which Prometheus finds what receiver/metrics.py declares."""
    found = {each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)}
    own = {f"{each._name}{end}" for each in found for end in SUFFIXES[each._type]}
    return own | {f"receiver_{name}" for name in metrics.STORED}


def labels_of(name):
    for each in vars(metrics).values():
        if isinstance(each, MetricWrapperBase) and name.startswith(each._name):
            return {*each._labelnames, "le", "instance"}
    plain = name.removeprefix("receiver_")
    return {metrics.STORED[plain][0], "instance"} if plain in metrics.STORED else {"instance"}


def asked(expression):
    """Every metric of ours that an expression names, with the labels it asks of it."""
    for name, selector in re.findall(r"\b(receiver_[a-z_]+)(\{[^}]*\})?", expression):
        yield name, set(re.findall(r"([a-z_]+)\s*(?:=|!)", selector))


def expressions():
    found = [rule["expr"] for rule in rules()]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        found += [target["expr"] for target in panel["targets"]]
    return found


def promtool(*words):
    command = [debian.program("promtool"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_alert_rules_are_rules():
    checked = promtool("check", "rules", ALERTS)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_fires_at_its_cause_and_none_when_all_is_well():
    tested = promtool("test", "rules", FIRED)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_an_alert_that_does_not_fire_would_be_seen(tmp_path):
    broken = ALERTS.read_text().replace("min_over_time(receiver_queue_length[5m]) > 256", "0 > 1")
    (tmp_path / "alerts.yaml").write_text(broken)
    cases = FIRED.read_text().replace("../../deploy/prometheus/", "")
    (tmp_path / "test.yaml").write_text(cases)
    tested = promtool("test", "rules", tmp_path / "test.yaml")
    assert tested.returncode != 0
    assert "QueueGrows" in tested.stdout + tested.stderr


def test_an_alert_is_as_severe_as_the_alarm_of_the_same():
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in rules()}
    assert severities.keys() == ALARMS.keys() | OTHERS | {ANY_CRITICAL}
    alike = {alert: KINDS[kind].severity for alert, kind in ALARMS.items()}
    assert {alert: severities[alert] for alert in ALARMS} == alike
    assert set(severities.values()) == {"critical", "warning"}


def test_there_is_a_case_for_each_alert():
    fired = set(re.findall(r'ALERTS\{alertname="(\w+)"', FIRED.read_text()))
    assert fired == {rule["alert"] for rule in rules()}


def test_alerts_and_dashboard_ask_for_nothing_that_is_not_declared():
    names = [asked_for for each in expressions() for asked_for in asked(each)]
    assert {name for name, _ in names} - declared() == set()
    assert [(name, labels) for name, labels in names if labels - labels_of(name)] == []


@pytest.mark.parametrize("name", ["receiver_forgotten", "receiver_jobs_total"])
def test_a_name_that_is_not_declared_would_be_seen(name):
    assert name not in declared()
    assert next(asked(f"max({name})"))[0] == name


def test_what_is_declared_is_shown_or_alarmed():
    shown = {name for each in expressions() for name, _ in asked(each)}
    names = {re.sub("_(total|bucket|sum|count)$", "", name) for name in declared() | shown}
    left_out = names - {re.sub("_(total|bucket|sum|count)$", "", name) for name in shown}
    assert left_out == {"receiver_disk_free_bytes", "receiver_info"}
