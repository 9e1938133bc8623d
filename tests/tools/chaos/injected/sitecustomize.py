"""Faults inside a receiver's process: Python loads this by itself where it is on the path.

The folder CHAOS_FAULTS holds a file for each fault that is on: `raise`, batches fail, half of them
only after their commit, as often as the file says; `hang`, the next batch of one process takes
long; `die`, the next process to commit is killed between its commit and its answers. Each time is
noted in `happened`.
"""

import importlib.abc
import importlib.util
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

WHERE, SECONDS = "receiver.callbacks.store", 15.0
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


class Injector(importlib.abc.MetaPathFinder):
    """Finds the one module as usual, and has it changed once it is loaded."""

    def find_spec(self, name, _path, _target=None):
        if name != WHERE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.Store.write = failing(module.Store.write)

        spec.loader.exec_module = exec_module
        return spec


if "FAKETIME_TIMESTAMP_FILE" in os.environ:
    # libfaketime 0.9.10 breaks `clock_nanosleep`, which sleeps until a time that it does not fake.
    time.sleep = lambda seconds: select.select([], [], [], seconds)
if "CHAOS_FAULTS" in os.environ:
    sys.meta_path.insert(0, Injector())
