"""`receiver` commands, each in a process of its own that begins with the command line imported.

Processes fork from one that has done nothing else: a command takes a tenth of what it takes an
interpreter to start. That the installed script starts at all is for the tests of `receiver serve`.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from multiprocessing import connection
from pathlib import Path

import pytest

from receiver.cli import main
from receiver.cli.commands import MODULES

TREE = Path(__file__).parents[2]
DEADLINE = 60  # seconds; only what is broken needs them
STREAMS = ("stdin", "stdout", "stderr")

_fork = multiprocessing.get_context("forkserver")
_lock = threading.Lock()  # a process that starts looks after all others, of other threads too


def _started(process: multiprocessing.Process) -> None:
    """Start it from a process that knows this tree, whatever is installed."""
    with _lock, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TREE}:{TREE / 'tests'}")
        _fork.set_forkserver_preload([*MODULES.values(), __name__])
        process.start()


def run(
    words: tuple[str, ...], folder: Path, environment: dict[str, str], given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as if typed in that folder; give what it printed and its exit code."""
    with tempfile.TemporaryDirectory() as streams:
        for name in STREAMS:
            Path(streams, name).write_text((given or "") if name == "stdin" else "")
        process = _fork.Process(target=_begin, args=(words, folder, environment, streams))
        _started(process)
        ended = connection.wait([process.sentinel], DEADLINE)
        with _lock:
            if not ended:
                process.kill()
            process.join()
        if not ended:
            raise subprocess.TimeoutExpired(words, DEADLINE)
        printed = [Path(streams, name).read_text() for name in STREAMS[1:]]
    return subprocess.CompletedProcess(words, process.exitcode, *printed)


def _begin(words: tuple[str, ...], folder: Path, environment: dict[str, str], streams: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(STREAMS):
        opened = os.open(Path(streams, name), os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "r" if number == 0 else "w", closefd=False) for number in range(3)
    )
    sys.argv = ["receiver", *words]
    main()
