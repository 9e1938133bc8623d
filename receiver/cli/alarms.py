"""Alarms, and the jobs that are expected at certain times: `watch`, `alarms`, `schedules`."""

import sys
from collections.abc import Sequence
from contextlib import suppress

import click
from msgspec import convert, to_builtins
from msgspec.structs import asdict

from receiver.alarms import channels, handling
from receiver.alarms.handling import Alarm, public_alarm
from receiver.alarms.watcher import PERIOD_SECONDS, Watcher
from receiver.cli.options import duration, json_option, limit_option, yes_option
from receiver.cli.output import Exit, plain, show, table, warn
from receiver.cli.serve import actor, open_database, record_action, remove, repeat
from receiver.database.engine import database_time
from receiver.errors import StoreError
from receiver.lib.clock import now_ms
from receiver.lib.safe_http import SafeClient
from receiver.outbound.mail import Mailer
from receiver.outbound.sender import Sender
from receiver.schedules import registry
from receiver.schedules.registry import Terms, public_schedule

_SCHEDULES = ("name", "instance", "object", "cron", "tz", "state", "next_due_local", "job")
_ALARMS = ("id", "severity", "state", "kind", "subject", "count", "detail", "raised_at")
_note = click.option("--note", metavar="TEXT", help="What others should know; shown with it.")


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
        signers = {"alarm": channels.signer(settings)}
        http, mailer = SafeClient(settings.forward_allow), Mailer(settings)
        sender = Sender(database, http, mailer, signers, now_ms)
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


@click.group()
def schedules() -> None:
    """Expect jobs at certain times: an alarm says when none started, or one did not end."""


@schedules.command("add")
@click.argument("name")
@click.option("--instance", required=True, help="Whose jobs are expected.")
@click.option("--object", help="Jobs of this object only.")
@click.option("--cron", required=True, help="When they are due, e.g. '0 2 * * *'.")
@click.option("--tz", default="UTC", show_default=True, help="Zone of that, e.g. Europe/Berlin.")
@click.option("--start-grace", required=True, metavar="DURATION", help="Until a job must start.")
@click.option("--run-grace", required=True, metavar="DURATION", help="Until it must have ended.")
@json_option
def add(json_: bool, **terms: str | None) -> None:
    """Expect jobs of an instance; both graces count from the due time."""
    with open_database() as (settings, database), database.write() as session:
        now = database_time(session, now_ms)
        schedule = registry.make_schedule(convert(terms, Terms), now)
        registry.add_schedule(session, schedule, settings)
        record_action(session, "schedule.add", schedule.name)
    added = public_schedule(schedule, now)
    show(to_builtins(added), f"{schedule.name} added; due next at {added.next_due_local}", json_)


@schedules.command("list")
@json_option
def list_(json_: bool) -> None:
    """List schedules, each with its state as of the last check, and its next due time."""
    with open_database() as (_, database), database.read() as session:
        now = database_time(session, now_ms)
        listed = registry.list_schedules(session)
        rows = [to_builtins(public_schedule(schedule, now)) for schedule in listed]
    show({"schedules": rows}, table(rows, _SCHEDULES), json_)


@schedules.command("show")
@click.argument("name")
@json_option
def show_(name: str, json_: bool) -> None:
    """Show a schedule: its state, when it is due next, and the job that fulfilled it last."""
    with open_database() as (_, database), database.read() as session:
        now = database_time(session, now_ms)
        facts = to_builtins(public_schedule(registry.get_schedule(session, name), now))
    lines = [f"{fact.replace('_', ' '):<16}{plain(value)}" for fact, value in facts.items()]
    show(facts, "\n".join(lines), json_)


@schedules.command("remove")
@click.argument("name")
@yes_option
def remove_schedule(name: str, yes: bool) -> None:
    """Remove a schedule: its jobs are expected no longer, and its alarms are resolved."""
    find, delete = registry.get_schedule, registry.remove_schedule
    remove("schedule", name, find, delete, "Its jobs are expected no longer.", yes=yes)
