"""Every regular expression of the receiver reads a megabyte in one go, whatever is in it."""

import ast
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import examples

import receiver
from receiver.lib.records import count_records

ROOT = Path(receiver.__file__).parent
METHODS = ("search", "match", "fullmatch", "split", "sub", "findall", "finditer")
# Put together where they are used: of a file's delimiter, which is tried as a whole below, and of
# our own paths' segments, which read a request's target of four kilobytes at most.
BUILT = {
    "lib/records.py",
    "openconnectors/shapes.py",
    "web/asgi/connection.py",
    "web/api/routes.py",
}
SIZE = examples(2_000_000)  # characters
PROCESSOR_SECONDS = (
    20  # for one text: a linear pattern takes a tenth of one, a quadratic one minutes
)
READING = """
import collections, json, re, resource, sys, time

for given in json.loads(sys.stdin.read()):
    print(given["where"], ascii(given["pattern"]), flush=True)
    binary = given["binary"]
    pattern = given["pattern"].encode("latin-1") if binary else given["pattern"]
    compiled = re.compile(pattern, given["flags"])
    for piece in given["pieces"]:
        for start, end in (("", "\\0\\n!"), ("a@", "")):
            text = start + piece * (given["size"] // len(piece)) + end
            text = text.encode("latin-1") if binary else text
            for method in given["methods"]:
                until = int(time.process_time()) + 1 + given["seconds"]
                resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
                arguments = (text[:0], text) if method == "sub" else (text,)
                found = getattr(compiled, method)(*arguments)
                if method == "finditer":
                    collections.deque(found, maxlen=0)
"""


def constant(node: ast.AST | None) -> str | None:
    """The text of a literal; bytes as latin-1."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        value = node.value
        return value.decode("latin-1") if isinstance(value, bytes) else value
    return None


def flags(call: ast.Call) -> int:
    """All flags of `re` that a call names."""
    named = [node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)]
    values = [getattr(re, name) for name in named if name.isupper() and hasattr(re, name)]
    return int(sum({int(value) for value in values}))


def calls(nodes: list[ast.AST]) -> Iterator[tuple[str, str, ast.Call]]:
    """Calls of a method of something that has a name: (name, method, call)."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = node.func.value
            name = of.id if isinstance(of, ast.Name) else getattr(of, "attr", "")
            yield name, node.func.attr, node


def patterns() -> Iterator[dict]:
    """All regular expressions in the source, with the methods by which each is used."""
    modules = {
        path: [*ast.walk(ast.parse(path.read_text("utf-8")))] for path in sorted(ROOT.rglob("*.py"))
    }
    used: dict[str, set[str]] = {}
    for node in itertools.chain(*modules.values()):  # whether it is called there or handed on
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            name = getattr(node.value, "id", getattr(node.value, "attr", ""))
            used.setdefault(name, set()).add(node.attr)
    for path, nodes in modules.items():
        names = {
            id(node.value): node.targets[0].id
            for node in nodes
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for name, method, call in calls(nodes):
            if name != "re" or method not in (*METHODS, "compile"):
                continue
            where = f"{path.relative_to(ROOT)}:{call.lineno}"
            text = constant(call.args[0])
            if text is None and path.relative_to(ROOT).as_posix() in BUILT:
                continue
            assert text is not None, f"{where}: not a literal, so nobody can look at it"
            as_ = used[names[id(call)]] if method == "compile" else {method}
            binary = isinstance(getattr(call.args[0], "value", None), bytes)
            yield {
                "where": where,
                "pattern": text,
                "flags": flags(call),
                "binary": binary,
                "methods": sorted(as_),
            }
        for node in nodes:  # of Werkzeug's converters
            if (
                isinstance(node, ast.Assign)
                and getattr(node.targets[0], "id", "") == "regex"
                and (text := constant(node.value)) is not None
            ):
                yield {
                    "where": f"{path.relative_to(ROOT)}:{node.lineno}",
                    "pattern": text,
                    "flags": 0,
                    "binary": False,
                    "methods": ["match"],
                }


def pieces(pattern: str) -> list[str]:
    """What to repeat: characters of all sorts, and the words of the pattern itself."""
    simple = ["1a", *"aA0 \t='\"@.-/\\[{,"]
    mixed = ["a.", "a@", "a ", "' ", "='", '\\"', "=a", "x='y' ", "\n"]
    words = set(re.findall(r"[A-Za-z_]{3,}", pattern))
    return [
        *simple,
        *mixed,
        *sorted(f"{word} " for word in words),
        *sorted(f" {w} " for w in words),
    ]


def test_each_pattern_reads_a_megabyte_in_linear_time():
    given = [
        {**found, "seconds": PROCESSOR_SECONDS, "size": SIZE, "pieces": pieces(found["pattern"])}
        for found in patterns()
    ]
    assert len(given) > 20
    done = subprocess.run(
        [sys.executable, "-c", READING],
        input=json.dumps(given),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0, f"not read within {PROCESSOR_SECONDS} s of a processor: {last}"


@pytest.mark.parametrize("head", [b"a,b\n", b"a;b;c\n", b"a\tb\n", b'sep=|\n"a"|b\n', b"a\n"])
@pytest.mark.parametrize(
    "piece", [b'"', b'""', b'a,"', b",", b" ", b"a\r", b'" ', b'"a"', b"a;b\n"]
)
def test_records_are_counted_in_one_go_whatever_is_in_a_file(head, piece):
    content = head + piece * (SIZE // len(piece))
    began = time.process_time()
    count_records(
        lambda: iter([content[at : at + 65_536] for at in range(0, len(content), 65_536)])
    )
    assert time.process_time() - began < PROCESSOR_SECONDS
