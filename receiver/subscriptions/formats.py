"""What a subscription is sent: the queue holds `{"type", "timestamp", "data"}`, alike for all.

Other formats are written from that for each attempt: CloudEvents 1.0 (structured), Slack's incoming
webhooks, PagerDuty's Events API v2.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from receiver.outbound.queue import Message

JSON = {"Content-Type": "application/json"}
CLOUDEVENT = {"Content-Type": "application/cloudevents+json"}
MAX_SUMMARY = 1024  # characters of PagerDuty's summary

Body = dict[str, Any]


def standard(message: Message) -> Message:
    """Leave the body as it is."""
    return message


def cloudevent(message: Message) -> Message:
    """Write a CloudEvent, with the same id at each attempt."""
    sent = msgspec.json.decode(message.body, type=Body)
    source = f"/instances/{message.instance}" if message.instance else "/receiver"
    event = {
        "specversion": "1.0",
        "id": message.webhook_id,
        "source": source,
        "type": sent["type"],
        "time": sent["timestamp"],
        "datacontenttype": "application/json",
        "data": sent["data"],
    }
    event |= {"subject": message.job} if message.job else {}
    event |= {"replay": True} if sent.get("replay") else {}
    return replace(message, headers=CLOUDEVENT, body=msgspec.json.encode(event))


def slack(message: Message) -> Message:
    """Write a sentence. Slack reads markup in it, so &, < and > are escaped as it asks for."""
    sent = msgspec.json.decode(message.body, type=Body)
    text = summary(sent)
    if sent["type"] == "alarm.raised":
        text += f"\nWhat to do: {sent['data']['action']}\nRunbook: {sent['data']['runbook']}"
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, name)
    return replace(message, body=msgspec.json.encode({"text": text}))


def pagerduty(message: Message, routing_key: str) -> Message:
    """Write an event that opens an incident, or resolves it once the job or the alarm is well."""
    sent = msgspec.json.decode(message.body, type=Body)
    data, type_ = sent["data"], sent["type"]
    is_well = type_ == "alarm.resolved" or data.get("outcome") == "succeeded"
    severity = data.get("severity", "error" if data.get("outcome") == "failed" else "warning")
    of = message.instance or data.get("subject", "receiver")
    subject = f"{of}/{message.job or data.get('kind', 'test')}"
    event = {
        "routing_key": routing_key,
        "event_action": "resolve" if is_well else "trigger",
        "dedup_key": subject[:255],
        "payload": {
            "summary": summary(sent)[:MAX_SUMMARY],
            "source": subject,
            "severity": severity,
            "timestamp": sent["timestamp"],
            "custom_details": data,
        },
    }
    return replace(message, body=msgspec.json.encode(event))


def summary(sent: Body) -> str:
    """Say in one line what a body says."""
    type_, data = sent["type"], sent["data"]
    again = " (replay)" if sent.get("replay") else ""
    if type_.startswith("alarm."):
        return f"{data['severity'].upper()} {data['subject']}: {data['title']}{again}"
    if not type_.startswith("job."):
        return f"Test of the subscription {data['subscription']}"
    about = f"Job {data['id']} of {data['instance']}"
    what = f" ({data['object']})" if data["object"] else ""
    if type_ == "job.overdue":
        return f"{about}{what} is overdue{again}"
    verb = "ended" if type_ == "job.ended" else "changed"
    counts = [f"{n} {name}" for name, n in data["records"].items() if n and name != "reported"]
    records = f"; records: {', '.join(counts)}" if counts else ""
    return f"{about}{what} {verb}: {data['outcome']}{records}{again}"


FORMATS: Mapping[str, Callable[[Message], Message]] = {
    "standard": standard,
    "cloudevents": cloudevent,
    "slack": slack,
}
