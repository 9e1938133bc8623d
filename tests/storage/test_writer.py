"""The writer: whoever submits is answered, once, with the result of its own item or a failure."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from nodes import eventually

import receiver
from receiver.callbacks import writer as writer_module
from receiver.callbacks import writer_process
from receiver.callbacks.deliveries import AddressCount, Failed, NewRejection, Receipt
from receiver.callbacks.writer import Writer
from receiver.callbacks.writer_process import Frames, framed
from receiver.errors import ReceiverError, StoreUnavailable

DEADLINE = 60  # seconds; only a broken writer needs them
ROOT = Path(receiver.__file__).parents[1]


class Ledger:
    """A store in memory whose commits can be held up. Of an item it gives its number."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.counts: list[AddressCount] = []

    def write(self, batch: Sequence[NewRejection]) -> list[Receipt]:
        self.entered.set()
        assert self.gate.wait(DEADLINE)
        self.batches.append([item.size for item in batch])
        return [Receipt(item.size) for item in batch]

    def write_rejections(self) -> list[AddressCount]:
        counts, self.counts = self.counts, []
        return counts


class Answers(list):
    """What came back, in the order in which it came: (number, result)."""

    def submit(self, writer: Writer, number: int, seconds: float = DEADLINE) -> None:
        item = NewRejection("", "", "", number)
        writer.submit(item, lambda result: self.append((number, result)), seconds)

    def wait(self, count: int) -> list[tuple[int, object]]:
        eventually(lambda: len(self) >= count)
        assert len(self) == count
        return sorted(self, key=lambda each: each[0])

    def numbers(self, count: int) -> list[int]:
        """Wait for so many, each of which got its own result."""
        assert all(result == Receipt(number) for number, result in self.wait(count))
        return [number for number, _ in self]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def make_writer(ledger: Ledger) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(note=lambda _: None) -> Writer:
        made.append(Writer(ledger, note))
        return made[-1]

    yield make
    ledger.gate.set()
    for writer in made:
        closing = threading.Thread(target=writer.close, daemon=True)
        closing.start()
        closing.join(DEADLINE)
        assert not closing.is_alive()


@pytest.fixture
def writer(make_writer) -> Writer:
    return make_writer()


def hold(writer: Writer, ledger: Ledger, answers: Answers) -> None:
    """Occupy the writer with item 0: what is submitted now waits until the gate opens."""
    ledger.gate.clear()
    answers.submit(writer, 0)
    assert ledger.entered.wait(DEADLINE)


def test_items_are_written_in_order_and_each_gets_its_own_result(writer, ledger, answers):
    for number in range(1000):
        answers.submit(writer, number)
    assert answers.numbers(1000) == list(range(1000))
    assert [item for batch in ledger.batches for item in batch] == list(range(1000))


def test_items_that_arrive_during_a_commit_share_the_next_up_to_the_largest_batch(
    writer, ledger, answers
):
    hold(writer, ledger, answers)
    for number in range(1, 301):
        answers.submit(writer, number)
    assert writer.waiting == 300
    ledger.gate.set()
    answers.numbers(301)
    assert [len(batch) for batch in ledger.batches] == [1, 256, 44]


def test_under_load_every_item_is_written_exactly_once(writer, ledger, answers):
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: answers.submit(writer, number), range(1600)))
    answers.numbers(1600)
    written = Counter(item for batch in ledger.batches for item in batch)
    assert written == Counter(range(1600))


def test_a_full_queue_takes_no_more_and_recovers(writer, ledger, answers, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_WAITING", 2)
    hold(writer, ledger, answers)
    answers.submit(writer, 1)
    answers.submit(writer, 2)
    with pytest.raises(StoreUnavailable):
        answers.submit(writer, 3)
    ledger.gate.set()
    answers.numbers(3)
    answers.submit(writer, 4)
    assert sorted(answers.numbers(4)) == [0, 1, 2, 4]


def test_what_nobody_waits_for_any_more_is_not_written_but_answered(writer, ledger, answers):
    hold(writer, ledger, answers)
    answers.submit(writer, 1, seconds=0)
    answers.submit(writer, 2)
    ledger.gate.set()
    failed = Failed("not committed in time")
    assert answers.wait(3) == [(0, Receipt(0)), (1, failed), (2, Receipt(2))]
    assert ledger.batches == [[0], [2]]


def test_a_closed_writer_takes_nothing(writer, ledger, answers):
    answers.submit(writer, 1)
    answers.numbers(1)
    writer.close()
    assert not writer.alive
    with pytest.raises(StoreUnavailable):
        answers.submit(writer, 2)
    assert ledger.batches == [[1]]


def test_closing_from_any_thread_writes_what_is_queued_first(writer, ledger, answers):
    hold(writer, ledger, answers)
    for number in range(1, 11):
        answers.submit(writer, number)
    closing = [threading.Thread(target=writer.close) for _ in range(4)]
    for thread in closing:
        thread.start()
    assert answers == []
    ledger.gate.set()
    for thread in closing:
        thread.join(DEADLINE)
    writer.close()
    assert [thread.is_alive() for thread in closing] == [False] * 4
    assert answers.numbers(11) == list(range(11))


def test_a_writer_that_never_wrote_has_no_thread_and_closes(writer):
    before = threading.active_count()
    assert (writer.alive, writer.waiting, threading.active_count()) == (True, 0, before)
    writer.close()
    assert not writer.alive


def test_a_writer_that_hangs_in_a_batch_is_not_alive_until_it_goes_on(
    writer, ledger, answers, monkeypatch
):
    hold(writer, ledger, answers)
    assert writer.alive
    monkeypatch.setattr(writer_module, "HANGS_AFTER_SECONDS", 0)
    assert not writer.alive
    ledger.gate.set()
    answers.numbers(1)
    monkeypatch.setattr(writer_module, "HANGS_AFTER_SECONDS", DEADLINE)
    assert writer.alive


def test_how_often_addresses_were_rejected_is_noted_after_the_answers(make_writer, ledger, answers):
    noted: list[AddressCount] = []
    writer = make_writer(noted.append)
    ledger.counts = [AddressCount("192.0.2.1", 3, 1000)]
    answers.submit(writer, 1)
    eventually(lambda: noted)
    assert (noted, answers.numbers(1)) == ([AddressCount("192.0.2.1", 3, 1000)], [1])


class Odd(BaseException):
    """Neither an Exception nor one that Python knows, as gevent's Timeout."""


ANYTHING = [ValueError, MemoryError, StopIteration, ReceiverError, GeneratorExit]
ANYTHING += [KeyboardInterrupt, SystemExit, Odd]


@pytest.mark.parametrize("what", ["write", "write_rejections"])
@pytest.mark.parametrize("kind", ANYTHING)
def test_whatever_a_store_raises_all_are_answered_and_the_writer_goes_on(
    writer, ledger, answers, kind, what
):
    works = getattr(ledger, what)

    def fail(*batch: object) -> list[object]:
        works(*batch)
        raise kind

    setattr(ledger, what, fail)
    hold(writer, ledger, answers)
    answers.submit(writer, 1)
    ledger.gate.set()
    ended = answers.wait(2)
    assert all(isinstance(result, Failed) == (what == "write") for _, result in ended)
    eventually(lambda: len(ledger.batches) == 2)
    setattr(ledger, what, works)
    answers.submit(writer, 2)
    assert answers.wait(3)[2] == (2, Receipt(2))


@pytest.mark.parametrize("given", [0, 1, 4])
def test_a_store_with_too_few_or_too_many_results_leaves_nobody_waiting(
    writer, ledger, answers, given
):
    write = ledger.write
    ledger.write = lambda batch: write(batch)[:1] * given if len(batch) > 1 else write(batch)
    hold(writer, ledger, answers)
    answers.submit(writer, 1)
    answers.submit(writer, 2)
    ledger.gate.set()
    assert [type(result) for _, result in answers.wait(3)] == [Receipt, Failed, Failed]


FORKING = """
import json, os, sys, threading
from receiver.callbacks.deliveries import NewRejection
from receiver.callbacks.writer import Writer

gate, entered = threading.Event(), threading.Event()
parent = os.getpid()

class Ledger:
    def write(self, batch):
        entered.set()
        if os.getpid() == parent:
            gate.wait(60)
        with open(sys.argv[1], "a") as ledger:
            ledger.writelines(
                json.dumps([os.getpid() == parent, item.reason]) + "\\n" for item in batch
            )
        return [item.reason for item in batch]
    def write_rejections(self):
        return []

def submit(word):
    done, results = threading.Event(), []
    writer.submit(
        NewRejection("", word, ""), lambda result: (results.append(result), done.set()), 60
    )
    return lambda: done.wait(60) and results

writer = Writer(Ledger(), None)
first = submit("before")
entered.wait(60)
queued = submit("queued at the fork")
child = os.fork()
if not child:
    alive, waiting = writer.alive, writer.waiting
    result = submit("in the child")()
    writer.close()
    os._exit(0 if (alive, waiting, result) == (True, 0, ["in the child"]) else 1)
_, status = os.waitpid(child, 0)
gate.set()
results = [first(), queued(), submit("after")()]
writer.close()
print(json.dumps([os.waitstatus_to_exitcode(status), results]))
"""


def test_after_a_fork_the_child_writes_its_own_items_and_only_those(tmp_path):
    ledger = tmp_path / "ledger"
    ran = subprocess.run(
        [sys.executable, "-c", FORKING, str(ledger)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=ROOT,
        env=dict(os.environ),
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == [0, [["before"], ["queued at the fork"], ["after"]]]
    written = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert sorted(written) == [
        [False, "in the child"],
        [True, "after"],
        [True, "before"],
        [True, "queued at the fork"],
    ]


class Rejecting(Ledger):
    """One in which each batch has a rejection: all workers are sent how often its address was."""

    def write(self, batch: Sequence[NewRejection]) -> list[Receipt]:
        self.counts = [AddressCount("peer", len(self.batches), 1)]
        return super().write(batch)


def test_a_worker_that_takes_no_answers_holds_up_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_process, "BUFFER_BYTES", 4096)
    path, (end, life) = str(tmp_path / "writer"), os.pipe()
    keys = SimpleNamespace(current=SimpleNamespace(version=1))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = writer_process.WriterProcess(listener, end, Rejecting(), keys)
        thread = threading.Thread(target=process.run, daemon=True)
        thread.start()
        with socket.socket(socket.AF_UNIX) as stopped, socket.socket(socket.AF_UNIX) as other:
            stopped.connect(path)
            other.connect(path)
            other.settimeout(DEADLINE)
            answers = Frames()
            for _ in range(1000):
                item = time.monotonic() + DEADLINE, NewRejection("", "", "", 1)
                other.sendall(framed([item]))
                frames = 0
                while frames < 2:  # its result, and the count
                    data = other.recv(1 << 16)
                    assert data, "it was disconnected, though it takes its answers"
                    frames += len(list(answers.feed(data)))
        os.close(life)
        thread.join(DEADLINE)
    assert not thread.is_alive()
