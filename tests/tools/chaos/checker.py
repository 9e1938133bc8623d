"""After a run: what was acknowledged, what was sent, what is stored, and what the law says."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from corpus import UNREADABLE
from processes import PYTHON, ToolError, run
from storm import Storm

from receiver.database.models import NUMBER_BITS
from receiver.jobs.timeline import event_id

EVENTS = "SELECT n, instance, sha256, kind, deliveries, body, changed FROM events"
COPY = "import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); a.backup(b)"
RESENT = 3  # how often the balancer may send on what reached it once


@dataclass(frozen=True)
class Stored:
    """One row of the database."""

    id: str
    instance: str
    sha256: bytes
    kind: str
    received_at: int
    deliveries: int
    body: bytes
    is_merged: bool


def check(storm: Storm) -> dict[str, int]:
    """Count what is wrong, by what it is; all zeros is a verdict of good."""
    stage, log = storm.stage, storm.stage.sender.log
    stored = [
        Stored(
            *(event_id(n), instance, bytes(sha256), kind, n >> NUMBER_BITS, deliveries),
            *(bytes(body or b""), changed is not None),
        )
        for n, instance, sha256, kind, deliveries, body, changed in _rows(storm, EVENTS)
    ]
    found = {(row.instance, row.sha256): row for row in stored}
    sent = stage.plan.sent
    times = Counter((row.instance, row.body) for row in stored)
    kinds = {body: kind for _, body, kind in UNREADABLE}
    return {
        "acknowledged, not stored": len(log.acked.keys() - found.keys()),
        "stored, never sent": len(found.keys() - sent.keys()),
        "stored more than once": sum(count - 1 for count in times.values()),
        "stored with other bytes": sum(
            row.body != sent.get(identity, row.body) for identity, row in found.items()
        ),
        "answered with another id": sum(
            ids != {found[identity].id} for identity, ids in log.acked.items() if identity in found
        ),
        "sent, never accepted": len(sent.keys() - log.acked.keys()),
        "deliveries miscounted": sum(
            not log.answers[identity] <= row.deliveries <= RESENT * log.attempts[identity]
            for identity, row in found.items()
        ),
        "of a wrong kind": sum(row.kind != kinds.get(row.body, "bulk_job") for row in stored),
        "merged not once": sum(row.is_merged != (row.kind == "bulk_job") for row in stored),
        "jobs not as the law says": _wrong_jobs(storm, found.values()),
        "forged, but stored": sum(row.body in {body for _, body in storm.forged} for row in stored),
        "workers that timed out": sum(
            node.log.read_text(errors="replace").count("WORKER TIMEOUT") for node in stage.nodes
        ),
        "answered 500": sum(each.status == 500 for each in log.tries),
        "answered 4xx": sum(400 <= each.status < 500 for each in log.tries),
    }


def _wrong_jobs(storm: Storm, stored: Iterable[Stored]) -> int:
    received = {(row.instance, row.sha256): row.received_at for row in stored}
    lawful = storm.stage.plan.jobs(received)
    shown = {(job["id"], job["instance"]): job for job in list_jobs(storm)}
    known = {
        key: {name: shown[key][name] for name in lawful[key]} for key in lawful if key in shown
    }
    return len(shown.keys() ^ lawful.keys()) + sum(known[key] != lawful[key] for key in known)


def list_jobs(storm: Storm) -> list[dict[str, Any]]:
    """Every job, over all pages of the API."""
    jobs: list[dict[str, Any]] = []
    path = "/api/v1/jobs?limit=1000"
    while path:
        answer = storm.stage.ask(storm.stage.nodes[0].name, path)
        if answer.status != 200:
            raise ToolError(f"the API answered {answer.status}")
        page = json.loads(answer.body)
        jobs += page["jobs"]
        path = page["next"] and f"/api/v1/jobs?limit=1000&cursor={page['next']}"
    return jobs


def _rows(storm: Storm, statement: str) -> list[tuple[Any, ...]]:
    stage = storm.stage
    if stage.primary is not None:
        return stage.primary.query(statement)
    copy = stage.layout.folder / "copy.db"
    copy.unlink(missing_ok=True)
    run([*stage.disk.inside, PYTHON, "-c", COPY, str(stage.sqlite), str(copy)])
    with closing(sqlite3.connect(copy)) as connection:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            raise ToolError("the SQLite file is broken")
        return connection.execute(statement).fetchall()
