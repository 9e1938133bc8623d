"""What is said of alarms, as a webhook and as a mail: messages for the outbound queue."""

from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate

from msgspec import Struct

from receiver.alarms.handling import Alarm, public_alarm
from receiver.database.models.alarms import Alarm as AlarmRow
from receiver.errors import BadParameter
from receiver.outbound.queue import Message
from receiver.outbound.sender import Outgoing, Signer, standard_webhook
from receiver.settings import Settings
from receiver.subscriptions.formats import body_of

MAX_ALARMS = 25  # of each sort in one message; how many more there are is said


class Content(Struct):
    """The `data` of a message: alarms that are news or cleared since the last report.

    receiver -- our public URL, which names the sender. open -- how many are open.
    """

    receiver: str | None
    raised: list[Alarm]
    cleared: list[Alarm]
    left_out: int
    open: int


def has_channel(settings: Settings) -> bool:
    """Whether a destination for alarms is configured."""
    return bool(settings.alarm_url or settings.alarm_mail_to)


def messages(settings: Settings, content: Content, at: int, id_: str) -> Iterator[Message]:
    """Make a message for each recipient. id_ -- begins each one's webhook_id."""
    if settings.alarm_url:
        body = body_of("alarms.changed", at, content)
        yield Message("alarm", settings.alarm_url, body, id_)
    for number, address in enumerate(settings.alarm_mail_to):
        mail_id = f"{id_}_{number}"
        sender = settings.alarm_mail_from or settings.alarm_mail_to[0]
        mail = EmailMessage(SMTP)
        mail["From"], mail["To"] = sender, address
        mail["Subject"] = subject(content)
        mail["Date"] = formatdate(at / 1000)
        mail["Message-ID"] = f"<{mail_id}@{sender.partition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(text(content))
        yield Message("alarm", f"mailto:{address}", mail.as_bytes(), mail_id)


def signer(settings: Settings) -> Signer:
    """Sign alarms' webhooks; refuse recipients that the settings no longer name."""

    def sign(message: Message, now: int) -> Outgoing:
        sent = Outgoing(message.body)
        if message.target in {f"mailto:{address}" for address in settings.alarm_mail_to}:
            return sent
        if message.target != settings.alarm_url or settings.alarm_secret is None:
            raise BadParameter("the settings no longer name this recipient of alarms")
        return standard_webhook(message.webhook_id, sent, now, settings.alarm_secret)

    return sign


def contents(
    receiver: str | None, raised: Sequence[AlarmRow], cleared: Sequence[AlarmRow], open_: int
) -> Content:
    """Return what is said of alarms: at most MAX_ALARMS of each sort. open_ -- how many are."""
    left_out = sum(max(0, len(some) - MAX_ALARMS) for some in (raised, cleared))
    shown = [public_alarm(row) for row in raised[:MAX_ALARMS]]
    resolved = [public_alarm(row) for row in cleared[:MAX_ALARMS]]
    return Content(receiver, shown, resolved, left_out, open_)


def subject(content: Content) -> str:
    """Write a mail's subject."""
    raised, cleared = content.raised, content.cleared
    parts = [f"{entry.subject}: {entry.title}" for entry in raised[:2]]
    parts += [f"{entry.subject}: resolved" for entry in cleared[: max(0, 2 - len(parts))]]
    left = len(raised) + len(cleared) + content.left_out - len(parts)
    return "[receiver] " + "; ".join(parts) + (f"; {left} more" if left else "")


def text(content: Content) -> str:
    """Write a mail's text."""
    lines = [f"From the receiver {content.receiver or ''}".rstrip(), ""]
    for entry in content.raised:
        severity = entry.severity.upper()
        lines += [
            f"{severity}  {entry.subject}: {entry.title} ({entry.count})",
            f"    {entry.detail}; since {entry.raised_at}",
            *(f"    - {example}" for example in entry.examples),
            f"    {entry.meaning}",
            f"    What to do: {entry.action}",
            f"    Runbook: {entry.runbook}",
            *_acknowledgement(entry),
            "",
        ]
    lines += [
        f"RESOLVED  {entry.subject}: {entry.title};"
        f" from {entry.raised_at} to {entry.cleared_at}, at most {entry.count}"
        for entry in content.cleared
    ]
    if content.left_out:
        lines.append(f"    and {content.left_out} more")
    return "\n".join([*lines, "", f"Open alarms: {content.open} (`receiver alarms`)", ""])


def _acknowledgement(alarm: Alarm) -> Iterator[str]:
    if alarm.handled_by:
        note = f": {alarm.note}" if alarm.note else ""
        yield f"    Acknowledged by {alarm.handled_by} at {alarm.handled_at}{note}"
