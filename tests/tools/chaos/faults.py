"""What goes wrong in a run: each fault strikes, holds for a while, and ends.

A fault is a context manager: entering strikes, leaving ends it. What it needs besides (a worker
that dies, a standby that takes over) is its own business; that the service recovers is not.
"""

import fcntl
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from cluster import Postgres
from processes import tell, until
from stage import Stage
from vendor_faults import one_job_fails, uploads_hang, vendor_limits, vendor_slow

Strike: TypeAlias = Callable[[Stage], AbstractContextManager[None]]

ORPHANED = 10.0  # seconds that workers may go on without their master
BOTH, PG, LITE = ("postgresql", "sqlite"), ("postgresql",), ("sqlite",)


@dataclass(frozen=True)
class Fault:
    """name -- in one or two words. kinds -- on which databases it makes sense.

    hold -- how long it lasts, seconds, from and to. small, full -- how often in a run of that size.
    outage -- nothing can be stored meanwhile, and that must be said within 5 s.
    """

    name: str
    strike: Strike
    kinds: tuple[str, ...] = BOTH
    hold: tuple[float, float] = (0.0, 0.0)
    small: int = 1
    full: int = 1
    outage: bool = False


@contextmanager
def worker_killed(stage: Stage) -> Iterator[None]:
    """Kill a worker of a node outright."""
    node = stage.next_node("kill")
    until(lambda: node.worker_pids, "a worker to kill")
    tell([stage.chance.choice(node.worker_pids)], signal.SIGKILL)
    yield


@contextmanager
def writer_killed(stage: Stage) -> Iterator[None]:
    """Kill the process that writes for all workers of a node outright."""
    node = stage.next_node("kill")
    until(lambda: node.writer_pids, "a writer to kill")
    tell(node.writer_pids, signal.SIGKILL)
    yield


@contextmanager
def master_killed(stage: Stage) -> Iterator[None]:
    """Kill a node's master outright: its workers must notice, and leave the port to a new one."""
    node = stage.next_node("kill")
    starts = node.starts
    seconds = node.kill_master()
    if seconds > ORPHANED:
        stage.violations.append(f"workers of a killed master went on for {seconds:.1f} s")
    yield
    until(lambda: node.starts > starts, "the supervisor's start")


@contextmanager
def node_restarted(stage: Stage) -> Iterator[None]:
    """Restart a node as a deploy does."""
    node = stage.next_node("restart")
    node.restart()
    yield


@contextmanager
def killed_between(stage: Stage) -> Iterator[None]:
    """Kill the process that writes after its commit and before its answers."""
    wait_for_injected(stage, "die")
    yield


@contextmanager
def writer_fails(stage: Stage) -> Iterator[None]:
    """Have batches fail, before their commit or after it, and one at least."""
    path, happened = stage.faults / "raise", stage.faults / "happened"
    happened.touch()
    already = happened.read_text().count("raise")
    path.write_text("0.05" if stage.layout.nodes < 3 else "0.01")
    while happened.read_text().count("raise") == already:
        stage.sender.try_once(stage.plan.fresh())
    yield
    path.unlink()


@contextmanager
def writer_hangs(stage: Stage) -> Iterator[None]:
    """Have a writer hang for 15 s."""
    wait_for_injected(stage, "hang")
    yield


def wait_for_injected(stage: Stage, fault: str) -> None:
    """Arm a fault that happens once, inside a receiver, and wait until it did."""
    path = stage.faults / fault
    path.touch()
    while path.exists():
        stage.sender.try_once(stage.plan.fresh())


def stopped(how: str) -> Strike:
    """Stop PostgreSQL in some way, and start it when the fault ends."""

    @contextmanager
    def strike(stage: Stage) -> Iterator[None]:
        server = stage.server
        if how == "kill":
            server.kill()
        else:
            server.stop(how)
        yield
        server.start()

    return strike


@contextmanager
def backend_killed(stage: Stage) -> Iterator[None]:
    """Kill one connection's process: PostgreSQL drops all others and recovers by itself."""
    asked = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
    backends = [pid for (pid,) in stage.server.query(f"{asked} AND pid <> pg_backend_pid()")]
    tell([stage.chance.choice(backends)], signal.SIGKILL)
    yield


@contextmanager
def database_frozen(stage: Stage) -> Iterator[None]:
    """Stop all of PostgreSQL's processes where they are, as a worker starts that knows no keys."""
    server = stage.server
    tell([stage.chance.choice(stage.next_node("freeze").worker_pids)], signal.SIGKILL)
    frozen = server.freeze()
    yield
    server.thaw(frozen)


@contextmanager
def database_demoted(stage: Stage) -> Iterator[None]:
    """Have PostgreSQL refuse writes on connections that look healthy."""
    server = stage.server
    server.set("default_transaction_read_only", "on")
    yield
    server.set("default_transaction_read_only", "off")


@contextmanager
def failed_over(stage: Stage) -> Iterator[None]:
    """Kill the primary while its commits wait for a standby that hangs; then promote that."""
    old, new = stage.server, standby(stage)
    frozen = new.freeze()
    time.sleep(stage.chance.uniform(0.5, 1.5))
    old.kill()
    new.thaw(frozen)
    yield
    new.promote()
    stage.lead_to(new)
    old.delete()


@contextmanager
def switched_over(stage: Stage) -> Iterator[None]:
    """Demote the primary and promote a standby; open connections still lead to the old one."""
    old, new = stage.server, standby(stage)
    old.set("default_transaction_read_only", "on")
    asked = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) <= 0 FROM pg_stat_replication"
    until(lambda: old.query(asked) == [(True,)], "the standby's catching up", 30)
    new.promote()
    stage.lead_to(new)
    yield
    old.kill()
    old.delete()


def standby(stage: Stage) -> Postgres:
    """Make a standby of the server, at the port that the first node knows."""
    log = stage.layout.folder / "postgresql.log"
    new = Postgres(stage.disk, f"server-{time.monotonic_ns()}", log, stage.ports[1])
    new.copy(stage.server)
    return new


@contextmanager
def disk_full(stage: Stage) -> Iterator[None]:
    """Leave no room on the database's disk. A server that ended of it is started again after."""
    stage.disk.fill()
    yield
    stage.disk.free()
    if stage.primary is not None and not stage.primary.running:
        stage.primary.start()


@contextmanager
def file_locked(stage: Stage) -> Iterator[None]:
    """Hold the lock that each write to SQLite takes."""
    path = stage.disk.outside(stage.sqlite).with_name(f"{stage.sqlite.name}.lock")
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def file_replaced(stage: Stage) -> Iterator[None]:
    """Put another database in the place of SQLite's file, as a restore does, and bring it back."""
    with file_deleted(stage):
        path = stage.disk.outside(stage.sqlite)
        shutil.copy(path.with_name(f"aside-{path.name}"), path)
        yield


@contextmanager
def file_deleted(stage: Stage) -> Iterator[None]:
    """Take SQLite's file and its log away, and bring them back."""
    path = stage.disk.outside(stage.sqlite)
    parts = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    aside = {part: part.rename(part.with_name(f"aside-{part.name}")) for part in parts}
    yield
    # The log first: who opened the file without it would go on reading an older state.
    for part, moved in reversed(aside.items()):
        moved.replace(part)


@contextmanager
def table_gone(stage: Stage) -> Iterator[None]:
    """Have statements fail with an error of class 42, as after a migration that went wrong."""
    stage.server.query("ALTER TABLE jobs RENAME TO jobs_elsewhere")
    yield
    stage.server.query("ALTER TABLE jobs_elsewhere RENAME TO jobs")


@contextmanager
def clock_stepped(stage: Stage) -> Iterator[None]:
    """Step the last node's clock by two hours, from one hour off to one hour off."""
    stage.skew()
    yield


@contextmanager
def pooler_restarted(stage: Stage) -> Iterator[None]:
    """Kill the pooler that the second node goes through, and start it again."""
    stage.pooler.kill()
    yield
    stage.pooler.start()


def wires(lanes: str, mode: str, *, one: bool = False) -> Strike:
    """Hurt wires, all whose name starts so or one of them."""

    @contextmanager
    def strike(stage: Stage) -> Iterator[None]:
        hurt = stage.lanes(lanes)
        how = {"cut": {"after": stage.chance.randint(1, 3000)}, "delay": {"seconds": 0.05}}
        chosen = [stage.chance.choice(hurt)] if one else hurt
        with stage.wires.hurt(chosen, mode, **how.get(mode, {})):
            yield

    return strike


@contextmanager
def keys_changed(stage: Stage) -> Iterator[None]:
    """Add a key, sign with it from now on, and retire the old one once nothing is under way."""
    instance = "turning"
    old = stage.sender.keys[instance]
    new, path = stage.new_key(f"{instance}-{time.monotonic_ns()}")
    key_id = stage.command("keys", "add", instance, "--file", str(path))
    stage.sender.keys[instance] = new
    yield
    stage.sender.drain(old)
    stage.command("keys", "retire", instance, stage.key_id)
    stage.key_id = key_id
    stage.retired.append(old)


DATABASE_RESTARTS = (
    Fault("database stopped", stopped("fast"), PG, (1, 4), full=8, outage=True),
    Fault("database crashed", stopped("immediate"), PG, (0, 3), full=6, outage=True),
    Fault("database killed", stopped("kill"), PG, (0, 3), full=6, outage=True),
)

FAULTS = (
    Fault("worker killed", worker_killed, full=15),
    Fault("writer killed", writer_killed, LITE, full=6),
    Fault("master killed", master_killed, full=15),
    Fault("killed after commit", killed_between, full=6),
    Fault("node restarted", node_restarted, full=15),
    *DATABASE_RESTARTS,
    Fault("backend killed", backend_killed, PG, full=2),
    Fault("database frozen", database_frozen, PG, (11, 14), full=2, outage=True),
    Fault("database demoted", database_demoted, PG, (2, 4), outage=True),
    Fault("failed over", failed_over, PG, (0, 2), full=2),
    Fault("switched over", switched_over, PG, (2, 4), full=2),
    Fault("disk full", disk_full, BOTH, (3, 5), full=2, outage=True),
    Fault("file locked", file_locked, LITE, (3, 4), full=2),
    Fault("file replaced", file_replaced, LITE, (1, 3), full=3, outage=True),
    Fault("file deleted", file_deleted, LITE, (1, 3), full=2, outage=True),
    Fault("table gone", table_gone, PG, (1, 3), full=2, outage=True),
    Fault("clock stepped", clock_stepped, PG, (1, 2), small=2, full=6),
    Fault("pooler restarted", pooler_restarted, PG, (0, 2), full=4),
    Fault("database wires cut", wires("db-", "cut"), PG, (1, 3), full=4),
    Fault("database wire silent", wires("db-", "hole", one=True), PG, (9, 11), full=2),
    Fault("database wires silent", wires("db-", "hole"), PG, (11, 13), full=1, outage=True),
    Fault("database wires slow", wires("db-", "delay"), PG, (2, 3)),
    Fault("node wires cut", wires("to-", "cut"), BOTH, (1, 3), full=4),
    Fault("node wire silent", wires("to-", "hole", one=True), PG, (3, 6)),
    Fault("writer fails", writer_fails, BOTH, (2, 3), full=2),
    Fault("writer hangs", writer_hangs, PG, (9, 10)),
    Fault("writer hangs", writer_hangs, LITE, (9, 10), outage=True),  # there is no other
    Fault("keys changed", keys_changed, BOTH, (0.5, 1), full=2),
    Fault("vendor slow", vendor_slow, BOTH, (6, 8), full=2),
    Fault("vendor limits", vendor_limits, BOTH, (1, 3), full=2),
    Fault("one job fails", one_job_fails, full=2),
    Fault("uploads hang", uploads_hang, BOTH, (6, 8), full=2),
)


def schedule(stage: Stage, size: str) -> tuple[list[Fault], list[str]]:
    """The faults of a run, shuffled, and the names of those that cannot be had here."""
    wanted = [fault for fault in FAULTS if stage.layout.kind in fault.kinds]
    absent = {"disk full": not stage.disk.own, "pooler restarted": stage.pooler is None}
    missing = [fault.name for fault in wanted if absent.get(fault.name)]
    faults = [
        fault
        for fault in wanted
        if fault.name not in missing
        for _ in range(fault.small if size == "small" else fault.full)
    ]
    stage.chance.shuffle(faults)
    return faults, missing
