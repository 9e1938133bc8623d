"""What a database, and the file system that it lies on, say of how durable its commits are."""

import re
from pathlib import Path

from sqlalchemy import func, select, text

from receiver.database.engine import Database
from receiver.database.models import Heartbeat, RejectedAddress

MOUNTS = Path("/proc/self/mountinfo")
_SQLITE = ("journal_mode", "synchronous")
_POSTGRESQL = ("fsync", "full_page_writes", "synchronous_commit", "server_version_num")


def durability_settings(database: Database) -> dict[str, str]:
    """Return the settings that durability depends on, as the database names and writes them."""
    with database.read() as session:
        if database.is_sqlite:
            return {name: str(session.scalar(text(f"PRAGMA {name}"))) for name in _SQLITE}
        return {name: str(session.scalar(text(f"SHOW {name}"))) for name in _POSTGRESQL}


def filesystem_of(file: Path) -> str:
    """Return the type of the file system that a file lies on."""
    best, kind = "", "unknown"
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        if file.resolve().is_relative_to(mounted) and len(mounted) >= len(best):
            best, kind = mounted, after.split()[0]
    return kind


def last_beat(database: Database) -> int:
    """Return when a node last wrote its heartbeat, ms; 0 for never."""
    with database.read() as session:
        return session.scalar(select(Heartbeat.at)) or 0


def count_rejections(database: Database, peer: str | None) -> int:
    """Return how often an address was rejected in its window. peer -- None is all addresses."""
    total = select(func.sum(RejectedAddress.count))
    with database.read() as session:
        one = total if peer is None else total.where(RejectedAddress.peer == peer)
        return int(session.scalar(one) or 0)
