"""The folders in which nodes count do not stay behind, however the nodes end."""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from nodes import eventually

from receiver.lib import counting

ALONE = "input()"
FORKED = "print(os.fork() or signal.pause(), flush=True); input()"


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def another_node(folders: Path, work: str = ALONE):
    """A process that has a folder; gives both."""
    program = f"""
import os, signal
from receiver import counting
with counting.folder() as it:
    print(it, flush=True)
    {work}
"""
    node = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folders)},
    )
    with node:
        yield node, Path(node.stdout.readline().decode().strip())
        node.kill()


def test_a_folder_is_there_while_it_is_used_and_gone_after_it():
    with counting.folder() as mine:
        (mine / "counter_1.db").touch()
        assert mine.is_dir()
    assert not mine.exists()


def test_the_folder_of_a_killed_node_is_taken_away_by_the_next_and_no_others(folders):
    (folders / f"{counting.PREFIX}file").touch()
    (folders / f"{counting.PREFIX}link").symlink_to("elsewhere")
    (folders / "elsewhere").mkdir()
    with another_node(folders) as (_, running), another_node(folders) as (killed, left):
        (left / "counter_1.db").touch()
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        with counting.folder() as mine:
            kept = {path.name for path in folders.iterdir()}
    assert left.name not in kept
    assert {mine.name, running.name, "elsewhere"} < kept


def test_a_folder_stays_until_the_last_worker_of_a_killed_node_has_ended(folders):
    def is_there_after_a_start() -> bool:
        with counting.folder():
            return left.is_dir()

    with another_node(folders, FORKED) as (master, left):
        worker = int(master.stdout.readline())
        try:
            master.kill()
            master.wait()
            assert is_there_after_a_start()
        finally:
            os.kill(worker, signal.SIGKILL)
    eventually(lambda: not is_there_after_a_start(), "the removal")
