"""Commands for alarms: watch, alarms."""

import contextlib
import json
import sys
import time

import click

from receiver.alarms import channels
from receiver.alarms.conditions import kind_of
from receiver.alarms.watcher import PERIOD_SECONDS, Watcher, list_alarms
from receiver.cli.exits import OK, UNREACHABLE
from receiver.cli.output import as_json, show, table, timed
from receiver.cli.serve import opened
from receiver.database.alarm_models import Alarm
from receiver.errors import StoreError
from receiver.lib.clock import now_ms
from receiver.lib.safe_http import SafeClient
from receiver.outbound.mail import Mailer
from receiver.outbound.sender import Sender

SHOWN = (
    "severity",
    "kind",
    "subject",
    "count",
    "detail",
    "raised_at",
    "last_seen_at",
    "cleared_at",
)


@click.command()
@click.option("--once", is_flag=True, help="Check once, even if another node does the checks.")
@click.option(
    "--every",
    type=click.IntRange(1),
    default=PERIOD_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="The pause between two checks.",
)
def watch(once: bool, every: int) -> None:
    """Check for alarms, and report them to RECEIVER_ALARM_URL and _MAIL_TO.

    May run on every node at once: one of them does the checks. `serve` does the same by itself as
    soon as one of those is set. Exit code 6 if --once could not deliver a report.
    """
    with opened() as (settings, database):
        if not channels.has_channel(settings):
            click.echo(
                "warning: no alarm destination is configured; see `receiver alarms`", err=True
            )
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
                    click.echo(f"receiver: {error}", err=True)
                if once:
                    break
                time.sleep(every)
        finally:
            with contextlib.suppress(StoreError):
                watcher.release()
    sys.exit(OK if delivered else UNREACHABLE)


@click.command()
@click.option("--open", "only_open", is_flag=True, help="Leave out those that are over.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json
def alarms(only_open: bool, limit: int, json_: bool) -> None:
    """List alarms, newest first; those that are over have a time when they were cleared."""
    with opened() as (_, database), database.read() as session:
        rows = timed(
            [_row(row) for row in list_alarms(session, None, only_open=only_open, limit=limit)]
        )
    show({"alarms": rows}, table(rows, SHOWN), json_)


def _row(alarm: Alarm) -> dict[str, object]:
    kind = kind_of(alarm.kind)
    shown = {name: getattr(alarm, name) for name in (*SHOWN[1:], "notified_at")}
    said = {"title": kind.title, "meaning": kind.meaning, "action": kind.action}
    examples = json.loads(alarm.examples)
    return {"severity": kind.severity, **shown, **said, "examples": examples}


COMMANDS = (watch, alarms)
