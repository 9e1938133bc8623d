"""Callbacks and questions through nginx and HAProxy, as deploy/ has them."""

import http.client
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from manifests import OPTIONS
from nodes import KEY, Node, add_instance, eventually, make_token, running_sandbox, stored
from proxies import DEPLOY, INSIDE, OUTSIDE, Proxy, running_proxy
from senders import Load, direct, post
from sites import Site
from wire import read_all

from receiver.openconnectors.signatures import HEADER, sign
from receiver.settings import Settings

LIMIT = 1_048_576


def cut(body: bytes, chance: random.Random) -> Iterator[bytes]:
    while body:
        size = chance.choice([1000, 7000, 16_384, 70_000])
        yield body[:size]
        body = body[size:]


@pytest.mark.slow
def test_bodies_of_any_size_and_framing_are_stored_byte_for_byte(site):
    chance = random.Random(site.proxy.name)
    before = set(stored(site.database_url))
    bodies = [chance.randbytes(int(262_144 * chance.random() ** 2)) for _ in range(238)]
    bodies += [site.proxy.name.encode(), chance.randbytes(262_144)]

    def send(lane: int) -> list[int]:
        own = random.Random(lane)
        with closing(site.proxy.client()) as client:
            return [
                post(
                    client,
                    body,
                    cut(body, own) if turn % 2 and body else None,
                    **chunked(turn, body),
                )
                for turn, body in enumerate(bodies[lane::4])
            ]

    with ThreadPoolExecutor(4) as threads:
        answers = Counter(status for lane in threads.map(send, range(4)) for status in lane)
    assert answers == {200: 240}
    kept = set(stored(site.database_url))
    assert set(bodies) - kept == set()
    assert kept - before - set(bodies) == set()


def chunked(turn: int, body: bytes) -> dict[str, str]:
    return {"Transfer-Encoding": "chunked"} if turn % 2 and body else {}


def test_a_body_is_taken_up_to_the_limit_and_refused_beyond_it_in_all_four_ways(site):
    answers = {}
    for way in ("direct", "proxy"):
        for framing in ("Content-Length", "Transfer-Encoding"):
            answers[way, framing] = []
            for size in (LIMIT, LIMIT + 1, 3 * LIMIT):
                client = direct(site.nodes[0].port) if way == "direct" else site.proxy.client()
                with closing(client):
                    answers[way, framing].append(pushed(client, random.randbytes(size), framing))
    assert set(map(tuple, answers.values())) == {(200, 413, 413)}, answers


def pushed(client: http.client.HTTPConnection, body: bytes, framing: str) -> int:
    """POST a body whose answer may come before all of it is sent."""
    chunked = framing == "Transfer-Encoding"
    client.putrequest("POST", "/callbacks/default")
    client.putheader(HEADER, sign(body, KEY))
    client.putheader(framing, "chunked" if chunked else str(len(body)))
    client.endheaders()
    with suppress(OSError):  # refused meanwhile
        for at in range(0, len(body), 65_536):
            piece = body[at : at + 65_536]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            client.send(b"0\r\n\r\n")
    return client.getresponse().status


# --- what is public

CLOSED = [
    "/",
    "/jobs",
    "/jobs/1",
    "/login",
    "/api",
    "/api/v1/summary",
    "/api/v1/openapi.json",
    "/metrics",
    "/healthz",
    "/readyz",
    "/elements/api-v2/objects",
    "/callbacks",
    "/callbacks/",
    "//metrics",
    "//api/v1/summary",
    "/./metrics",
    "/%6detrics",
    "/%2fmetrics",
    "/callbacks/../metrics",
    "/callbacks/../api/v1/summary",
    "/callbacks//../metrics",
    "/callbacks/default/../../metrics",
    "/callbacks/%2e%2e/metrics",
    "/callbacks/..%2fmetrics",
    "/callbacks/%2e%2e%2fmetrics",
    "/callbacks/.%2e/metrics",
    "/callbacks/..%5cmetrics",
    "/callbacks/..;/metrics",
    "/callbacks/;/../metrics",
    "/callbacks/%00/../metrics",
    "/callbacks/%252e%252e/metrics",
    "/callbacks/default%2f..%2f..%2fmetrics",
    "/callbacks/default/x",
    "/x/../callbacks/default",
    "/metrics/../callbacks/default",
    "/CALLBACKS/default",
    "/metrics?/callbacks/default",
    "/metrics#/callbacks/default",
    "/metrics;/callbacks/default",
    "/metrics%3f/callbacks/default",
    "http://hooks.example.com/metrics",
    "https://hooks.example.com/api/v1/summary",
    "*",
    "callbacks/default",
    "http://hooks.example.com/metrics/../callbacks/default",
]


def test_nothing_but_callbacks_can_be_reached_from_outside(site):
    peer = "127.0.3.1"
    for target in CLOSED:
        for method in ("GET", "POST"):
            asked = f"{method} {target} HTTP/1.1\r\nHost: {OUTSIDE}\r\nContent-Length: 0\r\n"
            with closing(site.proxy.dial(peer=peer)) as wire:
                wire.sendall(f"{asked}Connection: close\r\n\r\n".encode())
                status = re.match(rb"HTTP/1\.1 (\d+)", read_all(wire))
                assert status is None or int(status[1]) in (400, 404, 405), (target, status)
    with closing(site.proxy.client(peer=peer)) as client:
        assert post(client, b"{}") == 200
    eventually(lambda: asked_nodes(site.proxy.log, peer), "the callback in the access log")
    assert len(asked_nodes(site.proxy.log, peer)) == 1


def told_of(log: Path, peer: str) -> list[dict]:
    """What an access log says of an address; nginx writes bytes over 127 as they came."""
    lines = log.read_text(errors="replace").split("\n")
    told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [one for one in told if one["peer"] == peer]


def asked_nodes(log: Path, peer: str) -> list[str]:
    """Which nodes its lines name; nobody's is `-`, empty or <NOSRV>."""
    asked = [one["asked"] for one in told_of(log, peer)]
    return [node for node in asked if node not in ("", "-", "<NOSRV>")]


def test_whatever_is_asked_the_log_has_one_line_of_json_for_it(site):
    odd = [b'"', b"\\", b"%0d%0aX", b"\x1b[31m", b"\t", b"\xff\xfe", b"a" * 3000, b"{}"]
    peer = "127.0.3.2"
    for piece in odd:
        asked = b"GET /callbacks/%b HTTP/1.1\r\nHost: %b\r\n" % (piece, OUTSIDE.encode())
        with closing(site.proxy.dial(peer=peer)) as wire:
            wire.sendall(asked + b"Connection: close\r\n\r\n")
            assert read_all(wire)
    eventually(lambda: len(told_of(site.proxy.log, peer)) == len(odd), "a line for each request")
    written = site.proxy.log.read_bytes()
    assert set(written) & {*range(32), 127} == {ord("\n")}


def test_another_host_name_gets_no_answer_on_any_listener(site):
    proxy = site.proxy
    for port in (proxy.plain, proxy.outside, proxy.inside):
        for host in (b"Host: 127.0.0.1", b"Host: evil.example", b"Host: hooks.example.com.evil"):
            with closing(proxy.dial(port)) as wire:
                wire.sendall(b"POST /callbacks/default HTTP/1.1\r\n%b\r\n\r\n" % host)
                assert read_all(wire) == b""


def test_over_plain_http_callbacks_are_taken_and_never_redirected(site):
    with closing(site.proxy.client(site.proxy.plain)) as client:
        assert post(client, b"{}") == 200
        client.request("GET", "/")
        assert client.getresponse().status == 404


# --- what is not


def ask(proxy: Proxy, method: str, path: str, **options) -> tuple[int, bytes]:
    """Ask inside."""
    with closing(proxy.client(proxy.inside, host=INSIDE)) as client:
        with suppress(OSError):  # refused while it is sent
            client.request(method, path, **options)
        answer = client.getresponse()
        return answer.status, answer.read()


def test_inside_the_api_answers_and_what_nodes_tell_of_themselves_does_not(site):
    bearer = {"Authorization": f"Bearer {make_token(site.database_url)}"}
    assert ask(site.proxy, "GET", "/api/v1/summary", headers=bearer)[0] == 200
    assert ask(site.proxy, "GET", "/api/v1/jobs/1?wait=1", headers=bearer)[0] == 404
    assert ask(site.proxy, "GET", "/api/v1/summary")[0] == 401
    assert ask(site.proxy, "POST", "/api/v1/summary", body=bytes(3 * LIMIT))[0] == 413
    for path in ("/metrics", "/healthz", "/readyz", "//metrics", "/%6detrics", "/metrics/"):
        assert ask(site.proxy, "GET", path, headers=bearer)[0] == 404, path


@pytest.fixture
def vendor(site: Site, tmp_path: Path) -> Iterator[str]:
    """The vendor's stand-in; gives the name of an instance with secrets for it."""
    name = f"{site.proxy.name}-{os.urandom(4).hex()}"
    add_instance(site.database_url, site.encryption_key, name)
    with running_sandbox(tmp_path, "--job-seconds", "3600", bind=site.vendor):
        yield name


def test_an_upload_larger_than_any_callback_is_streamed_through(site, vendor):
    row = b"%d,someone@example.com,a longer field so that rows are of some size" + b"." * 400
    rows = [b"id,email,note", *(row % number for number in range(20_000))]
    part = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    body = part + b"\n".join(rows) + b"\r\n--cut--\r\n"
    assert len(body) > 8 * LIMIT
    headers = {
        "Authorization": f"Element {vendor}, User {make_token(site.database_url)}",
        "Content-Type": "multipart/form-data; boundary=cut",
    }
    path = "/elements/api-v2/bulk/contact?path=/a.csv"
    status, told = ask(site.proxy, "POST", path, body=body, headers=headers)
    assert status == 200, told
    assert json.loads(told)["id"]
    errors = site.proxy.log.parent / "error.log"
    lines = errors.read_text().splitlines() if errors.exists() else []
    assert [line for line in lines if "body is buffered" in line and path in line] == []
    # A file at the dashboard: its way is open, too, though nobody is signed in here.
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": "multipart/form-data; boundary=c"}
    path = "/jobs/1/failed-rows"
    assert ask(site.proxy, "POST", path, body=b"x" * 2 * LIMIT, headers=headers)[0] == 303


SPOOFED = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "gopher",
    "X-Forwarded-Prefix": "/evil",
    "X-Real-Ip": "6.6.6.6",
    "Forwarded": "for=6.6.6.6",
}


def test_what_a_client_says_of_itself_is_not_believed(site):
    bearer = {"Authorization": f"Bearer {make_token(site.database_url)}"}
    peers = [f"127.0.{len(site.proxy.name)}.{last}" for last in (7, 8)]
    for peer in peers:
        with closing(site.proxy.client(peer=peer)) as client:
            forged = {HEADER: sign(b"another body", KEY), **SPOOFED}
            client.request("POST", "/callbacks/default", peer, forged)
            assert client.getresponse().status == 401

    def last_two() -> set[str]:  # each node records what it refused a moment after its answer
        with closing(direct(site.nodes[0].port)) as client:
            client.request("GET", "/api/v1/rejections", headers=bearer)
            seen = json.loads(client.getresponse().read())["rejections"]
        return {one["peer"] for one in seen[:2]}

    eventually(lambda: last_two() == set(peers), "rejections are listed with their peers")


SMALL_RATES = {
    "nginx": [("rate=1000r/s", "rate=1r/m"), ("burst=5000", "burst=20")],
    "haproxy": [("http_req_rate(10s)", "http_req_rate(10m)"), ("gt 15000", "gt 21")],
}


def test_a_flood_from_one_address_is_told_to_wait_and_others_go_through(site, tmp_path):
    name = site.proxy.name
    ports = [node.port for node in site.nodes]
    with running_proxy(name, tmp_path / "small", ports, SMALL_RATES[name]) as proxy:
        with closing(proxy.client(peer="127.0.0.1")) as client:
            flood = []
            for turn in range(40):
                client.request("POST", "/callbacks/default", str(turn))
                answer = client.getresponse()
                answer.read()
                flood.append((answer.status, answer.getheader("Retry-After")))
        with closing(proxy.client(peer="127.0.0.8")) as client:
            others = [post(client, b"%d" % turn) for turn in range(15)]
    assert set(flood) == {(401, None), (429, "5")}
    assert flood[:20] == [(401, None)] * 20
    assert flood[-1] == (429, "5")
    assert others == [200] * 15


# --- nodes that go away


@pytest.mark.slow
def test_no_sender_notices_nodes_that_are_restarted_killed_or_frozen(site):
    # Before there is load: what it was writing would hold up the other one for seconds.
    site.nodes[0].freeze()
    with Load(site.proxy.client) as load:
        load.more(8)
        site.nodes[0].thaw()
        for end in ("terminate", "kill"):
            for node in site.nodes:
                load.more(60)
                getattr(node, end)()
                load.more(60)
                node.start()
                node.wait()
                # HAProxy looks once a second; before it has, the other one is the only one.
                eventually(lambda back=node: is_asked(back), "callbacks for who came back")
        load.more(60)
    assert dict(load.answers) == {200: load.answers.total()}
    assert load.acknowledged - set(stored(site.database_url)) == set()


def is_asked(node: Node) -> bool:
    """Whether a node has received a callback since it started."""
    with closing(direct(node.port)) as client:
        client.request("GET", "/metrics")
        return b"receiver_callbacks_total{" in client.getresponse().read()


@pytest.mark.slow
def test_without_any_node_senders_are_told_to_come_again(site):
    for node in site.nodes:
        node.kill()
    with closing(site.proxy.client()) as client:
        for _ in range(10):
            client.request("POST", "/callbacks/default", b"{}", {HEADER: sign(b"{}", KEY)})
            answer = client.getresponse()
            answer.read()
            assert (answer.status, answer.getheader("Retry-After")) == (503, "5")
    for node in site.nodes:
        node.start()
    for node in site.nodes:
        node.wait()
    with closing(site.proxy.client()) as client:
        eventually(lambda: post(client, b"{}") == 200, "a stored callback")


# --- the files against the receiver


def test_the_proxies_limits_are_the_receivers():
    nginx, haproxy = ((DEPLOY / name).read_text() for name in ("nginx.conf", "haproxy.cfg"))
    assert Settings().max_body_bytes == LIMIT
    assert "client_max_body_size 1m;" in nginx
    assert f"req.body_size gt {LIMIT}" in haproxy
    assert OPTIONS["limit_request_field_size"] == 4096
    assert "large_client_header_buffers 4 4k;" in nginx
    assert f"tune.http.maxhdr {OPTIONS['limit_request_fields']}" in haproxy
    for idle in re.findall(r"keepalive_timeout (\d+)s|http-keep-alive (\d+)s", nginx + haproxy):
        assert int(idle[0] or idle[1]) < OPTIONS["keepalive"]
