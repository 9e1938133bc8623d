"""Looking after jobs and the database: reconcile, schedules, prune, erase, reread, audit."""

import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click
from msgspec import convert, to_builtins

from receiver.callbacks.events import find_readable
from receiver.callbacks.events import reread as reread_event
from receiver.callbacks.intake import Intake
from receiver.callbacks.store import Store
from receiver.cli.options import duration, json_option, yes_option
from receiver.cli.output import Exit, Failure, confirm, count, plain, show, table, warn
from receiver.cli.serve import actor, open_database, record_action, remove, repeat
from receiver.client import NoSuchJob
from receiver.database import audit as audit_log
from receiver.database.engine import Database, database_time
from receiver.database.retention import Retention
from receiver.errors import StoreError
from receiver.instances.encryption import SecretBox
from receiver.instances.keys import Keys
from receiver.jobs.erasure import erase_job
from receiver.jobs.queries import find_jobs
from receiver.lib.clock import iso, now_ms
from receiver.lib.http_client import check_environment
from receiver.openconnectors.client import VendorClient
from receiver.reconcile.reconciler import Reconciler
from receiver.reconcile.results import Report
from receiver.schedules import registry
from receiver.schedules.registry import Terms, public_schedule
from receiver.settings import INSTANCE_NAME, Settings

_EVERY = click.IntRange(1, 86_400)
_SCHEDULES = ("name", "instance", "object", "cron", "tz", "state", "next_due_local", "job")
_ENTRY = ("id", "at", "actor", "action", "subject", "detail", "request")
# What is deleted, as a noun for one of it.
_NOUNS = {
    "bodies": "body",
    "errors": "failed record",
    "outbound": "outgoing delivery",
    "rejections": "rejected delivery",
    "counts": "rejection count",
    "addresses": "sender address",
    "timeline": "timeline entry",
}


@click.command()
@click.option("--all", "everything", is_flag=True, help="Ask for every job in progress.")
@click.option("--every", type=_EVERY, metavar="SECONDS", help="Repeat, with this pause.")
@click.option("--redeliver", is_flag=True, help="Have the vendor send what it holds back for us.")
@click.option(
    "--fetch-results",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="Save the files of finished downloads before the vendor deletes them.",
)
@json_option
def reconcile(
    everything: bool,
    every: int | None,
    redeliver: bool,
    fetch_results: Path | None,
    json_: bool,
) -> None:
    """Ask the vendor for jobs whose callback is overdue, and fetch failed records.

    May run on every node at once. Exit code 6 if the vendor failed for an instance.
    """
    check_environment()
    with open_database(must_answer=every is None) as (settings, database):
        keys = Keys(SecretBox(settings.encryption_keys), settings.default_keys)
        intake = Intake(settings, database, keys, now_ms)
        with closing(VendorClient(settings.vendor_url)) as vendor, closing(intake.writer):
            reconciler = Reconciler(settings, database, intake, vendor, actor=actor())

            def one_pass() -> bool:
                done = reconciler.one_pass(
                    everything=everything, redeliver=redeliver, results=fetch_results
                )
                show(asdict(done), _describe(done), json_)
                return not done.blocked

            is_well = repeat(one_pass, every)
    sys.exit(Exit.OK if is_well else Exit.UNREACHABLE)


def _describe(done: Report) -> str:
    found, errors = count(done.found, "new job"), count(done.errors, "failed record")
    checked = f"checked {count(done.asked, 'job')}: {done.ended} finished"
    lines = [f"{checked}; {found} discovered; {errors} fetched"]
    if done.queued:
        sent = f", {done.redelivered} sent again" if done.redelivered else ""
        lines.append(f"the vendor holds back {count(done.queued, 'delivery')}{sent}")
    if done.results:
        lines.append(f"{count(done.results, 'result file')} saved")
    lines += [
        f"not saved: job {plain(job['job'])} of {job['instance']}: {plain(job['why'])}"
        for job in done.unsaved
    ]
    lines += [f"not finished: {left['instance']}: {plain(left['why'])}" for left in done.unfinished]
    lines += [
        f"not asked: {left['instance']}: {left['why']}; `receiver instances set` gives it some, or"
        " `receiver instances add` if it is not listed"
        for left in done.unasked
    ]
    lines += [
        f"upload with unknown result: {plain(upload['file'])}, sent for {upload['instance']} at"
        f" {upload['at']}; look at the vendor's job list before sending it again"
        for upload in done.unclear
    ]
    return "\n".join(lines)


@click.command()
@click.option(
    "--older-than",
    metavar="DURATION",
    help="Instead of RECEIVER_KEEP_BODIES and RECEIVER_KEEP_EVENTS, e.g. 90d.",
)
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
@yes_option
@json_option
def prune(older_than: str | None, dry_run: bool, yes: bool, json_: bool) -> None:
    """Delete what is older than RECEIVER_KEEP_BODIES and RECEIVER_KEEP_EVENTS; outcomes stay.

    Hashes stay too: a callback that comes again is still a duplicate. A running receiver does this
    each hour by itself; both may run at once, and what was interrupted goes on where it stood. Asks
    on a terminal; elsewhere --yes is needed for less time than those settings say.
    """
    age = None if older_than is None else duration("--older-than", older_than)
    with open_database() as (settings, database):
        retention = Retention(settings, database, now_ms, actor=actor())
        if dry_run:
            due = retention.count_expired(age)
            show(due, f"{_counts(due)} would be deleted", json_)
            return
        limit = older_than or "RECEIVER_KEEP_BODIES and RECEIVER_KEEP_EVENTS"
        question = f"Delete what is older than {limit}?"
        confirm(question, yes=yes, needed=_is_shorter(age, settings))
        deleted = Counter[str]()
        for kind, rows in retention.run(age):
            deleted[kind] += rows
    show(deleted, f"{_counts(deleted)} deleted", json_)


def _is_shorter(age: int | None, settings: Settings) -> bool:
    return age is not None and age < max(settings.keep_bodies, settings.keep_events)


@click.command()
@click.option("--job", "job_id", required=True, metavar="ID", help="The job's id.")
@click.option("--instance", help="Needed where several instances have that id.")
@yes_option
@json_option
def erase(job_id: str, instance: str | None, yes: bool, json_: bool) -> None:
    """Erase what may be about people from a job, for good; its outcome and counts stay.

    Bodies, failed records, message, file name, callback payload and what its client was sent go. A
    callback or poll that comes later does not bring them back. Asks on a terminal; elsewhere --yes
    is needed.
    """
    with open_database() as (_, database):
        name = _instance_of(database, job_id, instance)
        confirm(f"Erase what may be about people from job {job_id} of {name}, for good?", yes=yes)
        with database.write() as session:
            erased = erase_job(session, job_id, name, database_time(session, now_ms))
            if erased is not None:
                record_action(session, "erase", f"{name}/{job_id}", f"{_counts(erased)} erased")
        if erased is None:
            raise NoSuchJob(job_id, name)
        if not _is_log_empty(database):
            warn("the database's log may still hold it until it is overwritten")
    show({"job": job_id, "instance": name, **erased}, f"{_counts(erased)} erased", json_)


def _is_log_empty(database: Database) -> bool:
    try:
        return database.truncate_wal()
    except StoreError:  # the job is erased all the same
        return False


def _instance_of(database: Database, job_id: str, instance: str | None) -> str:
    is_name = "\0" not in job_id and (instance is None or INSTANCE_NAME.fullmatch(instance))
    rows = find_jobs(database, job_id, instance) if is_name else []
    if not rows:
        raise NoSuchJob(job_id, instance)
    if len(rows) > 1:
        names = ", ".join(sorted(row.instance for row in rows))
        text = f"job {job_id} exists in {names}: name one with --instance"
        raise Failure(Exit.USAGE, "ambiguous_job", text)
    return rows[0].instance


@click.command()
@click.option("--dry-run", is_flag=True, help="Only count the events that can be read by now.")
@json_option
def reread(dry_run: bool, json_: bool) -> None:
    """Read events again that an older release stored as `unreadable`, and merge them.

    May run beside a receiver, and again: what was merged is no longer unreadable.
    """
    with open_database() as (settings, database):
        readable = list(find_readable(database))
        if dry_run or not readable:
            content, text = {"readable": len(readable)}, "can be read by now"
            show(content, f"{count(len(readable), 'unreadable event')} {text}", json_)
            return
        keys = Keys(SecretBox(settings.encryption_keys), settings.default_keys)
        store = Store(database, keys, now_ms)
        merged = sum(reread_event(database, store, n) for n in readable)
        text = f"{merged} of {count(len(readable), 'unreadable event')} merged"
        with database.write() as session:
            record_action(session, "reread", "unreadable events", text)
    show({"readable": len(readable), "merged": merged}, text, json_)


def _counts(rows: Mapping[str, int]) -> str:
    counts = [
        count(number, _NOUNS.get(kind, kind.removesuffix("s")))
        for kind, number in rows.items()
        if number
    ]
    return ", ".join(counts) or "nothing"


@click.command()
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many."
)
@click.option(
    "--verify", is_flag=True, help="Check the chain instead; exit code 1 if it is broken."
)
@json_option
def audit(limit: int, verify: bool, json_: bool) -> None:
    """List who did what, newest first.

    Note the last hash elsewhere from time to time: only that shows a chain rewritten as a whole.
    """
    with open_database() as (_, database), database.read() as session:
        faults = list(audit_log.find_faults(session)) if verify else []
        rows = [
            {
                **{name: getattr(entry, name) for name in _ENTRY},
                "at": iso(entry.at),
                "hash": entry.hash.hex(),
            }
            for entry in audit_log.list_entries(session, 1 if verify else limit)
        ]
    if not verify:
        show({"entries": rows}, table(rows, _ENTRY), json_)
        return
    number, digest = (rows[0]["id"], rows[0]["hash"]) if rows else (0, None)
    valid = f"{number} entries, nothing was changed; the last hash is {digest}"
    content = {"valid": not faults, "faults": faults, "entries": number, "hash": digest}
    show(content, "\n".join(faults) or valid, json_)
    sys.exit(Exit.JOB_FAILED if faults else Exit.OK)


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
def add_schedule(json_: bool, **terms: str | None) -> None:
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
def list_schedules(json_: bool) -> None:
    """List schedules, each with its state as of the last check, and its next due time."""
    with open_database() as (_, database), database.read() as session:
        now = database_time(session, now_ms)
        listed = registry.list_schedules(session)
        rows = [to_builtins(public_schedule(schedule, now)) for schedule in listed]
    show({"schedules": rows}, table(rows, _SCHEDULES), json_)


@schedules.command("show")
@click.argument("name")
@json_option
def show_schedule(name: str, json_: bool) -> None:
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
