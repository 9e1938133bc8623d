"""Jobs that are expected at certain times: `schedules`."""

import click
from msgspec import convert, to_builtins

from receiver.cli.output import as_json, confirm, confirmed, plain, show, table
from receiver.cli.serve import open_database, record_action
from receiver.database.engine import database_time
from receiver.lib.clock import now_ms
from receiver.schedules import registry
from receiver.schedules.registry import Terms
from receiver.schedules.shown import as_shown

_COLUMNS = ("name", "instance", "object", "cron", "tz", "state", "next_due_local", "job")


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
@as_json
def add(json_: bool, **terms: str | None) -> None:
    """Expect jobs of an instance; both graces count from the due time."""
    with open_database() as (settings, database), database.write() as session:
        now = database_time(session, now_ms)
        one = registry.make_schedule(convert(terms, Terms), now)
        registry.add_schedule(session, one, settings)
        record_action(session, "schedule.add", one.name)
    shown = as_shown(one, now)
    show(to_builtins(shown), f"{one.name} added; due next at {shown.next_due_local}", json_)


@schedules.command("list")
@as_json
def list_(json_: bool) -> None:
    """List schedules, each with its state as of the last check, and its next due time."""
    with open_database() as (_, database), database.read() as session:
        now = database_time(session, now_ms)
        rows = [to_builtins(as_shown(one, now)) for one in registry.list_schedules(session)]
    show({"schedules": rows}, table(rows, _COLUMNS), json_)


@schedules.command("show")
@click.argument("name")
@as_json
def show_(name: str, json_: bool) -> None:
    """Show a schedule: its state, when it is due next, and the job that fulfilled it last."""
    with open_database() as (_, database), database.read() as session:
        now = database_time(session, now_ms)
        facts = to_builtins(as_shown(registry.get_schedule(session, name), now))
    lines = [f"{fact.replace('_', ' '):<16}{plain(value)}" for fact, value in facts.items()]
    show(facts, "\n".join(lines), json_)


@schedules.command("remove")
@click.argument("name")
@confirmed
def remove(name: str, yes: bool) -> None:
    """Remove a schedule: its jobs are expected no longer, and its alarms are resolved."""
    confirm(f"Remove {plain(name)}? Its jobs are expected no longer.", yes=yes)
    with open_database() as (_, database), database.write() as session:
        registry.remove_schedule(session, name)
        record_action(session, "schedule.remove", name)
    click.echo(f"{name} removed")


COMMANDS = (schedules,)
