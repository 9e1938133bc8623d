"""Faults inside a receiver's process: Python loads this by itself where it is on the path.

The folder CHAOS_FAULTS holds a file for each fault that is on: `raise`, batches fail, half of them
only after their commit, as often as the file says; `hang`, the next batch of one process takes
long; `die`, the next process to commit is killed between its commit and its answers. Each time is
noted in `happened`. The file CHAOS_CLOCK says by how many seconds this process's clock is wrong.

libfaketime would do that for all of a process, and have it work fifty times as much for a probe.

What is sent to others is tried again sooner, and more at once, or a run would take hours.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path

SECONDS = 15.0
FAULTS = Path(os.environ.get("CHAOS_FAULTS", "/nonexistent"))


class InjectedError(Exception):
    """Nothing that the product could expect."""


def taken(fault):
    """Whether a fault that happens once is ours: one process removes its file."""
    try:
        (FAULTS / fault).unlink()
    except FileNotFoundError:
        return False
    note(fault)
    return True


def note(fault):
    with (FAULTS / "happened").open("a") as noted:
        noted.write(f"{fault}\n")


def unlucky():
    try:
        rate = float((FAULTS / "raise").read_text() or 0)
    except FileNotFoundError:
        return False
    if random.random() >= rate:
        return False
    note("raise")
    return True


def failing(write):
    def write_or_fail(self, batch):
        fails = unlucky()
        late = fails and random.random() < 0.5
        if fails and not late:
            raise InjectedError
        if taken("hang"):
            time.sleep(SECONDS)
        results = write(self, batch)
        if late:
            raise InjectedError
        if taken("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return results

    return write_or_fail


def fail_batches(store):
    store.Store.write = failing(store.Store.write)


def try_soon(queue):
    queue.PAUSES_SECONDS = (1, 1, 2, 2, *[4] * 20)
    queue.LEASE_MS, queue.MAX_PER_HOST = 10_000, 8


def give_up_soon(safe_http):
    safe_http.ATTEMPT_SECONDS = 3.0  # a third of the lease, as it is in earnest


class Injector(importlib.abc.MetaPathFinder):
    """Finds modules as usual, and has some changed once they are loaded."""

    def __init__(self):
        self.changes = {
            "receiver.callbacks.store": fail_batches,
            "receiver.outbound.queue": try_soon,
            "receiver.lib.safe_http": give_up_soon,
        }

    def find_spec(self, name, _path, _target=None):
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


class Clock:
    """The time of day, as wrong as a file says; monotonic clocks are right."""

    def __init__(self, file):
        self._file, self._time_ns = file, time.time_ns
        self._offset, self._read_at = 0, -1.0

    def time_ns(self):
        now = time.monotonic()
        if now - self._read_at >= 1:
            self._read_at = now
            with contextlib.suppress(OSError, ValueError):  # it is just being written
                self._offset = int(self._file.read_text()) * 1_000_000_000
        return self._time_ns() + self._offset

    def time(self):
        return self.time_ns() / 1e9


if "CHAOS_CLOCK" in os.environ:
    clock = Clock(Path(os.environ["CHAOS_CLOCK"]))
    time.time, time.time_ns = clock.time, clock.time_ns
if "CHAOS_FAULTS" in os.environ:
    sys.meta_path.insert(0, Injector())
