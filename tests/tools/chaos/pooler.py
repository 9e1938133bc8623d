"""Debian's PgBouncer between a node and the database: it gives out servers by transaction."""

import os
import pwd
import signal
import subprocess
from pathlib import Path

import debian
from cluster import DATABASE
from processes import HOST, end, free_port, start

CONFIGURATION = """
[databases]
{database} = host={host} port={{target}} user=postgres
[pgbouncer]
listen_addr = {host}
listen_port = {{port}}
unix_socket_dir =
auth_type = any
pool_mode = transaction
server_login_retry = 1
"""


class Pooler:
    """A pooler whose files lie in `folder`; it runs once it leads somewhere."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        self._program, self._log = program, folder / "pgbouncer.log"
        self._file = folder / "pgbouncer.ini"
        self._process: subprocess.Popen[bytes] | None = None

    def lead(self, target: int) -> None:
        """Lead to a port, and start."""
        text = CONFIGURATION.format(database=DATABASE, host=HOST)
        self._file.write_text(text.format(target=target, port=self.port))
        self.start()

    def start(self) -> None:
        """Start it; it refuses to run as root."""
        nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        argv, environment = [self._program, str(self._file)], debian.environment()
        self._process = start(argv, self._log, env=environment, user=nobody)

    def kill(self) -> None:
        """Kill it outright."""
        if self._process is not None:
            end(self._process, signal.SIGKILL)


def pooler(folder: Path) -> Pooler | None:
    """Make one, if PgBouncer is there: `make test` fetches it."""
    program = debian.find("pgbouncer")
    return None if program is None else Pooler(program, folder)
