"""The folder in which the workers of a node count together, as prometheus_client has it.

The node's processes hold a lock on it. So who starts knows the folders of nodes that were killed,
whatever their process ids stand for by now, and takes them away.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "receiver-counters-"


@contextmanager
def folder() -> Iterator[Path]:
    """Make this node's folder, and take it away at the end of the process that made it."""
    _remove_abandoned()
    (path, lock), master = _made(), os.getpid()
    try:
        yield path
    finally:
        if os.getpid() == master:  # the end of a worker, which was forked in there, passes here too
            os.close(lock)
            shutil.rmtree(path, ignore_errors=True)


def _made() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # who starts just now may find it before it is locked
            lock = _opened(path)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if path.exists():
                return path, lock
            os.close(lock)


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            lock = _opened(path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
