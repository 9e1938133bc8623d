"""Telling others of jobs and alarms: `subscriptions`, `deliveries`, `replay`, `watch`, `alarms`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import get_args

import click
from msgspec import to_builtins
from msgspec.structs import asdict

from receiver.alarms import channels, handling
from receiver.alarms.handling import Alarm, public_alarm
from receiver.alarms.watcher import PERIOD_SECONDS, Watcher
from receiver.cli.instances import warn_of_unknown
from receiver.cli.options import (
    duration,
    json_option,
    limit_option,
    only,
    secret_option,
    yes_option,
)
from receiver.cli.output import Exit, confirm, count, plain, show, table, warn
from receiver.cli.serve import actor, open_database, record_action, remove, repeat
from receiver.client import NoSuchInstance, NoSuchJob
from receiver.database.engine import Database, Session, database_time
from receiver.database.models.outbound import OutboundDelivery
from receiver.errors import StoreError
from receiver.instances.encryption import SecretBox
from receiver.instances.registry import instance_names
from receiver.jobs.job import OUTCOMES, Outcome
from receiver.jobs.queries import ENDED, Filters, JobRecord, find_jobs, list_jobs, position_of
from receiver.lib.clock import now_ms
from receiver.lib.safe_http import SafeClient
from receiver.outbound.mail import Mailer
from receiver.outbound.sender import Sender, Signer
from receiver.settings import Settings
from receiver.subscriptions import log, registry
from receiver.subscriptions.changes import queue_replays, test_message, wanted_replays
from receiver.subscriptions.public import public_delivery, public_subscription
from receiver.subscriptions.registry import Choice, Format, Subject, Subscription

PAGE = 500  # jobs that are sent again in one transaction
_COLUMNS = ("name", "url", "format", "on", "instances", "objects", "outcomes", "disabled_for")
_DELIVERY = ("id", "subscription", "type", "instance", "job", "state", "tries", "last_answer", "at")
_ALARMS = ("id", "severity", "state", "kind", "subject", "count", "detail", "raised_at")

_note = click.option("--note", metavar="TEXT", help="What others should know; shown with it.")
_yes_option = click.option("--yes", is_flag=True, help="Send without asking.")


@click.group()
def subscriptions() -> None:
    """Tell other systems how jobs ended: each delivery is signed, retried and logged."""


@subscriptions.command("add")
@click.argument("name")
@click.option(
    "--url",
    required=True,
    help="Where to POST to: https and a public address, or a host of RECEIVER_FORWARD_ALLOW.",
)
@only("of this instance", "--instance", "instances")
@only("of this object", "--object", "objects")
@only("of jobs with this outcome", "--outcome", "outcomes", choices=OUTCOMES)
@click.option(
    "--on",
    multiple=True,
    type=click.Choice(get_args(Subject)),
    default=("ended",),
    show_default=True,
    help="What to tell; repeatable.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(get_args(Format)),
    default="standard",
    show_default=True,
    help="How to write it.",
)
@secret_option("--routing-key-file", "routing_key", "PagerDuty's routing key")
@json_option
def add(
    name: str,
    url: str,
    instances: Sequence[str],
    objects: Sequence[str],
    outcomes: Sequence[Outcome],
    on: Sequence[Subject],
    format_: Format,
    routing_key: bytes | None,
    json_: bool,
) -> None:
    """Add a subscription and print its secret: alone, and this once."""
    choice = Choice(instances=instances, objects=objects, outcomes=outcomes, on=on)
    with open_database() as (settings, database), database.write() as session:
        secret_box = SecretBox(settings.encryption_keys)
        http, now = SafeClient(settings.forward_allow), database_time(session, now_ms)
        added = Subscription(name=name, url=url, format=format_, choice=choice, created_at=now)
        new_secret = registry.add_subscription(session, secret_box, http, added, routing_key)
        warn_of_unknown(session, settings, instances)
        record_action(session, "subscription.add", name)
    show({"name": name, "secret": new_secret or None}, new_secret or f"{name} added", json_)


@subscriptions.command("list")
@json_option
def list_(json_: bool) -> None:
    """List subscriptions, never their secrets."""
    with open_database() as (_, database), database.read() as session:
        rows = to_builtins(list(map(public_subscription, registry.list_subscriptions(session))))
    show({"subscriptions": rows}, table(rows, _COLUMNS), json_)


@subscriptions.command("test")
@click.argument("name")
@json_option
def test(name: str, json_: bool) -> None:
    """Send a signed test message now, past the queue; exit code 6 if it is not accepted."""
    with open_database() as (settings, database):
        with database.read() as session:
            subscription = registry.get_subscription(session, name)
        signer = registry.signer(database, SecretBox(settings.encryption_keys))
        sender = _sender(settings, database, **{registry.KIND: signer})
        attempt = sender.send(test_message(subscription, now_ms()))
    answer = attempt.answer.decode("utf-8", "replace")
    content = {"delivered": attempt.delivered, "status": attempt.status, "error": attempt.error}
    result = "accepted" if attempt.delivered else "not accepted"
    text = f"{result}: {attempt.status or plain(attempt.error)} {plain(answer)}".rstrip()
    show({**content, "answer": answer}, text, json_)
    sys.exit(Exit.OK if attempt.delivered else Exit.UNREACHABLE)


@subscriptions.command("rotate-secret")
@click.argument("name")
@json_option
def rotate_secret(name: str, json_: bool) -> None:
    """Print a new secret, this once; for 24 hours the one before it signs, too."""
    with open_database() as (settings, database), database.write() as session:
        secret_box, now = SecretBox(settings.encryption_keys), database_time(session, now_ms)
        new_secret = registry.rotate_secret(session, secret_box, name, now)
        record_action(session, "subscription.rotate", name)
    show({"name": name, "secret": new_secret}, new_secret, json_)


@subscriptions.command("disable")
@click.argument("name")
def disable(name: str) -> None:
    """Send nothing more; what waits is cancelled, and nothing is queued."""
    with open_database() as (_, database), database.write() as session:
        registry.get_subscription(session, name)
        registry.disable(session, name, "operator", database_time(session, now_ms))
        record_action(session, "subscription.disable", name)
    click.echo(f"{name} disabled")


@subscriptions.command("enable")
@click.argument("name")
def enable(name: str) -> None:
    """Send from now on; `receiver deliveries retry --failed` sends what was cancelled."""
    with open_database() as (_, database), database.write() as session:
        registry.enable(session, name)
        record_action(session, "subscription.enable", name)
    click.echo(f"{name} enabled")


@subscriptions.command("remove")
@click.argument("name")
@yes_option
def remove_subscription(name: str, yes: bool) -> None:
    """Remove a subscription; what waits is cancelled, the log of its deliveries stays."""
    find, delete = registry.get_subscription, registry.remove_subscription
    remove("subscription", name, find, delete, "What waits for it is not sent.", yes=yes)


@click.group(invoke_without_command=True)
@click.option("--subscription", help="Of this one only; it may have been removed.")
@click.option("--failed", is_flag=True, help="Those only that are not sent again by themselves.")
@limit_option
@json_option
@click.pass_context
def deliveries(
    context: click.Context, subscription: str | None, failed: bool, limit: int, json_: bool
) -> None:
    """List what was sent to subscriptions, newest first, each with its attempts."""
    if context.invoked_subcommand:
        return
    with open_database() as (_, database), database.read() as session:
        names = [subscription] if subscription else _names(session)
        found = log.list_deliveries(session, names, only_failed=failed, limit=limit)
        if subscription and not found:
            registry.get_subscription(session, subscription)
    rows = list(map(_row, found))
    show({"deliveries": rows}, table(rows, _DELIVERY), json_)


@deliveries.command("retry")
@click.argument("delivery", required=False, type=click.IntRange(0, 2**63 - 1))
@click.option("--failed", is_flag=True, help="All that failed or were cancelled.")
@click.option("--subscription", help="Of this subscription only.")
@click.option("--since", metavar="DURATION", help="Queued within this time, e.g. 1d.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@_yes_option
def retry(
    delivery: int | None,
    failed: bool,
    subscription: str | None,
    since: str | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Send a delivery again, or all that failed; each keeps its webhook-id."""
    if (delivery is None) == (not failed) or failed != bool(since):
        raise click.UsageError("name a delivery, or --failed and --since")
    with open_database() as (_, database):
        if delivery is not None:
            with database.write() as session:
                log.retry_one(session, delivery, database_time(session, now_ms))
                record_action(session, "delivery.retry", str(delivery))
            click.echo(f"delivery {delivery} is sent again")
            return
        with database.read() as session:
            if subscription is not None:
                registry.get_subscription(session, subscription)
            names = _names(session) if subscription is None else [subscription]
            after = database_time(session, now_ms) - duration("--since", since or "")
            number = log.count_failed(session, names, after)
        if dry_run or not number:
            click.echo(f"{count(number, 'delivery')} would be sent again")
            return
        confirm(f"Send {count(number, 'delivery')} again?", yes=yes)
        with database.write() as session:
            now = database_time(session, now_ms)
            number = log.retry_failed(session, names, after, now)
            record_action(session, "delivery.retry", subscription or "all", f"{number} failed")
    click.echo(f"{count(number, 'delivery')} sent again")


@click.command()
@click.option("--job", "job_id", metavar="ID", help="This job.")
@click.option("--instance", help="The job's instance, or all jobs of this instance.")
@click.option("--since", metavar="DURATION", help="Of those that changed within it, e.g. 2h.")
@click.option("--dry-run", is_flag=True, help="Only count what would be sent.")
@_yes_option
def replay(
    job_id: str | None, instance: str | None, since: str | None, dry_run: bool, yes: bool
) -> None:
    """Tell subscriptions again of jobs that ended, as they are now; no job changes by that.

    Each is a new message of the type job.ended, marked with `"replay": true`.
    """
    if (job_id is None) == (since is None) or not (job_id or instance):
        raise click.UsageError("name --job, or --instance and --since")
    with open_database() as (settings, database):
        with database.read() as session:
            names = instance_names(session, settings)
            active = registry.load_active(session.connection())
            now = database_time(session, now_ms)
        after = None if since is None else now - duration("--since", since)
        pages = partial(_pages, database, job_id, instance, after)
        number = sum(1 for _ in wanted_replays(active, chain.from_iterable(pages())))
        if not number and instance is not None and instance not in names:
            raise NoSuchInstance(instance, names)
        if not number and job_id is not None and not any(pages()):
            raise NoSuchJob(job_id, instance)
        if dry_run or not number:
            click.echo(f"{count(number, 'delivery')} would be sent")
            return
        confirm(f"Send {count(number, 'delivery')}?", yes=yes)
        for page in pages():
            with database.write() as session:
                wanted = wanted_replays(active, page)
                queue_replays(session.connection(), wanted, database_time(session, now_ms))
        with database.write() as session:
            place = f"{instance or 'any'}/{job_id or 'all'}"
            record_action(session, "replay", place, count(number, "delivery"))
    click.echo(f"{count(number, 'delivery')} queued")


def _pages(
    database: Database, job_id: str | None, instance: str | None, after: int | None
) -> Iterator[list[JobRecord]]:
    """Yield the job, or the jobs of an instance that ended and changed `after`, ms."""
    if job_id is not None:
        yield find_jobs(database, job_id, instance)
        return
    filters = Filters(instances=[str(instance)], outcomes=ENDED, updated_after=after)
    page = list_jobs(database, filters, PAGE)
    while page:
        yield page
        page = list_jobs(database, filters, PAGE, position_of(page[-1]))


def _row(delivery: OutboundDelivery) -> dict[str, object]:
    shown = public_delivery(delivery)
    last = shown.attempts[-1] if shown.attempts else None
    facts: dict[str, object] = to_builtins(shown)
    return facts | {"id": delivery.id, "last_answer": last and (last.status or last.error)}


def _sender(settings: Settings, database: Database, **signers: Signer) -> Sender:
    http, mailer = SafeClient(settings.forward_allow), Mailer(settings)
    return Sender(database, http, mailer, signers, now_ms)


def _names(session: Session) -> list[str]:
    return [subscription.name for subscription in registry.list_subscriptions(session)]


@click.command()
@click.option("--once", is_flag=True, help="Check once, even if another node does the checks.")
@click.option(
    "--every",
    type=click.IntRange(1, 86_400),
    default=PERIOD_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="The pause between two checks.",
)
def watch(once: bool, every: int) -> None:
    """Check for alarms, and report them to RECEIVER_ALARM_URL and RECEIVER_ALARM_MAIL_TO.

    May run on every node at once, beside `serve`, which does the same: one of them does the checks.
    Exit code 6 if --once could not deliver a report.
    """
    with open_database(must_answer=once) as (settings, database):
        if not channels.has_channel(settings):
            warn("no alarm destination is configured; see `receiver alarms`")
        sender = _sender(settings, database, alarm=channels.signer(settings))
        watcher = Watcher(settings, database, sender.send, now_ms, period=every)

        def check() -> bool:
            watcher.check(force=once)
            return sender.drain()

        try:
            delivered = repeat(check, None if once else every)
        finally:
            with suppress(StoreError):
                watcher.release()
    sys.exit(Exit.OK if delivered else Exit.UNREACHABLE)


@click.group(invoke_without_command=True)
@click.option("--open", "only_open", is_flag=True, help="Leave out those that are resolved.")
@limit_option
@json_option
@click.pass_context
def alarms(context: click.Context, only_open: bool, limit: int, json_: bool) -> None:
    """List alarms, newest first, and what to do about each; acknowledge or snooze one."""
    if context.invoked_subcommand:
        return
    with open_database() as (_, database), database.read() as session:
        rows = handling.list_alarms(session, None, only_open=only_open, limit=limit)
        listed = [public_alarm(row) for row in rows]
    contents = [asdict(alarm) for alarm in listed]
    show({"alarms": contents}, "\n".join([table(contents, _ALARMS), *_advice(listed)]), json_)


def _advice(listed: Sequence[Alarm]) -> list[str]:
    return [
        f"{alarm.id}: {plain(alarm.action)} ({alarm.runbook})"
        for alarm in listed
        if alarm.state != "resolved"
    ]


@alarms.command("ack")
@click.argument("id_", metavar="ID")
@_note
@json_option
def ack(id_: str, note: str | None, json_: bool) -> None:
    """Acknowledge an alarm: what it is about by now is reported no more, what comes later is."""
    with open_database() as (_, database), database.write() as session:
        now = database_time(session, now_ms)
        alarm = handling.handle(session, id_, None, by=actor(), now=now, note=note)
    show(asdict(alarm), f"alarm {alarm.id} is acknowledged by {alarm.handled_by}", json_)


@alarms.command("snooze")
@click.argument("id_", metavar="ID")
@click.option("--for", "for_", required=True, metavar="DURATION", help="For how long, e.g. 2h.")
@_note
@json_option
def snooze(id_: str, for_: str, note: str | None, json_: bool) -> None:
    """Report nothing of an alarm for so long, but its end; then again, if it is still open."""
    ms = duration("--for", for_)
    with open_database() as (_, database), database.write() as session:
        now = database_time(session, now_ms)
        alarm = handling.handle(session, id_, None, by=actor(), now=now, note=note, ms=ms)
    show(asdict(alarm), f"alarm {alarm.id} is snoozed until {alarm.snoozed_until}", json_)
