"""gunicorn, with the settings that callbacks need. `deploy/gunicorn.conf.py` gives the same."""

import contextlib
import os
from pathlib import Path
from typing import Any

import structlog
from gunicorn.app.base import BaseApplication

from receiver import __version__
from receiver.errors import SettingsError
from receiver.lib import counting, logs
from receiver.settings import Settings, misspelled

# gunicorn makes unnamed files there, for its workers' heartbeats.
_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108

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

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:  # noqa: ANN401 - a WSGI callable
        # Not before the fork, nor before gevent has patched what the app imports.
        from receiver.app import create_app

        return create_app()


def _forget_worker(_server: object, worker: Any) -> None:  # noqa: ANN401 - gunicorn's
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def serve(bind: str, workers: int | None) -> None:
    """Run the receiver until it is told to stop."""
    options = {**OPTIONS, "bind": bind, "child_exit": _forget_worker}
    if workers is not None:
        options["workers"] = workers
    with counting.folder() as folder:
        # prometheus_client reads this when it is first imported, which is in the workers.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        _Server(options).run()
