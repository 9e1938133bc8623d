"""Change the core in one place at a time, and see that a test notices: `make mutants`.

mutmut knows what to change. It is not left to run the tests: it passes over properties and over
what modules hold as data, which is where the law of jobs lives. Each mutant is served to a forked
process in place of the module, and the module's tests run there until the first that fails.

Left alone are annotations, aliases of types and decorators, which mypy checks. Survivors must stand
in `equivalent.toml`, each with the reason why it changes nothing; an entry that no longer survives
is an error too.
"""

import argparse
import difflib
import importlib.abc
import importlib.util
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import click
import hypothesis
import libcst as cst
import pytest
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[3]
KNOWN = Path(__file__).with_name("equivalent.toml")
TESTS = {
    "openconnectors.signatures": ["core/test_signatures.py", "core/test_diagnosis.py"],
    "openconnectors.notifications": ["core/test_notifications.py"],
    "jobs.job": ["core/test_jobs.py"],
}
# Nothing of the project's configuration: only whether a test fails counts here.
OPTIONS = ["-c", os.devnull, "--noconftest", "--exitfirst", "--assert=plain", "-pno:cacheprovider"]
PATIENCE = 6  # times as much of the processor as the tests take without a change
MOST_SECONDS = 600  # of a processor, for tests without a change
CLOSED = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)

fork = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Mutant:
    """A module with one change. old, new -- the lines that differ, without their indentation."""

    module: str
    source: str
    old: str
    new: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.module, self.old, self.new


class Finder(cst.CSTVisitor):
    """Collects the changes that mutmut's operators would make."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)):
            return False
        if isinstance(node, cst.AnnAssign) and _is_alias(node):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                self.changes += [(node, changed) for changed in operator(node)]
        return True


def _is_alias(node: cst.AnnAssign) -> bool:
    named = node.annotation.annotation
    return isinstance(named, cst.Name) and named.value == "TypeAlias"


def source_of(module: str) -> str:
    return (ROOT / "receiver" / f"{module.replace('.', '/')}.py").read_text()


def mutants_of(module: str) -> Iterator[Mutant]:
    """Make every mutant of a module."""
    tree = cst.parse_module(source_of(module))
    finder = Finder()
    tree.visit(finder)
    before = tree.code.splitlines()
    for node, changed in finder.changes:
        source = tree.deep_replace(node, changed).code
        lines = [
            line
            for line in difflib.unified_diff(before, source.splitlines(), n=0, lineterm="")
            if not line.startswith(("---", "+++", "@@"))
        ]
        old, new = (
            "\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"
        )
        if lines:
            yield Mutant(module, source, old, new)


class Instead(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives a mutant where its module is imported."""

    def __init__(self, module: str, source: str) -> None:
        self._name, self._source = f"receiver.{module}", source

    def find_spec(self, name: str, *_: object):
        return importlib.util.spec_from_loader(name, self) if name == self._name else None

    def get_filename(self, name: str) -> str:
        return f"<mutant of {name}>"

    def get_data(self, _path: str) -> bytes:
        return self._source.encode()


def examine(module: str, source: str, patience: int) -> None:
    """In a process of its own: run a module's tests on a source, and leave with pytest's code.

    patience -- seconds of a processor, after which the kernel ends it: however busy the machine is,
    no mutant is taken for one that does not end because others were served before it.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (patience, patience))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    sys.meta_path.insert(0, Instead(module, source))
    # Failing is enough: nobody reads the smallest example.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutants", phases=phases, database=None, derandomize=True, deadline=None
    )
    hypothesis.settings.load_profile("mutants")
    sys.path.insert(0, str(ROOT / "tests"))
    files = [str(ROOT / "tests" / name) for name in TESTS[module]]
    os._exit(pytest.main([*OPTIONS, f"--rootdir={ROOT}", *files]))


def started(module: str, source: str, patience: int):
    process = fork.Process(target=examine, args=(module, source, patience))
    process.start()
    return process


def baseline(module: str) -> float:
    """Run the tests on the module as it is; give the seconds of a processor they take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    process = started(module, source_of(module), MOST_SECONDS)
    process.join()
    if process.exitcode != pytest.ExitCode.OK:
        sys.exit(f"the tests of {module} fail without any change ({process.exitcode})")
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def survivors(mutants: list[Mutant], patience: int, at_once: int) -> Iterator[Mutant]:
    """Examine mutants, some at once; give those that no test noticed."""
    waiting, running = list(reversed(mutants)), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            mutant = waiting.pop()
            running[started(mutant.module, mutant.source, patience)] = mutant
        wait([process.sentinel for process in running])
        for process, mutant in list(running.items()):
            if process.is_alive():
                continue
            process.join()
            del running[process]
            # Below 0: it was ended, since it did not end by itself, and so it was noticed.
            if process.exitcode == pytest.ExitCode.OK:
                yield mutant
            elif process.exitcode >= 0 and process.exitcode not in CLOSED:
                sys.exit(f"pytest left with {process.exitcode} for:\n{mutant.new}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="MODULE")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 2)
    given = parser.parse_args()
    known = {
        (entry["module"], entry["old"].strip(), new.strip())
        for entry in tomllib.loads(KNOWN.read_text())["equivalent"]
        for new in entry["new"]
        if entry["proof"] and entry["module"] in given.modules
    }
    surviving: set[tuple[str, str, str]] = set()
    for module in given.modules:
        mutants = list({mutant.source: mutant for mutant in mutants_of(module)}.values())
        began, patience = time.monotonic(), 10 + math.ceil(PATIENCE * baseline(module))
        alive = []
        for mutant in survivors(mutants, patience, given.at_once):
            alive.append(mutant)
            if mutant.key not in known:
                click.echo(f"survived in {module}:\n- {mutant.old}\n+ {mutant.new}\n")
        surviving |= {mutant.key for mutant in alive}
        took = time.monotonic() - began
        click.echo(f"{module}: {len(mutants)} mutants, {len(alive)} survived, {took:.0f} s")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    for module, old, new in sorted(known - surviving):
        click.echo(
            f"no longer survives in {module}: take it out of {KNOWN.name}\n- {old}\n+ {new}\n"
        )
    click.echo(f"at {commit or 'no commit'}: {len(surviving & known)} survivors change nothing")
    sys.exit(bool(surviving ^ known))


if __name__ == "__main__":
    main()
