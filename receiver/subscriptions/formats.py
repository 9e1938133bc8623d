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
MAX_SUMMARY = 1024  # characters: what PagerDuty takes
PAYLOAD = "callback_payload"

Body = dict[str, Any]


class _Sent(msgspec.Struct):
    """What the queue holds. data -- its values as they stand there: see `_facts`."""

    type: str
    timestamp: str
    data: dict[str, msgspec.Raw]
    replay: bool = False


def _read(message: Message) -> _Sent:
    return msgspec.json.decode(message.body, type=_Sent)


def _facts(sent: _Sent) -> Body:
    """Read the data, but for what is the vendor's client's: that may hold numbers of any size."""
    values = sent.data.items()
    return {name: msgspec.json.decode(value) for name, value in values if name != PAYLOAD}


def standard(message: Message) -> Message:
    """Leave the body as it is."""
    return message


def cloudevent(message: Message) -> Message:
    """Write a CloudEvent, with the same id at each attempt."""
    sent = _read(message)
    source = f"/instances/{message.instance}" if message.instance else "/receiver"
    event: Body = {
        "specversion": "1.0",
        "id": message.webhook_id,
        "source": source,
        "type": sent.type,
        "time": sent.timestamp,
        "datacontenttype": "application/json",
        "data": sent.data,
    }
    event |= {"subject": message.job} if message.job else {}
    event |= {"replay": True} if sent.replay else {}
    return replace(message, headers=CLOUDEVENT, body=msgspec.json.encode(event))


def slack(message: Message) -> Message:
    """Write a sentence. Slack reads markup in it, so &, < and > are escaped as it asks for."""
    sent = _read(message)
    text = summary(sent)
    if sent.type == "alarm.raised":
        facts = _facts(sent)
        text += f"\nWhat to do: {facts['action']}\nRunbook: {facts['runbook']}"
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, name)
    return replace(message, body=msgspec.json.encode({"text": text}))


def pagerduty(message: Message, routing_key: str) -> Message:
    """Write an event that opens an incident, or resolves it once the job or the alarm is well."""
    sent = _read(message)
    data, type_ = _facts(sent), sent.type
    is_well = type_ == "alarm.resolved" or data.get("outcome") == "succeeded"
    severity = data.get("severity", "error" if data.get("outcome") == "failed" else "warning")
    of = message.instance or data.get("subject", "receiver")
    subject = f"{of}/{message.job or data.get('kind', 'test')}"
    event = {
        "routing_key": routing_key,
        "event_action": "resolve" if is_well else "trigger",
        "dedup_key": subject[:255],
        "payload": {
            "summary": summary(sent),
            "source": subject,
            "severity": severity,
            "timestamp": sent.timestamp,
            "custom_details": sent.data,
        },
    }
    return replace(message, body=msgspec.json.encode(event))


def summary(sent: _Sent) -> str:
    """Say in one line of at most MAX_SUMMARY characters what a body says."""
    return _summary(sent)[:MAX_SUMMARY]


def _summary(sent: _Sent) -> str:
    type_, data = sent.type, _facts(sent)
    again = " (replay)" if sent.replay else ""
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
