"""Hostile HTTP, directly and through each proxy: every answer is a decided one."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import chunks
import fields
import floods
import framing
import pytest
import request_targets
import smuggling
from attack import BODY, CHUNKED, CLOSE, HOST, LENGTH, POST, REFUSED, SIGNED, WAYS, Case
from nodes import DEADLINE, eventually
from proxies import running_proxy
from senders import direct, post
from sites import Site
from wire import exchange, statuses

CASES = [
    case
    for room in (smuggling, chunks, framing, floods, fields, request_targets)
    for case in room.CASES
]

PROBE = b"GET /callbacks/probe HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"


def port_of(way: str, sites: dict[str, Site]) -> int:
    """Where a way begins. The proxies' plain port: TLS would hide half-closed connections."""
    return sites["nginx"].nodes[0].port if way == "direct" else sites[way].proxy.plain


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_each_attack_is_answered_as_decided(sites, case: Case):
    for way in WAYS:

        def seen(port: int = port_of(way, sites)) -> tuple[bytes, str] | None:
            answer = exchange(port, case.sent, half_close=case.half_close)
            got = statuses(answer, head=case.head) or "-"
            return None if "503" in got else (answer, got)  # of a busy machine: come again

        answer, got = eventually(seen, "an answer but 503")
        assert case.allows(way, got), (way, got, case.answers, answer[:500])
        assert way == "direct" or b"# HELP" not in answer  # the metrics
        assert statuses(exchange(port_of(way, sites), PROBE)) == "405", "the next one's answer"


def test_the_corpus_is_large_and_no_answer_tells_of_a_fault():
    assert len(CASES) == len({case.name for case in CASES}) >= 45
    for case in CASES:
        known = re.fullmatch(r"(-|[1-4]\d\d|501| )+( \| (2\d\d|405|4xx| )+)?", case.answers)
        assert known, case.name


BROKEN = [
    case
    for case in [*framing.CASES, *chunks.CASES]
    if case.name in ("a body cut off", "chunks without the last", "a chunk shorter than its size")
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name.replace(" ", "-"))
def test_a_body_that_breaks_off_is_counted_and_proxies_keep_it_to_themselves(sites, case):
    node = sites["nginx"].nodes[0]

    def counted() -> float:
        with closing(direct(node.port)) as client:
            client.request("GET", "/metrics")
            told = client.getresponse().read().decode()
        return sum(map(float, re.findall('reason="truncated".* ([0-9.]+)$', told, re.MULTILINE)))

    before = counted()
    for way in ("nginx", "haproxy"):
        exchange(port_of(way, sites), case.sent, half_close=True)
    exchange(node.port, case.sent, half_close=True)
    eventually(lambda: counted() > before, "the count, which follows the answer")
    assert counted() == before + 1


# --- clients that stall

STALLED = (
    b"POST /callb",
    POST + SIGNED,
    POST + SIGNED + LENGTH + b"\r\n" + BODY[:7],
    POST + SIGNED + b"Content-Length: 900000\r\n\r\n" + b"a" * 100_000,
    POST + SIGNED + CHUNKED + b"\r\n5\r\nab",
)


@contextmanager
def stalling(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent half of something, and send no more."""
    with ExitStack() as stack:
        wires = []
        for number in range(count):
            wire = socket.create_connection(("127.0.0.1", port), DEADLINE)
            wires.append(stack.enter_context(wire))
            wire.sendall(STALLED[number % len(STALLED)])
        yield wires


@pytest.mark.parametrize("way", WAYS)
def test_200_stalled_clients_hold_up_nobody(sites, way):
    port = port_of(way, sites)

    def others_are_answered_meanwhile() -> bool:
        with stalling(port, 200) as wires:
            for _ in range(10):
                assert statuses(exchange(port, PROBE)) == "405"
            with closing(direct(port)) as client:
                client.host = "hooks.example.com"
                taken = post(client, b"while others stall") == 200
            return taken and all(map(is_held, wires))

    # Each is cut off after ten seconds, which a busy machine may need for this: then once more.
    eventually(others_are_answered_meanwhile, "answers before any stalled client was cut off")


def is_held(wire: socket.socket) -> bool:
    """Whether a connection is neither closed nor answered."""
    wire.settimeout(0)
    try:
        wire.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


HASTY = {
    "nginx": [
        ("client_header_timeout 10s", "client_header_timeout 1s"),
        ("client_body_timeout 10s", "client_body_timeout 1s"),
    ],
    "haproxy": [("timeout http-request 10s", "timeout http-request 1s")],
}
SLOW = {  # sent at once, and again and again
    "a head that never ends": (POST + SIGNED, b"X-A: b\r\n"),
    "a stalled head": (POST + SIGNED, b""),
    "a stalled body": (POST + SIGNED + LENGTH + b"\r\n" + BODY[:7], b""),
}


@pytest.mark.parametrize("way", ["nginx", "haproxy"])
def test_slow_clients_are_cut_off_by_the_proxy(sites, tmp_path: Path, way):
    ports = [node.port for node in sites[way].nodes]
    with running_proxy(way, tmp_path / "hasty", ports, HASTY[way]) as proxy:
        answers = {name: statuses(drip(proxy.plain, *sent)) for name, sent in SLOW.items()}
    assert {name for name, answer in answers.items() if not REFUSED.fullmatch(answer or "-")} == (
        set()
    )


def drip(port: int, first: bytes, again: bytes) -> bytes:
    """Send something, and then a little more now and then; give what comes back until the end."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as wire:
        wire.sendall(first)
        wire.settimeout(0.2)
        for _ in range(DEADLINE * 5):
            try:
                piece = wire.recv(65_536)
            except TimeoutError:
                with suppress(OSError):
                    wire.sendall(again)
            except ConnectionError:
                return answer
            else:
                if not piece:
                    return answer
                answer += piece
    return pytest.fail("never cut off")
