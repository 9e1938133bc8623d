"""The writer: whoever submits is answered, once, with the result of its own item or an error."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import receiver
from receiver.callbacks.writer import Pending, Writer
from receiver.errors import KeysChanged, ReceiverError, StoreRefused, StoreUnavailable

DEADLINE = 60  # seconds; only a broken writer needs them
ROOT = Path(receiver.__file__).parents[1]


class Ledger:
    """A store in memory whose commits can be held up. It doubles items, and refuses `poison`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def commit(self, batch: Sequence[int]) -> list[int]:
        self.entered.set()
        assert self.gate.wait(DEADLINE)
        self.batches.append(list(batch))
        if self.poison.intersection(batch):
            raise StoreRefused("poisoned")
        return [2 * item for item in batch]

    def rescue(self, item: int, refused: StoreRefused) -> int:
        assert str(refused) == "poisoned"
        return -item

    @property
    def written(self) -> Counter[int]:
        return Counter(item for batch in self.batches for item in batch)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def make_writer(ledger: Ledger) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(commit=ledger.commit, rescue=ledger.rescue, **options: int) -> Writer:
        made.append(Writer(commit, rescue, **options))
        return made[-1]

    yield make
    ledger.gate.set()
    for writer in made:
        closing = threading.Thread(target=writer.close, daemon=True)
        closing.start()
        closing.join(DEADLINE)
        assert not closing.is_alive()


def held(writer: Writer, ledger: Ledger) -> Pending[int, int]:
    """Occupy the writer with item 0: what is submitted now waits until the gate opens."""
    ledger.gate.clear()
    first = writer.submit(0)
    assert ledger.entered.wait(DEADLINE)
    return first


def outcomes(futures: Sequence[Pending[int, int]]) -> list[object]:
    """Each future's result, or the class of its error."""
    return [
        type(error) if (error := future.exception(DEADLINE)) else future.result()
        for future in futures
    ]


def test_each_item_gets_its_own_result_in_order(make_writer):
    writer = make_writer()
    futures = [writer.submit(item) for item in range(1000)]
    assert outcomes(futures) == [2 * item for item in range(1000)]


def test_items_are_written_in_the_order_they_were_submitted(make_writer, ledger):
    writer = make_writer(largest_batch=7)
    outcomes([writer.submit(item) for item in range(500)])
    assert [item for batch in ledger.batches for item in batch] == list(range(500))


def test_items_that_arrive_during_a_commit_share_the_next(make_writer, ledger):
    writer = make_writer()
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 51))]
    assert writer.waiting == 50
    ledger.gate.set()
    assert outcomes(futures) == [2 * item for item in range(51)]
    assert ledger.batches == [[0], list(range(1, 51))]


def test_no_batch_is_larger_than_allowed(make_writer, ledger):
    writer = make_writer(largest_batch=10)
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 36))]
    ledger.gate.set()
    outcomes(futures)
    assert [len(batch) for batch in ledger.batches] == [1, 10, 10, 10, 5]


def test_under_load_every_item_is_written_exactly_once(make_writer, ledger):
    writer = make_writer()
    with ThreadPoolExecutor(16) as threads:
        futures = list(threads.map(writer.submit, range(1600), timeout=DEADLINE))
        assert outcomes(futures) == [2 * item for item in range(1600)]
    assert ledger.written == Counter(range(1600))


def test_a_refused_batch_is_replayed_singly_and_only_the_poisoned_item_is_rescued(
    make_writer, ledger
):
    ledger.poison = {3}
    writer = make_writer()
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 6))]
    ledger.gate.set()
    assert outcomes(futures) == [0, 2, 4, -3, 8, 10]
    assert ledger.batches == [[0], [1, 2, 3, 4, 5], [1], [2], [3], [4], [5]]


def test_an_item_that_cannot_be_rescued_fails_alone(make_writer, ledger):
    def reraise(_item: int, refused: StoreRefused) -> int:
        raise refused

    ledger.poison = {2}
    writer = make_writer(rescue=reraise)
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 4))]
    ledger.gate.set()
    assert outcomes(futures) == [0, 2, StoreRefused, 6]


def test_an_outage_fails_the_whole_batch_and_is_not_replayed(make_writer, ledger):
    attempts = []

    def fail(batch: Sequence[int]) -> list[int]:
        ledger.commit(batch)
        attempts.append(list(batch))
        raise StoreUnavailable("down")

    writer = make_writer(fail)
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 4))]
    ledger.gate.set()
    assert outcomes(futures) == [StoreUnavailable] * 4
    assert attempts == [[0], [1, 2, 3]]


def test_a_result_that_is_an_error_is_raised_to_its_item_alone(make_writer):
    def commit(batch: Sequence[int]) -> list[int | ReceiverError]:
        return [KeysChanged("again") if item % 2 else item for item in batch]

    writer = make_writer(commit)
    futures = [writer.submit(item) for item in range(4)]
    assert outcomes(futures) == [0, KeysChanged, 2, KeysChanged]


def test_a_full_queue_takes_no_more_and_recovers(make_writer, ledger):
    writer = make_writer(capacity=2)
    futures = [held(writer, ledger), writer.submit(1), writer.submit(2)]
    with pytest.raises(StoreUnavailable):
        writer.submit(3)
    ledger.gate.set()
    assert outcomes(futures) == [0, 2, 4]
    assert outcomes([writer.submit(4)]) == [8]
    assert 3 not in ledger.written


def test_a_closed_writer_takes_nothing(make_writer, ledger):
    writer = make_writer()
    assert outcomes([writer.submit(1)]) == [2]
    writer.close()
    assert not writer.alive
    with pytest.raises(StoreUnavailable):
        writer.submit(2)
    assert ledger.batches == [[1]]


def test_closing_writes_what_is_queued_first(make_writer, ledger):
    writer = make_writer(largest_batch=3)
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 11))]
    closing = threading.Thread(target=writer.close)
    closing.start()
    assert not any(future.done() for future in futures)
    ledger.gate.set()
    closing.join(DEADLINE)
    assert [future.done() for future in futures] == [True] * 11
    assert outcomes(futures) == [2 * item for item in range(11)]


def test_closing_a_full_queue_writes_all_of_it(make_writer, ledger):
    writer = make_writer(capacity=3)
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 4))]
    closing = threading.Thread(target=writer.close)
    closing.start()
    ledger.gate.set()
    closing.join(DEADLINE)
    assert not closing.is_alive()
    assert outcomes(futures) == [0, 2, 4, 6]


def test_closing_is_idempotent_from_any_thread(make_writer, ledger):
    writer = make_writer()
    futures = [held(writer, ledger), writer.submit(1)]
    closing = [threading.Thread(target=writer.close) for _ in range(4)]
    for thread in closing:
        thread.start()
    ledger.gate.set()
    for thread in closing:
        thread.join(DEADLINE)
    writer.close()
    assert outcomes(futures) == [0, 2]
    assert [thread.is_alive() for thread in closing] == [False] * 4


def test_a_writer_that_never_wrote_has_no_thread_and_closes(make_writer):
    before = threading.active_count()
    writer = make_writer()
    assert (writer.alive, writer.waiting, threading.active_count()) == (True, 0, before)
    writer.close()
    assert not writer.alive


def test_a_writer_that_hangs_in_a_batch_is_not_alive_until_it_goes_on(
    make_writer, ledger, monkeypatch
):
    writer = make_writer()
    first = held(writer, ledger)
    assert writer.alive
    monkeypatch.setattr("receiver.callbacks.writer.HANGS_AFTER_SECONDS", 0)
    assert not writer.alive
    ledger.gate.set()
    assert first.result(DEADLINE) == 0
    writer.submit(1).result(DEADLINE)
    monkeypatch.setattr("receiver.callbacks.writer.HANGS_AFTER_SECONDS", DEADLINE)
    assert writer.alive


def test_an_item_that_nobody_waits_for_any_more_is_not_written(make_writer, ledger):
    writer = make_writer()
    futures = [held(writer, ledger), *(writer.submit(item) for item in range(1, 4))]
    assert futures[2].cancel()
    ledger.gate.set()
    assert outcomes([futures[0], futures[1], futures[3]]) == [0, 2, 6]
    assert ledger.batches == [[0], [1, 3]]


def test_a_batch_of_which_all_gave_up_is_not_committed(make_writer, ledger):
    writer = make_writer()
    futures = [held(writer, ledger), writer.submit(1), writer.submit(2)]
    assert [future.cancel() for future in futures[1:]] == [True, True]
    ledger.gate.set()
    writer.close()
    assert ledger.batches == [[0]]


class Odd(BaseException):
    """Neither an Exception nor one that Python knows, as gevent's Timeout."""


ANYTHING = [
    ValueError,
    OSError,
    MemoryError,
    RecursionError,
    StopIteration,
    ReceiverError,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
    Odd,
]


def expect_answered(writer: Writer, futures: Sequence[Pending[int, int]]) -> None:
    """All were told that nothing is stored; the writer goes on, or says that it does not."""
    answers = [future.exception(DEADLINE) for future in futures]
    assert all(isinstance(answer, ReceiverError) for answer in answers), answers
    if not writer.alive:
        with pytest.raises(StoreUnavailable):
            writer.submit(99)
    else:
        assert outcomes([writer.submit(99)]) == [198]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", ANYTHING)
def test_whatever_a_commit_raises_every_waiter_is_answered(make_writer, ledger, kind):
    def commit(batch: Sequence[int]) -> list[int]:
        results = ledger.commit(batch)
        if 99 not in batch:
            raise kind
        return results

    writer = make_writer(commit)
    futures = [held(writer, ledger), writer.submit(1), writer.submit(2)]
    ledger.gate.set()
    expect_answered(writer, futures)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", ANYTHING)
def test_whatever_a_rescue_raises_every_waiter_is_answered(make_writer, ledger, kind):
    def rescue(_item: int, _refused: StoreRefused) -> int:
        raise kind

    ledger.poison = {0, 1, 2}
    writer = make_writer(rescue=rescue)
    futures = [held(writer, ledger), writer.submit(1), writer.submit(2)]
    ledger.gate.set()
    expect_answered(writer, futures)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("given", [0, 1, 4])
def test_a_commit_with_too_few_or_too_many_results_leaves_nobody_waiting(
    make_writer, ledger, given
):
    def commit(batch: Sequence[int]) -> list[int]:
        ledger.commit(batch)
        return [198] if 99 in batch else [2 * item for item in batch[:1]] * given

    writer = make_writer(commit)
    futures = [held(writer, ledger), writer.submit(1), writer.submit(2)]
    ledger.gate.set()
    outcomes_ = [future.exception(DEADLINE) or future.result() for future in futures[1:]]
    assert len(outcomes_) == 2
    assert not writer.alive or outcomes([writer.submit(99)]) == [198]


FORKING = """
import json, os, sys, threading
from receiver.callbacks.writer import Writer

gate, entered = threading.Event(), threading.Event()
parent = os.getpid()

def commit(batch):
    entered.set()
    if os.getpid() == parent:
        gate.wait(60)
    with open(sys.argv[1], "a") as ledger:
        ledger.writelines(json.dumps([os.getpid() == parent, item]) + "\\n" for item in batch)
    return batch

writer = Writer(commit, None)
first = writer.submit("before")
entered.wait(60)
queued = writer.submit("queued at the fork")
child = os.fork()
if not child:
    alive, waiting = writer.alive, writer.waiting
    result = writer.submit("in the child").result(60)
    writer.close()
    os._exit(0 if (alive, waiting, result) == (True, 0, "in the child") else 1)
_, status = os.waitpid(child, 0)
gate.set()
results = [first.result(60), queued.result(60), writer.submit("after").result(60)]
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
    assert json.loads(ran.stdout) == [0, ["before", "queued at the fork", "after"]]
    written = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert sorted(written) == [
        [False, "in the child"],
        [True, "after"],
        [True, "before"],
        [True, "queued at the fork"],
    ]
