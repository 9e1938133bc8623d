"""Who is measured: the reference, ours, and peers that do the same work."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import installing
from bodies import KEY
from databases import Base
from machine import Unavailable, run, serving
from processes import HOST, PYTHON
from sqlalchemy import and_, or_, select

from receiver.database.models import Event, JobRow

REFERENCE = Path(__file__).parent / "reference"
ENDPOINT = "00000000-0000-4000-8000-000000000000"
NOWHERE = f"http://{HOST}:9/elements/api-v2"  # a vendor that does not answer
SLOW_SYNC_MS = 5
GUNICORN = [PYTHON, "-m", "gunicorn", "--no-control-socket", "--workers", "2"]


@dataclass(frozen=True, slots=True)
class Start:
    """How to start a server."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None

    def serving(self, log: Path) -> AbstractContextManager[Popen]:
        """The server, running."""
        return serving(self.argv, self.environment, log, self.cwd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to receive callbacks.

    start -- gives how to start it, from (port, database, connections). Raises Unavailable.
    style -- of the signed bodies it takes. path -- where they go.
    database -- the kind it stores in; None stores nothing. stored -- a statement that gives the
    identity of each stored body. repeat -- each how many-th body was sent before; 0 is none.
    unended -- for ours: a statement that finds stored bodies whose job has not ended.
    """

    name: str
    title: str
    group: str
    start: Callable[[int, Base | None, int], Start]
    path: str
    style: str = "vendor"
    database: str | None = None
    stored: Any = None
    connections: tuple[int, ...] = (32,)
    repeat: int = 0
    ready: str = "/"
    ready_status: int | None = None
    unended: Any = None


def _gthread(port: int, _base: Base | None, _connections: int) -> Start:
    shape = ["--worker-class", "gthread", "--threads", "2", "--bind", f"{HOST}:{port}"]
    return Start([*GUNICORN, *shape, "nothing:app"], cwd=REFERENCE)


def serve(port: int, base: Base | None, _connections: int = 0) -> Start:
    """`receiver serve` with its own settings, on a database."""
    assert base is not None
    settings = {
        "RECEIVER_DATABASE_URL": base.url(),
        "EVENT_NOTIFICATION_SIGNATURE_KEY": KEY.decode(),
        "OPEN_CONNECTORS_URL": NOWHERE,
        "RECEIVER_API_RATE": "1000000000",
    }
    words = ["serve", "--bind", f"{HOST}:{port}", "--workers", "2"]
    return Start([PYTHON, "-m", "receiver", *words], settings)


def _on_slow_disk(port: int, base: Base | None, connections: int) -> Start:
    if shutil.which("strace") is None:
        raise Unavailable("strace is not installed")
    start = serve(port, base, connections)
    syncs = "fdatasync,fsync"
    delayed = ["-e", f"trace={syncs}", "-e", f"inject={syncs}:delay_exit={SLOW_SYNC_MS}ms"]
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", os.devnull, *delayed]
    return Start([*strace, *start.argv], start.environment)


def _node(port: int, base: Base | None, _connections: int) -> Start:
    assert base is not None
    folder = installing.node_modules("node")
    argv = [installing.program("node"), str(folder / "server.js"), base.path, str(port)]
    return Start(argv, {"SIGNATURE_KEY": KEY.decode(), "NODE_ENV": "production"})


def _fastapi(port: int, base: Base | None, _connections: int) -> Start:
    assert base is not None
    binaries = installing.venv("fastapi_sqlalchemy")
    folder = installing.PEERS / "fastapi_sqlalchemy"
    driver = "aiosqlite" if base.kind == "sqlite" else "asyncpg"
    settings = {"SIGNATURE_KEY": KEY.decode(), "DATABASE_URL": base.url(driver)}
    run([str(binaries / "python"), "app.py"], settings, cwd=folder)
    shape = ["--workers", "2", "--host", HOST, "--port", str(port), "--no-access-log"]
    return Start([str(binaries / "uvicorn"), *shape, "app:app"], settings, folder)


def _djstripe(port: int, base: Base | None, _connections: int) -> Start:
    assert base is not None
    binaries = installing.venv("djstripe_project")
    folder = installing.PEERS / "djstripe_project"
    settings = {
        "SIGNATURE_KEY": KEY.decode(),
        "ENDPOINT": ENDPOINT,
        "DATABASE_NAME": base.path,
        **({} if base.kind == "sqlite" else {"DATABASE_SOCKET": base.socket}),
    }
    run([str(binaries / "python"), "prepare.py"], settings, cwd=folder)
    shape = ["--workers", "2", "--threads", "2", "--bind", f"{HOST}:{port}"]
    argv = [str(binaries / "gunicorn"), "--no-control-socket", *shape, "wsgi:application"]
    return Start(argv, settings, folder)


def _ours(database: str) -> list[Contender]:
    job = and_(JobRow.id == Event.job, JobRow.instance == Event.instance)
    unended = (
        select(Event.n)
        .join(JobRow, job, isouter=True)
        .where(or_(JobRow.id.is_(None), JobRow.under_way))
        .limit(1)
    )
    common = {
        "group": "ours",
        "start": serve,
        "path": "/callbacks/default",
        "database": database,
        "stored": select(Event.sha256),
        "unended": unended,
        "ready": "/readyz",
        "ready_status": 200,
    }
    called = _CALLED[database]
    rows = [
        Contender(
            name=f"ours-{database}",
            title=f"ours, {called}, new jobs",
            style="new",
            connections=(1, 32, 256),
            **common,
        ),
        *(
            Contender(
                name=f"ours-{database}-{name}", title=f"ours, {called}, {title}", **own, **common
            )
            for name, title, own in _VARIED
        ),
    ]
    if database == "sqlite":
        slow = {**common, "start": _on_slow_disk, "style": "new"}
        title = f"ours, {called}, a sync takes {SLOW_SYNC_MS} ms more"
        rows.append(Contender(name="ours-sqlite-slow", title=title, **slow))
    return rows


_VARIED = (
    ("later", "four of five about a job that is known", {"style": "later"}),
    ("uuid", "new jobs, ids in no order", {"style": "uuid"}),
    ("duplicates", "one in ten a duplicate", {"style": "new", "repeat": 10}),
)


def _fastapis(database: str) -> Contender:
    return Contender(
        name=f"fastapi-{database}",
        title=f"FastAPI + async SQLAlchemy, {_CALLED[database]}, a transaction each",
        group="peers",
        start=_fastapi,
        path="/callbacks/default",
        database=database,
        stored="SELECT sha256 FROM callbacks",
        connections=(1, 32),
    )


def _djstripes(database: str) -> Contender:
    return Contender(
        name=f"djstripe-{database}",
        title=f"dj-stripe, {_CALLED[database]}",
        group="peers",
        start=_djstripe,
        path=f"/stripe/webhook/{ENDPOINT}/",
        style="stripe",
        database=database,
        stored="SELECT id FROM djstripe_event",
    )


_CALLED = {"sqlite": "SQLite FULL", "postgresql": "PostgreSQL"}

REFERENCES = [
    Contender(
        name="reference",
        title="Flask view doing nothing, gthread 2x2 (the reference)",
        group="reference",
        start=_gthread,
        path="/",
        connections=(1, 32, 256),
    ),
]
PEERS = [
    Contender(
        name="node",
        title="Node http + better-sqlite3 FULL, a transaction each",
        group="peers",
        start=_node,
        path="/callbacks/default",
        database="sqlite",
        stored="SELECT sha256 FROM callbacks",
        connections=(1, 32),
    ),
    _fastapis("sqlite"),
    _fastapis("postgresql"),
    _djstripes("sqlite"),
    _djstripes("postgresql"),
]
CONTENDERS = [*REFERENCES, *_ours("sqlite"), *_ours("postgresql"), *PEERS]
