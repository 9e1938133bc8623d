"""Commands for alarms: watch, alarms."""

import json
import sys
import time
from typing import Any

import click

from receiver.alarms import store as kept
from receiver.alarms.channels import targets
from receiver.alarms.watcher import Watcher
from receiver.cli.exits import OK, UNREACHABLE
from receiver.cli.output import as_json, show, table, timed
from receiver.cli.serve import opened
from receiver.database.alarm_models import Alarm
from receiver.errors import StoreError
from receiver.lib.clock import now_ms
from receiver.outbound.forwarding import Forwarder

SHOWN = ("kind", "subject", "count", "detail", "raised_at", "last_seen_at", "cleared_at")


@click.command()
@click.option("--once", is_flag=True, help="Look once, though another node watches.")
@click.option("--every", type=click.IntRange(1), default=30, show_default=True, metavar="SECONDS")
def watch(once: bool, every: int) -> None:
    """Look for what is wrong, and tell of it as RECEIVER_ALARM_URL and _MAIL_TO have it.

    May run on every node at once: one of them watches. `serve` does the same by itself as soon as
    one of those is set. Exit code 6 if --once could not tell.
    """
    with opened() as (settings, database):
        forwarder = Forwarder(settings.forward_allow)
        told = targets(settings, forwarder)
        if not told:
            click.echo("warning: nobody is told; `receiver alarms` lists what is found", err=True)
        watcher = Watcher(settings, database, told, now_ms, period=1000 * every)
        while True:
            try:
                all_taken = watcher.one_pass(force=once)
            except StoreError as error:
                if once:
                    raise
                click.echo(f"receiver: {error}", err=True)
            if once:
                break
            time.sleep(every)
    sys.exit(OK if all_taken else UNREACHABLE)


@click.command()
@click.option("--open", "only_open", is_flag=True, help="Leave out those that are over.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json
def alarms(only_open: bool, limit: int, json_: bool) -> None:
    """List alarms, newest first; those that are over have a time when they were cleared."""
    with opened() as (_, database), database.read() as session:
        rows = timed(
            [_row(alarm) for alarm in kept.alarms(session, None, only_open=only_open, limit=limit)]
        )
    show({"alarms": rows}, table(rows, SHOWN), json_)


def _row(alarm: Alarm) -> dict[str, Any]:
    shown = {name: getattr(alarm, name) for name in (*SHOWN, "notified_at")}
    return {**shown, "examples": json.loads(alarm.examples)}


COMMANDS = (watch, alarms)
