"""Posting to URLs that strangers chose: never inward, never for long, never more than a little."""

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpcore
import httpx
import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st
from proxies import write_certificate

from receiver.errors import BadParameter
from receiver.lib import safe_http
from receiver.lib.safe_http import MAX_ANSWER_BYTES, SafeClient

LOOPBACK = frozenset({"127.0.0.1"})
PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.0.9",
    "192.88.99.1",
    "198.18.0.1",
    "192.0.2.1",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:168.63.129.16",
    "::7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
]
PUBLIC = ["93.184.216.34", "168.63.129.17", "192.88.98.255", "2606:2800:220:1::1", "2a00:1450::1"]


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *turns: tuple[str, ...]) -> Iterator[list[str]]:
    """Have a name resolve to these addresses, in turn; give the names that were looked up."""
    asked: list[str] = []

    whole = socket.getaddrinfo

    def resolve(host: str, port: int, *args: int, **options: int) -> list[tuple]:
        if host == "127.0.0.1":  # where the network of the tests leads
            return whole(host, port, *args, **options)
        asked.append(host)
        addresses = turns[min(len(asked), len(turns)) - 1]
        families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
        return [
            (family, 1, 6, "", (each, port))
            for family, each in zip(families, addresses, strict=True)
        ]

    with monkeypatch.context() as patched:
        patched.setattr(safe_http.socket, "getaddrinfo", resolve)
        yield asked


class Network(httpcore.SyncBackend):
    """Keeps which addresses were connected to; all of them lead to one server on loopback."""

    def __init__(self, port: int) -> None:
        self.port, self.connected = port, []

    def connect_tcp(self, host, port, *args, **options):
        self.connected.append((host, port))
        return super().connect_tcp("127.0.0.1", self.port, *args, **options)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of hooks.example.com, that signed itself: (its file, what trusts it)."""
    folder = tmp_path_factory.mktemp("tls")
    write_certificate(folder)
    return folder / "tls.pem", ssl.create_default_context(cafile=str(folder / "tls.crt"))


def behind_tls(path, seen: list) -> Callable:
    """Answer 204 over TLS, and keep the request and the name that was asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.sni_callback = lambda _socket, name, _context: seen.append(name)

    def behave(connection, _closing):
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=True) as tls:
            request = tls.recv(65_536)
            head, _, body = request.partition(b"\r\n\r\n")
            if len(body) < int(re.search(rb"Content-Length: (\d+)", head)[1]):
                request += tls.recv(65_536)
            seen.append(request)
            tls.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    return behave


@contextmanager
def tls_server(path) -> Iterator[tuple[int, list]]:
    seen: list = []
    behave = behind_tls(path, seen)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                behave(connection, None)
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], seen
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(60)


@pytest.mark.parametrize("address", PRIVATE)
@pytest.mark.parametrize("beside", [(), ("93.184.216.34",)], ids=["alone", "beside a public one"])
def test_a_name_that_leads_inward_is_never_contacted(monkeypatch, certificate, address, beside):
    network = Network(1)
    with (
        resolving(monkeypatch, (*beside, address)),
        pytest.raises(BadParameter, match="not public"),
    ):
        SafeClient(frozenset(), network, certificate[1]).post("https://hooks.example.com/", b"", {})
    assert network.connected == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "2130706433", "0x7f.1"])
def test_a_number_for_a_host_leads_inward_no_more_than_a_name(host):
    network = Network(1)
    with pytest.raises((BadParameter, OSError)):
        SafeClient(frozenset(), network).post(f"https://{host}/", b"{}", {})
    assert network.connected == []


@pytest.mark.parametrize("address", PUBLIC)
def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch, certificate, address):
    path, trusting = certificate
    with tls_server(path) as (port, seen), resolving(monkeypatch, (address,)):
        network = Network(port)
        http = SafeClient(frozenset(), network, trusting)
        url = "https://hooks.example.com:8443/x;y?z=1#part"
        assert http.post(url, b'{"a":1}', {"A": "b"}).status == 204
    assert network.connected == [(address, 8443)]
    name, request = seen
    assert name == "hooks.example.com"
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /x;y?z=1 HTTP/1.1"
    assert b"Host: hooks.example.com:8443" in lines
    assert b"A: b" in lines
    assert body == b'{"a":1}'


def test_a_name_that_leads_inward_at_the_second_look_up_is_looked_up_once(monkeypatch, certificate):
    path, trusting = certificate
    inward = ("93.184.216.34",), ("127.0.0.1",)
    with tls_server(path) as (port, _), resolving(monkeypatch, *inward) as asked:
        network = Network(port)
        http = SafeClient(frozenset(), network, trusting)
        assert http.post("https://hooks.example.com/", b"", {}).status == 204
        assert (asked, network.connected) == (["hooks.example.com"], [("93.184.216.34", 443)])
        with pytest.raises(BadParameter, match="not public"):
            http.post("https://hooks.example.com/", b"", {})
    assert len(network.connected) == 1


@pytest.mark.parametrize("host", ["hooks.example.com", "other.example.com"])
def test_a_wrong_certificate_ends_the_attempt(monkeypatch, certificate, host):
    path, trusting = certificate
    trust = trusting if host.startswith("other") else None
    with tls_server(path) as (port, seen), resolving(monkeypatch, ("93.184.216.34",)):
        http = SafeClient(frozenset(), Network(port), trust)
        with pytest.raises(ConnectionError, match="the connection failed"):
            http.post(f"https://{host}/", b"secret", {})
    assert b"secret" not in b"".join(each for each in seen if isinstance(each, bytes))


def test_roots_to_trust_come_from_the_environment(monkeypatch, certificate):
    path, _ = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with tls_server(path) as (port, _), resolving(monkeypatch, ("93.184.216.34",)):
        http = SafeClient(frozenset(), Network(port))
        assert http.post("https://hooks.example.com/", b"", {}).status == 204


def test_the_next_address_is_tried_where_the_first_does_not_answer(monkeypatch):
    with servers.client() as client, monkeypatch.context() as patched:
        port = int(client.url.split(":")[2].split("/")[0])
        entries = [(socket.AF_INET, 1, 6, "", (each, port)) for each in ("127.0.0.2", "127.0.0.1")]
        patched.setattr(safe_http.socket, "getaddrinfo", lambda *_, **__: entries)
        http = SafeClient(frozenset({"hooks.internal"}))
        assert http.post(f"http://hooks.internal:{port}/", b"{}", {}).status == 200
        assert client.posted[0][1]["host"] == f"hooks.internal:{port}"


def test_hosts_on_the_allow_list_may_be_private_and_plain():
    http = SafeClient(frozenset({"hooks.internal"}))
    http.check("http://hooks.internal:8080/x")
    for other in (
        "http://hooks.internal.example.com/",
        "http://other.internal/",
        "ftp://hooks.internal/",
    ):
        with pytest.raises(BadParameter):
            http.check(other)


@given(st.text(max_size=60))
def test_whatever_a_url_is_checking_it_raises_nothing_else(text):
    checking = SafeClient(frozenset())
    for url in (text, f"https://{text}/", f"https://example.com{text}"):
        try:
            checking.check(url)
        except BadParameter:
            continue
        assert httpx.URL(url).scheme == "https"


@pytest.mark.parametrize(
    "url",
    ["https://a.example.com\\@b.example.com/", "https://a.example.com/\r\nX: y", "https://a b/"],
)
def test_a_url_that_two_parsers_read_differently_is_refused(url):
    with pytest.raises(BadParameter):
        SafeClient(frozenset()).check(url)


def test_a_redirect_is_not_followed():
    with servers.client() as client, servers.client() as inner:
        client.statuses, client.headers = [302], {"Location": inner.url}
        assert SafeClient(LOOPBACK).post(client.url, b"{}", {}).status == 302
        assert inner.posted == []


def test_of_an_answer_only_the_start_is_kept():
    with servers.client() as client:
        client.answer = 5_000 * b"a"
        answer = SafeClient(LOOPBACK).post(client.url, b"{}", {})
    assert answer.body == MAX_ANSWER_BYTES * b"a"


@pytest.mark.parametrize("behave", [servers.endless_body, servers.drip_body])
def test_what_a_stranger_answers_without_end_is_not_read(behave, monkeypatch):
    monkeypatch.setattr(safe_http, "BODY_SECONDS", 0.3)
    with servers.odd(behave) as server:
        answer = SafeClient(LOOPBACK).post(server.url, b"{}", {})
    assert answer.status == 200
    assert 1 <= len(answer.body) <= MAX_ANSWER_BYTES
    assert set(answer.body) == set(b"x")


def test_an_endpoint_that_closes_without_an_answer_is_said_to():
    with (
        servers.odd(servers.close) as server,
        pytest.raises(ConnectionError, match="closed without an answer"),
    ):
        SafeClient(LOOPBACK).post(server.url, b"{}", {})


@pytest.mark.parametrize("behave", [servers.endless_head, servers.interim_answers])
def test_what_comes_before_an_answer_has_an_end(behave):
    with (
        servers.odd(behave) as server,
        pytest.raises(ConnectionError, match="not HTTP"),  # not at the deadline
    ):
        SafeClient(LOOPBACK).post(server.url, b"{}", {})


@pytest.mark.parametrize(
    "behave",
    [
        servers.hang,
        servers.drip_head,
        servers.endless_head,
        servers.reset,
        servers.no_http,
        servers.http2_only,
    ],
)
def test_an_attempt_ends_whatever_the_other_side_does(behave, monkeypatch):
    monkeypatch.setattr(safe_http, "ATTEMPT_SECONDS", 1.0)
    with servers.odd(behave) as server:
        with pytest.raises(OSError, match=r"no answer within|connection failed|not HTTP"):
            SafeClient(LOOPBACK).post(server.url, b"{}", {})
        assert server.begun == 1


def test_a_body_that_is_taken_a_byte_at_a_time_ends_at_the_deadline_too(monkeypatch):
    monkeypatch.setattr(safe_http, "ATTEMPT_SECONDS", 1.0)

    def sip(connection, closing):
        while not closing.wait(0.02):
            connection.recv(1)

    with servers.odd(sip) as server, pytest.raises(TimeoutError):
        SafeClient(LOOPBACK).post(server.url, 20_000_000 * b"x", {})


def test_a_name_that_is_unknown_and_a_port_where_nobody_listens_are_reasons(monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(OSError, match="the connection failed"):
        SafeClient(LOOPBACK).post("http://127.0.0.1:1/", b"{}", {})
    monkeypatch.setattr(safe_http.socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match="cannot be resolved"):
        SafeClient(frozenset()).post("https://hooks.example.com/", b"{}", {})
