"""Logs: one event is one line, whatever is in it; a flood is a few lines."""

import io
import json
import logging
import sys

import pytest
import structlog
from builders import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.lib import logs

HOSTILE = "a\r\nb\x1b[31mc\x85\u2028\u202e\x7f\x00d\ud800"


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=["file", "terminal"])
def written(request, monkeypatch):
    """Standard error, as logs write to it."""
    stream = io.StringIO() if request.param == "file" else _Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        logs.configure()
        yield stream
    logs.configure()


texts = st.text(st.characters(codec="utf-8"), max_size=30)  # pytest cannot pass on others


@settings(max_examples=examples(200), deadline=None, suppress_health_check=list(HealthCheck))
@given(event=texts, value=texts)
def test_an_event_is_one_line_without_control_characters(written, event, value):
    written.truncate(0)
    written.seek(0)
    structlog.get_logger().warning(event, value=value, many=[value])
    logging.getLogger("library").warning("%s", event)
    lines = written.getvalue().split("\n")
    assert len(lines) == 3
    plain = written.getvalue().replace("\x1b[", "") if written.isatty() else written.getvalue()
    assert not [each for each in plain if not each.isprintable() and each != "\n"]
    if not written.isatty():
        ours, librarys = map(json.loads, lines[:2])
        assert (ours["event"], ours["value"], ours["many"]) == (event, value, [value])
        assert (librarys["event"], librarys["logger"]) == (event, "library")


def test_what_is_hostile_does_not_steer_a_terminal(monkeypatch):
    stream = _Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        logs.configure()
        structlog.get_logger().warning(HOSTILE, value=HOSTILE)
    logs.configure()
    assert r"\r\nb\x1b[31mc\x85\u2028\u202e\x7f\x00d\ud800" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_a_line_is_bounded_and_a_traceback_is_a_part_of_it(written):
    try:
        int("x" * 10_000)
    except ValueError:
        logging.getLogger("library").exception("%s", "y" * 3_000)
    structlog.get_logger().warning("z" * 3_000)
    on_terminal = written.isatty()  # a line of its own for the traceback
    assert written.getvalue().count("\n") == 2 + on_terminal
    assert len(written.getvalue()) < 8_000


def test_what_is_no_text_is_a_line_too(written):
    structlog.get_logger().warning(HOSTILE, value=HOSTILE, number=1, nothing=None, many={1, 2})
    assert written.getvalue().count("\n") == 1
    assert written.getvalue().isascii()


def test_libraries_warn_but_do_not_chat(written):
    logging.getLogger("library").info("nothing of interest")
    assert written.getvalue() == ""


class _Log:
    def __init__(self):
        self.lines = []

    def warning(self, event, **facts):
        self.lines.append((event, facts))


def test_of_lines_that_say_the_same_the_first_is_written_and_then_their_number():
    log, sums = _Log(), logs.Sums()
    for _ in range(1000):
        sums.warn(log, "rejected", "missing", "1.2.3.4", reason="missing")
    sums.warn(log, "rejected", "missing", "5.6.7.8", reason="missing")
    assert len(log.lines) == 2
    sums.flush()
    assert len(log.lines) == 2
    sums.flush(at_once=True)
    assert log.lines[2:] == [("rejected", {"reason": "missing", "more": 999})]
    sums.flush(at_once=True)
    assert len(log.lines) == 3


def test_though_all_lines_differ_they_are_few():
    log, sums = _Log(), logs.Sums()
    for number in range(10_000):
        sums.warn(log, "rejected", str(number), peer=str(number))
    sums.flush(at_once=True)
    assert len(log.lines) <= logs.MAX_KEYS + 2
    assert sum(facts.get("more", 1) for _, facts in log.lines) == 10_000
