"""Receivers as they run in production, under a supervisor that starts again what died."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from processes import (
    HOST,
    PYTHON,
    ToolError,
    children,
    end,
    free_port,
    is_running,
    is_writer,
    own_environment,
    start,
    tell,
    until,
)

SUPERVISOR_PAUSE = 0.2  # seconds; as systemd waits before it starts a service again


@dataclass
class Node:
    """One receiver. tree -- whose code it runs.

    settings -- its environment. inside -- words before its command. down -- stopped on purpose.
    changed -- when it was last started, or told to end, on the monotonic clock. orphaned -- what a
    killed master started still runs, perhaps beside its successor.
    """

    name: str
    tree: Path
    settings: dict[str, str]
    log: Path
    workers: int = 2
    inside: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    down: bool = True
    starts: int = 0
    changed: float = 0.0
    orphaned: bool = False
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it is not ready yet."""
        serve = ["receiver", "serve", "--bind", f"{HOST}:{self.port}"]
        argv = [*self.inside, PYTHON, "-m", *serve, "--workers", str(self.workers)]
        env = environment(self.tree, self.settings)
        if "PYTHONPATH" in self.settings:
            env["PYTHONPATH"] = f"{self.settings['PYTHONPATH']}{os.pathsep}{self.tree}"
        self.process = start(argv, self.log, env=env, cwd=self.tree)
        self.log.with_suffix(".pid").write_text(str(self.process.pid))
        self.down, self.starts, self.changed = False, self.starts + 1, time.monotonic()

    @property
    def master(self) -> int:
        """The pid of gunicorn's master."""
        if self.process is None:
            raise ToolError(f"{self.name} was never started")
        return self.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """The pids of gunicorn's workers."""
        return [pid for pid in children(self.master) if not is_writer(pid)]

    @property
    def writer_pids(self) -> list[int]:
        """The pid of the process that writes for all workers, where there is one."""
        return [pid for pid in children(self.master) if is_writer(pid)]

    @property
    def died(self) -> bool:
        """Whether it ended though nobody wanted it to."""
        return not self.down and self.process is not None and self.process.poll() is not None

    def terminate(self) -> None:
        """Ask it to finish what it does and end, and wait for that."""
        if self.process is not None:
            self.down, self.changed = True, time.monotonic()
            end(self.process)

    def restart(self) -> None:
        """Restart it as a deploy does."""
        self.terminate()
        self.start()

    def kill_master(self) -> float:
        """Kill the master outright; give the seconds until all that it started have ended."""
        orphans, self.orphaned = children(self.master), True
        tell([self.master], signal.SIGKILL)
        seconds = until(lambda: not any(map(is_running, orphans)), "the end of orphaned workers")
        # Those were ready, which says nothing of their successors.
        self.changed, self.orphaned = time.monotonic(), False
        return seconds

    def log_tail(self) -> str:
        """The last that it said."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-3:])


def environment(tree: Path, extra: dict[str, str]) -> dict[str, str]:
    """This process's environment, without settings of a receiver, for the code in `tree`."""
    own = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return own_environment(**{**own, **extra})


class Supervisor:
    """Starts nodes again that died, as systemd would; it has a thread of its own."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            dead = [node for node in self._nodes if node.died]
            if dead:
                time.sleep(SUPERVISOR_PAUSE)
            for node in dead:
                node.start()
