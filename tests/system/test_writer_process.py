"""One process writes for all workers of a server: it may die, hang or be told to end."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from nodes import KEY, Node, eventually, make_token, running_nodes, stored
from processes import children, is_writer
from senders import Load, direct, post
from serving import Client

from receiver.openconnectors.signatures import HEADER, SignatureKey, sign


@pytest.fixture(params=["sqlite", "postgresql18"])
def node(
    request: pytest.FixtureRequest, make_database: Callable[[str], str], tmp_path: Path
) -> Iterator[Node]:
    with running_nodes(make_database(request.param), tmp_path, 1, workers=2) as [made]:
        yield made


def writers(node: Node) -> list[int]:
    """The processes of a server that write."""
    assert node.process is not None
    return [pid for pid in children(node.process.pid) if is_writer(pid)]


def writer(node: Node) -> int:
    (pid,) = eventually(lambda: writers(node), "a process that writes")
    return pid


def send(node: Node, body: bytes) -> int:
    with closing(direct(node.port)) as client:
        return post(client, body)


def body(name: str) -> bytes:
    return b'{"id": "%s", "status": "COMPLETED"}' % name.encode()


def test_killed_at_any_instant_it_loses_nothing_acknowledged_and_comes_back(node):
    with Load(lambda: direct(node.port)) as load:
        for _ in range(5):
            load.more(40)
            os.kill(writer(node), signal.SIGKILL)
        load.more(40)
    assert set(load.answers) <= {200, 503}
    kept = stored(node.database_url)
    assert load.acknowledged - set(kept) == set()
    assert len(kept) == len(set(kept))


@pytest.mark.slow
def test_while_it_stands_still_probes_and_reads_are_answered_and_callbacks_503(node):
    token = make_token(node.database_url, "reader")
    eventually(lambda: send(node, body("before")) == 200)
    pid = writer(node)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert [send(node, body(str(n))) for n in range(2)] == [503, 503]
        with Client(node.port) as client:
            assert client.ask("GET", "/healthz")[0] == 200
            bearer = {"Authorization": f"Bearer {token}"}
            assert client.ask("GET", "/api/v1/jobs/before", headers=bearer)[0] == 200
        eventually(lambda: not node.is_ready(), "that it is not ready")
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: send(node, body("after")) == 200)
    eventually(node.is_ready)
    assert body("before") in stored(node.database_url)


@pytest.mark.slow
def test_workers_that_are_killed_before_their_answer_do_not_end_it(node):
    eventually(lambda: send(node, body("before")) == 200)
    pid = writer(node)
    workers = set(children(node.process.pid)) - {pid}
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:
            sent = pool.map(lambda n: send(node, body(str(n))), range(4))
        assert list(sent) == [503] * 4
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: not workers & set(children(node.process.pid)), "the workers' end")
    finally:
        os.kill(pid, signal.SIGCONT)
    for number in range(4):
        eventually(lambda n=number: send(node, body(f"after-{n}")) == 200)
    assert writers(node) == [pid]


def test_what_is_wrong_is_rejected_and_what_is_right_taken_whoever_judged(node):
    wrong = SignatureKey("other", b"another key than the receiver's")
    with Client(node.port) as client:
        for _ in range(3):
            signed = [{HEADER: sign(b"x", key)} for key in (wrong, KEY)]
            answers = [client.ask("POST", "/callbacks/default", b"x", each) for each in signed]
            assert [status for status, _ in answers] == [401, 200]


@pytest.mark.slow
def test_it_ends_with_the_server_whether_that_is_asked_to_or_killed(node):
    pid = writer(node)
    node.terminate()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    node.start()
    node.wait()
    pid = writer(node)
    assert node.process is not None
    os.kill(node.process.pid, signal.SIGKILL)
    node.process.wait()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "its end")
