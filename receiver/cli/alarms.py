"""Alarms: `watch` checks for them, `alarms` lists, acknowledges and snoozes them."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import click
from msgspec.structs import asdict

from receiver.alarms import channels, handling
from receiver.alarms.shown import Alarm, shown
from receiver.alarms.watcher import PERIOD_SECONDS, Watcher
from receiver.cli.output import OK, UNREACHABLE, as_json, plain, show, table, warn
from receiver.cli.serve import actor, open_database
from receiver.database.engine import database_time
from receiver.errors import StoreError
from receiver.lib.clock import now_ms
from receiver.lib.safe_http import SafeClient
from receiver.outbound.mail import Mailer
from receiver.outbound.sender import Sender
from receiver.settings import duration_ms

_COLUMNS = ("id", "severity", "state", "kind", "subject", "count", "detail", "raised_at")
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
        delivered = True
        try:
            while True:
                try:
                    watcher.look(force=once)
                    delivered = sender.drain()
                except StoreError as error:
                    if once:
                        raise
                    warn(str(error))
                if once:
                    break
                time.sleep(every)
        finally:
            with suppress(StoreError):
                watcher.release()
    sys.exit(OK if delivered else UNREACHABLE)


@click.group(invoke_without_command=True)
@click.option("--open", "only_open", is_flag=True, help="Leave out those that are resolved.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many."
)
@as_json
@click.pass_context
def alarms(context: click.Context, only_open: bool, limit: int, json_: bool) -> None:
    """List alarms, newest first, and what to do about each; acknowledge or snooze one."""
    if context.invoked_subcommand:
        return
    with open_database() as (_, database), database.read() as session:
        rows = handling.list_alarms(session, None, only_open=only_open, limit=limit)
        listed = [shown(row) for row in rows]
    contents = [asdict(alarm) for alarm in listed]
    show({"alarms": contents}, "\n".join([table(contents, _COLUMNS), *_advice(listed)]), json_)


def _advice(listed: Sequence[Alarm]) -> list[str]:
    return [
        f"{alarm.id}: {plain(alarm.action)} ({alarm.runbook})"
        for alarm in listed
        if alarm.state != "resolved"
    ]


@alarms.command("ack")
@click.argument("id_", metavar="ID")
@_note
@as_json
def ack(id_: str, note: str | None, json_: bool) -> None:
    """Acknowledge an alarm: what it is about by now is reported no more, what comes later is."""
    with open_database() as (_, database), database.write() as session:
        row = handling.get_open_alarm(session, id_, None)
        handling.acknowledge(session, row, actor(), database_time(session, now_ms), note)
        alarm = shown(row)
    show(asdict(alarm), f"alarm {alarm.id} is acknowledged by {alarm.handled_by}", json_)


@alarms.command("snooze")
@click.argument("id_", metavar="ID")
@click.option("--for", "for_", required=True, metavar="DURATION", help="For how long, e.g. 2h.")
@_note
@as_json
def snooze(id_: str, for_: str, note: str | None, json_: bool) -> None:
    """Report nothing of an alarm for so long, but its end; then again, if it is still open."""
    try:
        ms = duration_ms(for_)
    except ValueError as error:
        raise click.UsageError(f"--for {for_}: {error}") from None
    with open_database() as (_, database), database.write() as session:
        row, now = handling.get_open_alarm(session, id_, None), database_time(session, now_ms)
        handling.snooze(session, row, actor(), now, ms=ms, note=note)
        alarm = shown(row)
    show(asdict(alarm), f"alarm {alarm.id} is snoozed until {alarm.snoozed_until}", json_)


COMMANDS = (watch, alarms)
