"""Disk, database, clock: what a receiver stands on."""

import re
import shutil
import tempfile
from pathlib import Path

from receiver.cli.checkup import Finding, Patient, fail, warn, well
from receiver.database import durability, migrations

MIB = 2**20
LEAST_FREE = 100 * MIB
LITTLE_FREE = 1024 * MIB
LITTLE_SHARE = 0.2  # of a disk
CLOCK_WARNING_MS, CLOCK_FAILURE_MS = 5_000, 60_000
OLDEST_POSTGRESQL = 150_000
MOUNTS = Path("/proc/self/mountinfo")
# File locks and syncs do not hold there what SQLite needs.
NETWORKS = re.compile(r"nfs|cifs|smb|9p|ceph|lustre|afs|gluster|sshfs|fuse\.|ocfs2|gfs2")
SYNCHRONOUS = {"2": "FULL", "3": "EXTRA"}


def durable(patient: Patient) -> Finding:
    """Whether what was answered with 200 survives a power cut."""
    found, file = durability.promises(patient.database), durability.file_of(patient.database)
    return _postgresql(found) if file is None else _sqlite(found, filesystem_of(file))


def _postgresql(found: dict[str, str]) -> Finding:
    off = [setting for setting, value in found.items() if value == "off"]
    version = int(found["server_version_num"])
    if off:
        advice = "turn it on in postgresql.conf: acknowledged callbacks can be lost without"
        return fail("durability", f"PostgreSQL runs with {' and '.join(off)} off", advice)
    if version < OLDEST_POSTGRESQL:
        return warn("durability", f"PostgreSQL {version // 10_000} is not tested", "upgrade it")
    told = f"fsync and full_page_writes on, synchronous_commit {found['synchronous_commit']}"
    return well("durability", f"PostgreSQL {version // 10_000}: {told}")


def _sqlite(found: dict[str, str], kind: str) -> Finding:
    journal, synchronous = found["journal_mode"], found["synchronous"]
    if NETWORKS.search(kind):
        advice = "put it on a local disk, or use PostgreSQL"
        told = f"the SQLite file lies on a network's file system ({kind})"
        return fail("durability", told, advice)
    if kind in ("tmpfs", "ramfs"):
        told = f"the SQLite file lies in memory ({kind})"
        return fail("durability", told, "put it on a disk: a restart of the machine empties it")
    if journal != "wal" or synchronous not in SYNCHRONOUS:
        told = f"SQLite: journal {journal}, synchronous {synchronous}"
        return fail("durability", told, "start `receiver serve` once: it sets WAL and FULL")
    return well("durability", f"SQLite: WAL, synchronous {SYNCHRONOUS[synchronous]}, on {kind}")


def filesystem_of(file: Path) -> str:
    """Give the type of the file system that a file lies on."""
    best, kind = "", "unknown"
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda it: chr(int(it[1], 8)), before.split()[4])
        if file.resolve().is_relative_to(mounted) and len(mounted) >= len(best):
            best, kind = mounted, after.split()[0]
    return kind


def writable(patient: Patient) -> Finding:
    """Whether the database commits now, its lock included."""
    patient.database.check_writable()
    return well("database", "it can be reached and commits")


def schema(patient: Patient) -> Finding:
    """Whether the schema is one that this release works with."""
    file, needed = durability.file_of(patient.database), migrations.newest()
    if file is not None and not file.exists():
        advice = "look at RECEIVER_DATABASE_URL, or start `receiver serve`, which makes it"
        return fail("schema", f"there is no file {file}", advice)
    found = migrations.current(patient.database)
    if found == needed:
        return well("schema", f"at {found}, as this release needs")
    told = f"at {found or 'nothing'}, but this release needs {needed}"
    if not migrations.is_known(found):
        return fail("schema", told, "look at RECEIVER_DATABASE_URL, or install a later release")
    return fail("schema", told, "run `receiver db upgrade`")


def clocks(patient: Patient) -> Finding:
    """Whether this machine and the database agree on the time."""
    before = patient.clock()
    theirs = durability.clock_of(patient.database, before)
    ahead = (before + patient.clock()) // 2 - theirs
    advice = "let NTP set both clocks"
    if abs(ahead) >= CLOCK_WARNING_MS:
        told = f"this machine's clock is {ahead / 1000:+.0f} s off the database's"
        serious = abs(ahead) >= CLOCK_FAILURE_MS
        return (fail if serious else warn)("clock", told, advice)
    if durability.last_beat(patient.database) > before + CLOCK_FAILURE_MS:
        return warn("clock", "a node wrote at a time that is still to come", advice)
    return well("clock", "as the database's")


def disk(patient: Patient) -> Finding:
    """Whether there is room for what comes; PostgreSQL's disk cannot be seen from here."""
    file = durability.file_of(patient.database)
    places = {"uploads' spool": Path(tempfile.gettempdir())}
    if file is not None:
        places["database"] = file.parent
    usages = {what: shutil.disk_usage(place) for what, place in places.items()}
    left = []
    # The fullest first, or a warning of one would hide that another is full.
    for what, usage in sorted(usages.items(), key=lambda each: each[1].free):
        told = f"{usage.free // MIB} MiB free for the {what}"
        if usage.free < LEAST_FREE:
            return fail("disk", told, "free some now: callbacks get 503 once it is full")
        if usage.free < LITTLE_FREE or usage.free < LITTLE_SHARE * usage.total:
            return warn("disk", told, "make room, or `receiver prune --older-than 30d`")
        left.append(told)
    return well("disk", ", ".join(left))
