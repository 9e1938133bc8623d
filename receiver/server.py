"""gunicorn, with the settings that callbacks need. `deploy/gunicorn.conf.py` gives the same."""

import contextlib
import os
import socket
import subprocess  # nosec B404
import sys
import threading
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog
from gunicorn.app.base import BaseApplication

from receiver import __version__
from receiver.errors import SettingsError
from receiver.lib import counting, logs
from receiver.settings import Settings, misspelled

# gunicorn makes unnamed files there, for its workers' heartbeats.
_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108

AGAIN_SECONDS = 0.05  # until a writer that ended is started again
SOON_SECONDS = 1.0  # the same for one that ended so soon after its start

log = structlog.get_logger()


def announce(server: Any) -> None:  # noqa: ANN401 - gunicorn's
    """Write down what has started, and with which settings."""
    logs.configure()
    with contextlib.suppress(SettingsError):  # of which each worker tells
        settings = Settings.from_env(os.environ).shown()
        log.info("started", version=__version__, workers=server.cfg.workers, settings=settings)
    for name, meant in misspelled(os.environ).items():
        log.warning("this variable is no setting", name=name, did_you_mean=meant)


def take_leave(_server: object) -> None:
    """Write down that it has stopped."""
    log.info("stopped", version=__version__)


OPTIONS: dict[str, Any] = {
    "worker_class": "receiver.worker.Worker",
    "asgi_loop": "asyncio",  # not whichever is installed
    "workers": 2,
    "worker_connections": 1000,  # a process; those above are closed
    "timeout": 30,
    "graceful_timeout": 25,
    "keepalive": 75,  # longer than a load balancer keeps idle connections, or it meets closed ones
    # Neither paths nor schemes from headers: SCRIPT_NAME would walk round a proxy's path rules.
    "forwarder_headers": "",
    "secure_scheme_headers": {},
    "header_map": "drop",
    "limit_request_fields": 64,
    "limit_request_field_size": 4096,
    "control_socket_disable": True,
    "logger_class": "receiver.server_log.ServerLog",
    "when_ready": announce,
    "on_exit": take_leave,
    "worker_tmp_dir": str(_MEMORY) if _MEMORY.is_dir() else None,
    "preload_app": False,
}


class _Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with options given here; the app is made in each worker, after the fork."""

    def __init__(self, options: dict[str, Any], writer: str | None) -> None:
        self._options, self._writer = options, writer
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:  # noqa: ANN401 - a WSGI callable
        # Not before the fork, nor before gevent has patched what the app imports.
        from receiver.app import create_app

        return create_app(writer=self._writer)


def _forget_worker(_server: object, worker: Any) -> None:  # noqa: ANN401 - gunicorn's
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def serve(bind: str, workers: int | None) -> None:
    """Run the receiver until it is told to stop."""
    options = {**OPTIONS, "bind": bind, "child_exit": _forget_worker}
    if workers is not None:
        options["workers"] = workers
    with counting.folder() as folder, TemporaryDirectory(prefix="receiver-") as private:
        # prometheus_client reads this when it is first imported, which is in the workers.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        writer = None
        if options["workers"] > 1 and _is_sqlite():
            writer = f"{private}/writer"
            options["when_ready"] = partial(_start_writer, _listener(writer), os.pipe())
        _Server(options, writer).run()


def _is_sqlite() -> bool:
    with contextlib.suppress(SettingsError):  # of which each worker tells
        return Settings.from_env(os.environ).database_url.startswith("sqlite")
    return False


def _listener(path: str) -> socket.socket:
    """Listen for workers: who connects while the writer is away waits for it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def _start_writer(listener: socket.socket, life: tuple[int, int], server: Any) -> None:  # noqa: ANN401 - gunicorn's
    """Start the process that writes for all workers, and watch it.

    life -- a pipe of which the workers, as they are forked, and this process hold the writing end:
    the writer ends once none of them is left.
    """
    announce(server)
    given = (listener.fileno(), life[0])
    command = [sys.executable, "-m", "receiver.callbacks.writer_process", *map(str, given)]

    def watch() -> None:
        while True:
            began = time.monotonic()
            subprocess.Popen(command, pass_fds=given).wait()  # noqa: S603 - our own module
            log.error("the process that writes has ended, and is started again")
            lived = time.monotonic() - began
            time.sleep(AGAIN_SECONDS if lived > SOON_SECONDS else SOON_SECONDS)

    threading.Thread(target=watch, name="writer", daemon=True).start()
