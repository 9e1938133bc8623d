"""`receiver doctor`: whether everything is set up so that nothing is lost; a check a question."""

import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import click
import httpx

from receiver.alarms.handling import list_alarms, public_alarm
from receiver.callbacks.events import get_event
from receiver.callbacks.trigger import TIMEOUT_SECONDS, send_signed
from receiver.cli.options import json_option
from receiver.cli.output import Exit, count, show
from receiver.database import durability, migrations
from receiver.database.durability import filesystem_of
from receiver.database.engine import Database, database_time
from receiver.errors import StoreError
from receiver.instances import registry
from receiver.instances.encryption import SecretBox, find_outdated
from receiver.instances.keys import InstanceKeys, Keys, find_shared
from receiver.lib.clock import MINUTE_MS, now_ms
from receiver.openconnectors.signatures import SHORT_KEY_BYTES
from receiver.reconcile import claims
from receiver.settings import Settings, database_name

MIB = 2**20
MIN_FREE = 100 * MIB
LOW_FREE = 1024 * MIB
LOW_SHARE = 0.2  # of a disk
CLOCK_WARNING_MS, CLOCK_FAILURE_MS = 5_000, 60_000
MIN_POSTGRESQL = 150_000
# File locks and syncs do not hold there what SQLite needs.
NETWORKS = re.compile(r"nfs|cifs|smb|9p|ceph|lustre|afs|gluster|sshfs|fuse\.|ocfs2|gfs2")
SYNCHRONOUS = {"2": "FULL", "3": "EXTRA"}
HOUR_SECONDS = 3600
UNASKED_MS = 10 * MINUTE_MS  # overdue for as long, and no `reconcile` has come by
MAX_SCHEDULE_SECONDS = 14 * 24 * HOUR_SECONDS
MAX_PROXIES = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. advice -- what to do about it; empty if all is well."""

    level: Literal["ok", "warn", "fail"]
    message: str
    advice: str = ""


ok = partial(Finding, "ok")
warn = partial(Finding, "warn")  # it may go wrong
fail = partial(Finding, "fail")  # it does go wrong, or will


@dataclass(frozen=True, slots=True)
class Context:
    """What is checked. clock -- this machine's, ms since the epoch."""

    settings: Settings
    database: Database
    secret_box: SecretBox
    clock: Callable[[], int] = now_ms


Check: TypeAlias = Callable[[Context], Finding]


# --- disk, database, clock


def durable(context: Context) -> Finding:
    """Whether what was answered with 200 survives a power cut."""
    promised, file = durability.durability_settings(context.database), context.database.file
    return _postgresql(promised) if file is None else _sqlite(promised, filesystem_of(file))


def _postgresql(promised: dict[str, str]) -> Finding:
    off = [setting for setting, value in promised.items() if value == "off"]
    version = int(promised["server_version_num"])
    if off:
        advice = "turn it on in postgresql.conf: acknowledged callbacks can be lost without"
        return fail(f"PostgreSQL runs with {' and '.join(off)} off", advice)
    if version < MIN_POSTGRESQL:
        return warn(f"PostgreSQL {version // 10_000} is not tested", "upgrade it")
    text = f"fsync and full_page_writes on, synchronous_commit {promised['synchronous_commit']}"
    return ok(f"PostgreSQL {version // 10_000}: {text}")


def _sqlite(promised: dict[str, str], kind: str) -> Finding:
    journal, synchronous = promised["journal_mode"], promised["synchronous"]
    if NETWORKS.search(kind):
        text = f"the SQLite file lies on a network's file system ({kind})"
        return fail(text, "put it on a local disk, or use PostgreSQL")
    if kind in ("tmpfs", "ramfs"):
        text = f"the SQLite file lies in memory ({kind})"
        return fail(text, "put it on a disk: a restart of the machine empties it")
    if journal != "wal" or synchronous not in SYNCHRONOUS:
        text = f"SQLite: journal {journal}, synchronous {synchronous}"
        return fail(text, "start `receiver serve` once: it sets WAL and FULL")
    return ok(f"SQLite: WAL, synchronous {SYNCHRONOUS[synchronous]}, on {kind}")


def writable(context: Context) -> Finding:
    """Whether the database commits now, its lock included."""
    context.database.check_writable()
    name = database_name(context.settings.database_url)
    return ok(f"{name} can be reached and commits")


def schema(context: Context) -> Finding:
    """Whether the schema is one that this release works with."""
    file, needed = context.database.file, migrations.newest()
    if file is not None and not file.exists():
        advice = "look at RECEIVER_DATABASE_URL, or start `receiver serve`, which makes it"
        return fail(f"there is no file {file}", advice)
    revision = migrations.current(context.database)
    if revision == needed:
        return ok(f"at {revision}, as this release needs")
    text = f"at {revision or 'nothing'}, but this release needs {needed}"
    if not migrations.is_known(revision):
        return fail(text, "look at RECEIVER_DATABASE_URL, or install a later release")
    return fail(text, "run `receiver db upgrade`")


def clocks(context: Context) -> Finding:
    """Whether this machine and the database agree on the time."""
    before = context.clock()
    with context.database.read() as session:
        there = database_time(session, lambda: before)
    ahead = (before + context.clock()) // 2 - there
    advice = "let NTP set both clocks"
    if abs(ahead) >= CLOCK_WARNING_MS:
        text = f"this machine's clock is {ahead / 1000:+.0f} s off the database's"
        serious = abs(ahead) >= CLOCK_FAILURE_MS
        return (fail if serious else warn)(text, advice)
    if durability.last_beat(context.database) > before + CLOCK_FAILURE_MS:
        return warn("a node wrote at a time that is still to come", advice)
    return ok("as the database's")


def disk(context: Context) -> Finding:
    """Whether there is room for what comes; PostgreSQL's disk cannot be seen from here."""
    file = context.database.file
    places = {"uploads' spool": Path(tempfile.gettempdir())}
    if file is not None:
        places["database"] = file.parent
    usages = {what: shutil.disk_usage(place) for what, place in places.items()}
    left = []
    # The fullest first, or a warning of one would hide that another is full.
    for what, usage in sorted(usages.items(), key=lambda item: item[1].free):
        text = f"{usage.free // MIB} MiB free for the {what}"
        if usage.free < MIN_FREE:
            return fail(text, "free some now: callbacks get 503 once it is full")
        if usage.free < LOW_FREE or usage.free < LOW_SHARE * usage.total:
            return warn(text, "make room, or `receiver prune --older-than 30d`")
        left.append(text)
    return ok(", ".join(left))


# --- keys, instances, settings


def keys(context: Context) -> Finding:
    """Whether all keys and vendor secrets open, and none is easily guessed or shared."""
    instances = _keys(context)
    with context.database.read() as session:
        broken = registry.list_undecryptable(session, context.secret_box)
    if broken := broken + [name for name, held in instances.items() if held.broken]:
        advice = "add the key that encrypted them to RECEIVER_ENCRYPTION_KEYS, or add them anew"
        return fail(f"secrets of {_join(broken)} cannot be decrypted", advice)
    outdated = find_outdated(context.database, context.secret_box)
    if outdated.encrypted:
        text = f"an older encryption key is needed for {count(outdated.encrypted, 'secret')}"
        return warn(text, "run `receiver keys reencrypt`; after that the key can go")
    if unusable := ", ".join(outdated.unusable):
        advice = "run `receiver keys remove KEY`, or `receiver subscriptions rotate-secret NAME`"
        return warn(f"cannot be decrypted: {unusable}", advice)
    short = [
        f"{key.id} of {name}"
        for name, held in instances.items()
        for key in held.keys
        if len(key.secret) < SHORT_KEY_BYTES
    ]
    if short:
        text = f"shorter than {SHORT_KEY_BYTES} bytes: {', '.join(short)}"
        return warn(text, "choose a longer key at the vendor, and rotate it")
    if shared := find_shared(instances):
        text = f"{' and '.join(shared)} have the same key"
        return warn(text, "give each a key of its own: bodies can be replayed across")
    return ok(f"{sum(len(held.keys) for held in instances.values())} in use, all can be decrypted")


def instances(context: Context) -> Finding:
    """Whether there is an instance, and none without a key."""
    instances = _keys(context)
    without = [name for name, held in instances.items() if not held.keys and not held.broken]
    if not instances:
        advice = "run `receiver instances add NAME --signature-key-file FILE`"
        return fail("there is none, so every callback is rejected", advice)
    if without:
        advice = "run `receiver keys add INSTANCE --file FILE`, or remove it"
        return fail(f"all callbacks of {_join(without)} are rejected: no key", advice)
    return ok(_join(list(instances)))


def schedule(context: Context) -> Finding:
    """Whether the vendor's retry schedule can be meant so."""
    waits = context.settings.vendor_retry_seconds
    total = sum(waits)
    text = f"{count(len(waits), 'retry')}, the last {total / HOUR_SECONDS:.1f} h after the first"
    if list(waits) != sorted(waits) or not HOUR_SECONDS <= total <= MAX_SCHEDULE_SECONDS:
        advice = "OPEN_CONNECTORS_RETRY_SECONDS is in seconds, the shortest wait first"
        return warn(text, advice)
    return ok(text)


def workers(_context: Context) -> Finding:
    """Whether /metrics covers all workers, as `receiver serve` ensures."""
    name, advice = "PROMETHEUS_MULTIPROC_DIR", "under plain gunicorn, set it to an empty folder"
    folder = os.environ.get(name)
    several = os.environ.get("WEB_CONCURRENCY", "1") not in ("", "0", "1")
    if folder is None and several:
        text = f"WEB_CONCURRENCY asks for several workers, but {name} is not set"
        return warn(f"{text}: /metrics would show one", advice)
    if folder is not None and not os.access(Path(folder), os.W_OK | os.X_OK):
        return fail(f"{name} is no folder that can be written to", advice)
    return ok("metrics of all workers are counted")


def _keys(context: Context) -> Mapping[str, InstanceKeys]:
    keys = Keys(context.secret_box, context.settings.default_keys)
    return keys.refresh(context.database).instances


def _join(names: list[str]) -> str:
    return ", ".join(sorted(set(names)))


# --- the way of a callback, from the public URL to the database, proxies and all


def public_url(context: Context) -> Finding:
    """Whether a signed callback gets through the public URL into this very database."""
    base, keys = context.settings.public_url, _keys(context)
    if base is None:
        text = "RECEIVER_PUBLIC_URL is not set: uploads through us are rejected, this is not tested"
        return warn(text, "set it to the URL under which the vendor reaches us")
    instance = min((name for name, held in keys.items() if held.keys), default=None)
    if instance is None:
        return warn("not tested: there is no usable key", "see the check `keys`")
    url, newest = f"{base}/callbacks/{instance}", keys[instance].keys[0]
    sent = send_signed(url, instance, newest, now_ms())
    if sent.event is None:
        return fail(*sent.problem(base))
    if get_event(context.database, sent.event) is None:
        text = f"{base} stored a signed callback, but not in this database"
        return fail(text, "doctor and receiver must have the same RECEIVER_DATABASE_URL")
    return ok(f"a signed callback through {base} was stored as event {sent.event}")


def proxies(context: Context) -> Finding:
    """Whether who sends is known by address: a sender must not be able to choose it.

    A delivery to an instance that does not exist claims to come from elsewhere, by as many proxies
    as may be trusted; it is counted under the address that the receiver believes.
    """
    base, hops = context.settings.public_url, context.settings.trusted_proxies
    if base is None:
        return warn("not tested", "set RECEIVER_PUBLIC_URL")
    forged = f"198.18.{secrets.randbelow(256)}.{secrets.randbelow(256)}"  # nobody's, by RFC 2544
    rejections_of = partial(durability.count_rejections, context.database)
    before = rejections_of(None)
    headers = {"X-Forwarded-For": ", ".join([forged] * MAX_PROXIES)}
    try:
        httpx.post(f"{base}/callbacks/.doctor", headers=headers, timeout=TIMEOUT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL):
        return warn("not tested: there was no answer", "see the check of the public URL")
    # It is recorded after the answer.
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (is_recorded := rejections_of(None) != before) and time.monotonic() < deadline:
        time.sleep(0.05)
    if rejections_of(forged):
        text = f"a sender can choose its address: {hops} proxies are trusted, but fewer are there"
        return fail(text, "set RECEIVER_TRUSTED_PROXIES to how many proxies there are")
    if not hops and urlsplit(base).scheme == "https":
        text = "none is trusted, but one must be there to end TLS: all senders look like one"
        return warn(text, "set RECEIVER_TRUSTED_PROXIES to how many proxies there are")
    if not is_recorded:
        return warn("not tested: nothing was recorded", "see the check of the public URL")
    return ok(f"{hops} trusted, and a forged X-Forwarded-For was not believed")


# --- what needs a person


def open_alarms(context: Context) -> Finding:
    """Whether an alarm is open, as of the last check for alarms."""
    with context.database.read() as session:
        rows = list_alarms(session, None, only_open=True, limit=1000)
        if not rows:
            return ok("none is open")
        newest = public_alarm(rows[0])
    about = f"{newest.title} ({newest.subject}, {newest.severity})"
    text = f"{len(rows)} open, the newest since {newest.raised_at}: {about}"
    return warn(text, "run `receiver alarms --open`")


def reconcile(context: Context) -> Finding:
    """Whether somebody asks where a callback is overdue: nothing else shows that it was lost."""
    with context.database.read() as session:
        before = database_time(session, context.clock) - UNASKED_MS
        unasked = claims.count_unasked(session, before, context.settings.overdue_after)
    if not unasked:
        return ok("no overdue job waits to be asked for")
    text = (
        f"not looked for: {count(sum(unasked.values()), 'overdue job')} of {_join(list(unasked))}"
    )
    advice = "run `receiver reconcile --every 60` beside `serve`; it asks with vendor secrets"
    return warn(f"{text} never asked for", advice)


# --- the command

CHECKS: dict[str, Check] = {
    "database": writable,
    "durability": durable,
    "clock": clocks,
    "disk": disk,
    "keys": keys,
    "instances": instances,
    "public url": public_url,
    "proxies": proxies,
    "alarms": open_alarms,
    "reconcile": reconcile,
}
OFFLINE: dict[str, Check] = {"schedule": schedule, "workers": workers}


@click.command()
@json_option
def doctor(json_: bool) -> None:
    """Check that everything is set up so that nothing is lost; nothing is changed.

    A signed test callback is sent through RECEIVER_PUBLIC_URL. Exit code 1 if a check fails; what
    only may go wrong is a warning.
    """
    settings = Settings.from_env(os.environ)
    secret_box = SecretBox(settings.encryption_keys)
    with closing(Database(settings.database_url)) as database:
        findings = dict(run_checks(Context(settings, database, secret_box)))
    text = "\n".join(_line(name, finding) for name, finding in findings.items())
    shown = [{"check": name, **asdict(finding)} for name, finding in findings.items()]
    show({"checks": shown}, text, json_)
    sys.exit(
        Exit.JOB_FAILED
        if any(finding.level == "fail" for finding in findings.values())
        else Exit.OK
    )


def run_checks(context: Context) -> Iterator[tuple[str, Finding]]:
    """Do every check, or without a database of this release, those that need none."""
    first = _run(schema, context)
    yield "schema", first
    checks = OFFLINE if first.level == "fail" else {**CHECKS, **OFFLINE}
    for name, check in checks.items():
        yield name, _run(check, context)


def _run(check: Check, context: Context) -> Finding:
    try:
        return check(context)
    except StoreError as error:
        return fail(str(error), "see `The database is down` in docs/runbook.md")


def _line(check: str, finding: Finding) -> str:
    advice = f"; {finding.advice}" if finding.advice else ""
    return f"{finding.level:<5} {check:<11} {finding.message}{advice}"
