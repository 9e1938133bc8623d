"""What a subscription is sent: `{"type", "timestamp", "data"}`, or that in another format.

Both are written for each attempt. The queue holds the first, but of what a callback changed only
what it is written from, a snapshot: whoever writes callbacks has no time to show a job. Other
formats are CloudEvents 1.0 (structured), Slack's incoming webhooks, PagerDuty's Events API v2.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import msgspec

from receiver.jobs.job import Job, Outcome
from receiver.jobs.projection import JobValues
from receiver.jobs.public import public_job
from receiver.jobs.queries import JobRecord
from receiver.lib.clock import iso
from receiver.outbound.queue import Message
from receiver.outbound.sender import Outgoing

CLOUDEVENT = {"Content-Type": "application/cloudevents+json"}
MAX_SUMMARY = 1024  # characters: what PagerDuty takes
PAYLOAD = "callback_payload"

Body = dict[str, Any]


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """What is shown of a job, as its row was when a message was queued; times are ms."""

    type: str
    timestamp: int
    id: str
    instance: str
    outcome: Outcome
    learnt_by: Literal["callback", "poll"] | None
    files_expire_at: int | None
    events: int
    updated_at: int
    registers: msgspec.Raw


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Snapshot).decode


def snapshot(type_: str, at: int, outcome: Outcome, row: JobValues) -> bytes:
    """Return what the queue holds of a job that a callback changed. at -- ms."""
    learnt_by = cast('Literal["callback", "poll"] | None', row.learnt_by)
    registers = msgspec.Raw(row.registers.encode())
    return _encode(
        _Snapshot(
            *(type_, at, row.id, row.instance, outcome, learnt_by, row.files_expire_at),
            *(row.events, row.updated_at, registers),
        )
    )


def body_of(type_: str, at: int, data: object, *, replay: bool = False) -> bytes:
    """Write what is sent, but for its format. at -- ms. replay -- it was sent before."""
    mark = {"replay": True} if replay else {}
    return _encode({"type": type_, "timestamp": iso(at), "data": data, **mark})


def _body(message: Message) -> bytes:
    if not message.body.startswith(b"["):
        return message.body
    row = _decode(message.body)
    record = JobRecord(
        id=row.id,
        instance=row.instance,
        job=Job.decode(row.registers),
        learnt_by=row.learnt_by,
        files_expire_at=row.files_expire_at,
        events=row.events,
        updated_at=row.updated_at,
        outcome=row.outcome,
        # Not shown of a job that is not under way.
        revision=0,
        first_seen_at=0,
        polls=0,
        errors_at=None,
        usual_ms=None,
        callback_lost=False,
    )
    return body_of(row.type, row.timestamp, public_job(record, row.timestamp, 0))


class _Sent(msgspec.Struct):
    """What is sent. data -- its values as they stand there: see `_facts`."""

    type: str
    timestamp: str
    data: dict[str, msgspec.Raw]
    replay: bool = False


def _read(message: Message) -> _Sent:
    return msgspec.json.decode(_body(message), type=_Sent)


def _facts(sent: _Sent) -> Body:
    """Read the data, but for what is the vendor's client's: that may hold numbers of any size."""
    values = sent.data.items()
    return {name: msgspec.json.decode(value) for name, value in values if name != PAYLOAD}


def standard(message: Message) -> Outgoing:
    """Write it as it is."""
    return Outgoing(_body(message))


def cloudevent(message: Message) -> Outgoing:
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
    return Outgoing(_encode(event), CLOUDEVENT)


def slack(message: Message) -> Outgoing:
    """Write a sentence. Slack reads markup in it, so &, < and > are escaped as it asks for."""
    sent = _read(message)
    text = summary(sent)
    if sent.type == "alarm.raised":
        facts = _facts(sent)
        text += f"\nWhat to do: {facts['action']}\nRunbook: {facts['runbook']}"
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, name)
    return Outgoing(_encode({"text": text}))


def pagerduty(message: Message, routing_key: str) -> Outgoing:
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
    return Outgoing(_encode(event))


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


FORMATS: Mapping[str, Callable[[Message], Outgoing]] = {
    "standard": standard,
    "cloudevents": cloudevent,
    "slack": slack,
}
