"""gunicorn, with the settings that callbacks need. `deploy/gunicorn.conf.py` gives the same."""

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import subprocess  # nosec B404
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import mkdtemp
from types import FrameType
from typing import Any
from wsgiref.types import WSGIApplication

import structlog
import uvloop
from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from uvicorn_worker import UvicornWorker

from receiver import __version__
from receiver.errors import AnswerCut, SettingsError
from receiver.lib import logs
from receiver.settings import Settings, misspelled

THREADS = 16  # of Flask's in one process, for pages, and as many for the vendor's paths

# gunicorn makes unnamed files there, for its workers' heartbeats.
_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108

YIELD_SECONDS = 50e-6  # enough for another process to be woken
FORGET_SECONDS = 1.0  # of how many connections were open lately

SOON_SECONDS = 1.0  # a writer that ended so soon after its start is not started again at once

log = structlog.get_logger()


class FairLoop(uvloop.Loop):
    """An event loop that accepts one connection at a time, and leaves the next to other workers.

    By itself uvloop accepts all that have come: the first worker to wake up would have them, and
    the others none. A load balancer keeps its connections for hours.
    """

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        *,
        sock: socket.socket,
        **_: object,
    ) -> "_Listener":
        """Listen on a socket that is bound already."""
        return _Listener(self, protocol_factory, sock)


class _Listener:
    """A listening socket, as far as uvicorn asks of asyncio's servers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.Protocol],
        sock: socket.socket,
    ) -> None:
        self._loop, self._factory, self._sock = loop, protocol_factory, sock
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open: Collection[object] = ()  # connections
        self._most, self._forgotten_at = 0, 0.0
        self._is_closed = False
        sock.settimeout(0)
        self._listen()

    def _listen(self) -> None:
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        try:
            accepted, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker has it, or it is gone
        except OSError as error:  # no descriptor is free, most likely
            log.error("no connection can be accepted", error=error.strerror)  # noqa: TRY400
            self._loop.remove_reader(self._sock)
            self._pause = self._loop.call_later(1, self._listen)
            return
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.settimeout(0)
        self._leave_the_next()
        connecting = self._loop.connect_accepted_socket(self._factory, accepted)
        task = self._loop.create_task(connecting)
        self._tasks.add(task)
        task.add_done_callback(self._connected)

    def _leave_the_next(self) -> None:
        """Let another worker wake up while connections become more than they were lately.

        Where as many end as begin, as without keep-alive, it would only take time.
        """
        now = self._loop.time()
        if now > self._forgotten_at:
            self._most, self._forgotten_at = 0, now + FORGET_SECONDS
        number = len(self._open) + len(self._tasks)
        if number >= self._most:
            self._most = number + 1
            time.sleep(YIELD_SECONDS)

    def _connected(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None:
            return
        _, connection = task.result()
        self._open = connection.connections
        # uvicorn asked those to end that were there as it stopped; for this one it would wait.
        if self._is_closed:
            connection.shutdown()

    def close(self) -> None:
        """Accept no more."""
        self._is_closed = True
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)

    async def wait_closed(self) -> None:
        """Return: nothing is left to wait for."""


class Worker(UvicornWorker):  # type: ignore[misc]
    """A process that answers through `web/asgi`, given the WSGI application."""

    CONFIG_KWARGS = {  # noqa: RUF012 - as uvicorn-worker has it
        "http": "receiver.web.asgi.connection:Connection",
        "loop": "receiver.server:FairLoop",
        "interface": "asgi3",
        "lifespan": "on",
        "ws": "none",
        "proxy_headers": False,  # whom to believe is decided by client_address
        "server_header": False,
    }

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._must_stop = self._is_orphan = False
        # Below that it tells of each client that sends nonsense.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    def load_wsgi(self) -> None:
        """Load the application."""
        from receiver.web.asgi import Application

        super().load_wsgi()
        connections = self.cfg.worker_connections
        self.wsgi: Any = Application(self.wsgi, THREADS, connections, self._check_master)
        # What is loaded stays: no collection need look at it again.
        gc.collect()
        gc.freeze()

    def init_signals(self) -> None:
        """Note a signal that comes before uvicorn listens to it, or that it raises anew at its end.

        To die of it would leave out what is done at exit.
        """
        super().init_signals()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._must_stop = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - gunicorn's
        """Stop at SIGQUIT too, which gunicorn sends when it is interrupted."""
        os.kill(os.getpid(), signal.SIGTERM)

    def _check_master(self) -> None:
        # uvicorn's heartbeat goes by a clock that may be put back: gunicorn would kill the worker.
        self.notify()
        if os.getppid() != self.ppid and not self._is_orphan:
            # The master is gone, which would stop it, and end it in time whatever hangs.
            self._is_orphan = True
            signal.alarm(self.cfg.graceful_timeout)
        if self._must_stop or self._is_orphan:
            os.kill(os.getpid(), signal.SIGTERM)


class ServerLog(glogging.Logger):  # type: ignore[misc]
    """gunicorn's logger, which writes lines as all others are: JSON, or text on a terminal."""

    def setup(self, cfg: object) -> None:
        """Do as gunicorn does, then write as we do."""
        super().setup(cfg)
        for handler in (*self.error_log.handlers, *self.access_log.handlers):
            handler.setFormatter(logs.formatter())
        logging.getLogger("uvicorn.error").addFilter(_is_news)

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """Write an error with its traceback, but not one that was logged before."""
        if not isinstance(sys.exception(), AnswerCut):
            super().exception(msg, *args, **kwargs)


def _is_news(record: logging.LogRecord) -> bool:
    # An answer that is cut short on purpose, of which a line was written with the reason.
    return record.msg != "ASGI callable returned without completing response."


def log_start(server: Arbiter) -> None:
    """Log what has started, and with which settings."""
    logs.configure()
    with contextlib.suppress(SettingsError):  # of which each worker tells
        settings = Settings.from_env(os.environ).without_secrets()
        log.info("started", version=__version__, workers=server.cfg.workers, settings=settings)
    for name, meant in misspelled(os.environ).items():
        log.warning("this variable is no setting", name=name, did_you_mean=meant)


def log_stop(_server: object) -> None:
    """Log that it has stopped."""
    log.info("stopped", version=__version__)


OPTIONS: dict[str, Any] = {
    "worker_class": "receiver.server.Worker",
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
    "logger_class": "receiver.server.ServerLog",
    "when_ready": log_start,
    "on_exit": log_stop,
    "worker_tmp_dir": str(_MEMORY) if _MEMORY.is_dir() else None,
    "preload_app": False,
}


class _Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with these options; the app is made in each worker, after the fork."""

    def __init__(self, options: dict[str, Any], writer: "_Writer | None") -> None:
        self._options, self._writer = options, writer
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> WSGIApplication:
        # Not before the fork, nor before gevent has patched what the app imports.
        from receiver.app import create_app

        return create_app(writer=self._writer.path if self._writer else None)

    def run(self) -> None:
        _Master(self, self._writer).run()


class _Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master, which also starts the process that writes, again if it ends."""

    def __init__(self, app: _Server, writer: "_Writer | None") -> None:
        super().__init__(app)
        self._writer = writer

    def manage_workers(self) -> None:
        """Have all processes run that should: at the start, after any has ended, each second."""
        if self._writer is not None:
            self._writer.ensure()
        super().manage_workers()


class _Writer:
    """The process that writes for all workers, from the master's side.

    It ends once no process holds the writing end of a pipe any more: the master does, and the
    workers inherit it. path -- of its socket; who connects while it is restarted waits.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._life, self._held_open = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def ensure(self) -> None:
        """Start it, unless it runs."""
        # gunicorn reaps all children; `poll` then says that it has ended, if not how.
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            if time.monotonic() - self._began < SOON_SECONDS:
                return
            log.error("the process that writes has ended, and is started again")
        descriptors = (self._listener.fileno(), self._life)
        module = "receiver.callbacks.writer_process"
        command = [sys.executable, "-m", module, *map(str, descriptors)]
        self._began = time.monotonic()
        self._process = subprocess.Popen(command, pass_fds=descriptors)  # noqa: S603 - our own module  # nosec B603


def _forget_worker(_server: Arbiter, worker: Worker) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def serve(bind: str, workers: int | None) -> None:
    """Run the receiver until it is told to stop."""
    options = {**OPTIONS, "bind": bind, "child_exit": _forget_worker}
    if workers is not None:
        options["workers"] = workers
    master = os.getpid()
    folder = mkdtemp(prefix="receiver-")  # not what cleans up by itself, in workers too
    try:
        # prometheus_client reads this when it is first imported, which is in the workers.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        writer = None
        if options["workers"] > 1:
            writer = _Writer(f"{folder}/writer")
        _Server(options, writer).run()
    finally:
        if os.getpid() == master:  # the end of a worker, which was forked in there, passes here too
            shutil.rmtree(folder, ignore_errors=True)
