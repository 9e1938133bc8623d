"""Builds that are broken on purpose: a harness that does not catch each of them proves nothing.

Each is a copy of the tree with a few lines changed; a change that does not apply is an error.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from processes import PYTHON, ROOT, ToolError, run
from receivers import environment

# Answers as soon as the item is queued.
HASTY = """


class _Hasty(RemoteWriter):
    def submit(self, item, done, seconds):
        if getattr(item, "key", ""):
            done(Receipt(1))
            done = lambda result: None
        super().submit(item, done, seconds)
"""

LAST_WRITE = """

def join(one, other):
    pairs = zip(astuple(one.registers), astuple(other.registers), strict=True)
    return Job(Registers(*[old if new is None else new for old, new in pairs]))
"""


@dataclass(frozen=True)
class Edit:
    """In the file `path`: every `old` (a pattern) becomes `new`, and `more` is added at the end."""

    path: str
    old: str
    new: str
    more: str = ""


@dataclass(frozen=True)
class Build:
    """name -- what is wrong with it. caught_by -- what the checker must find, or the fsync trace.

    killed -- whether its workers must be killed while nothing can be committed. fault -- what must
    happen meanwhile, by its name. restarted -- whether it is restarted before that is over.
    sent_on -- whether it is killed while it sends what subscriptions are sent.
    """

    name: str
    edits: tuple[Edit, ...]
    caught_by: str
    killed: bool = False
    fault: str = ""
    restarted: bool = False
    sent_on: bool = False


TRACE = "the fsync trace"

BUILDS = (
    Build(
        "answers before the commit",
        (
            Edit(
                "receiver/callbacks/intake.py",
                r"RemoteWriter\(writer_path,",
                "_Hasty(writer_path,",
                HASTY,
            ),
        ),
        "acknowledged, not stored",
        killed=True,
    ),
    Build(
        "no unique constraint",
        (
            Edit(
                "receiver/database/migrations/versions/0001_initial.py",
                r'("events_identity", "events", \["instance", "job", "sha256")\], unique=True',
                r"\1]",
            ),
            Edit(
                "receiver/callbacks/store.py",
                r"receipt = self\._receipts\.get\(identity\)",
                "receipt = None",
            ),
        ),
        "stored more than once",
    ),
    Build(
        "the last write wins",
        (Edit("receiver/jobs/job.py", r"^def join\(", "def _lawful(", LAST_WRITE),),
        "jobs not as the law says",
    ),
    Build(
        "synchronous=OFF",
        (Edit("receiver/database/engine.py", "synchronous=FULL", "synchronous=OFF"),),
        TRACE,
    ),
    Build(
        "no check of the file",
        (
            Edit(
                "receiver/database/sqlite_file.py",
                r"^        if is_lost:\n            raise",
                "        if False:\n            raise",
            ),
        ),
        "acknowledged, not stored",
        fault="file replaced",
        restarted=True,
    ),
    Build(
        "class 42 as content",
        (
            Edit(
                "receiver/database/driver_errors.py",
                r"    return _sent_code\(error\) in CONTENT$",
                '    return str(_sent_code(error)).startswith("42")',
            ),
        ),
        "of a wrong kind",
        fault="table gone",
    ),
    Build(
        "delivered before it is sent",
        (
            Edit("receiver/outbound/queue.py", r"now \+ LEASE_MS", "None"),
            Edit(
                "receiver/outbound/queue.py",
                r'next_at=bindparam\("lease_ends"\)',
                r'\g<0>, state="delivered"',
            ),
        ),
        "ended, not delivered",
        sent_on=True,
    ),
)


def make(build: Build, folder: Path) -> Path:
    """Copy the tree and break the copy. Raises ToolError if a change does not apply."""
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("receiver", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for name in ("wsgi.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for edit in build.edits:
        path = folder / edit.path
        text, times = re.subn(edit.old, edit.new, path.read_text(), flags=re.MULTILINE)
        if times != 1:
            raise ToolError(f"{build.name}: {edit.path} has {times} places to break, not one")
        path.write_text(text + edit.more)
    return folder


def is_traced(tree: Path, folder: Path) -> bool:
    """Whether each answer of the code in `tree` comes after a sync: the trace's own test says."""
    words = ["-m", "pytest", "-n0", "-p", "no:cacheprovider", f"--basetemp={folder}"]
    named = "test_each_acknowledgement_comes_after_a_sync_that_began_after_its_request"
    argv = [
        PYTHON,
        *words,
        f"tests/system/test_must_hold.py::{named}[sqlite]",
        "--no-header",
        "--tb=no",
    ]
    verdict = run(
        ["sh", "-c", '"$@"; echo "ended $?"', "sh", *argv],
        env=environment(tree, {"CI": "true"}),
        cwd=tree,
        seconds=120,
    )
    if "1 passed" in verdict and verdict.endswith("ended 0\n"):
        return True
    if "1 failed" in verdict and verdict.endswith("ended 1\n"):
        return False
    raise ToolError(f"the fsync trace: {verdict[-300:]}")
