"""Header fields that no honest client sends."""

from attack import (
    BODY,
    CHUNKED,
    CLOSE,
    HOST,
    IN_CHUNKS,
    LENGTH,
    POST,
    SIGNED,
    Case,
    headed,
    line,
    post,
)

from receiver.openconnectors.signatures import HEADER

NAME = HEADER.encode()
FORWARDED = (
    b"X-Forwarded-For: 6.6.6.6\r\n",
    b"X-Forwarded-Proto: gopher\r\n",
    b"X-Forwarded-Host: evil.example\r\n",
    b"X-Forwarded-Prefix: /x\r\n",
    b"Forwarded: for=6.6.6.6\r\n",
)
H2C = (
    b"Upgrade: h2c\r\n",
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\n",
)
WEB_SOCKET = (
    b"Upgrade: websocket\r\n",
    b"Connection: Upgrade, close\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
)
UPGRADED = line(b"/callbacks/default").replace(CLOSE, b"".join(WEB_SOCKET))
RELAYED = line(b"/elements/api-v2/objects").replace(CLOSE, b"".join(WEB_SOCKET))


def sent(name: str, answers: str, *lines: bytes) -> Case:
    """A signed callback with these header lines besides."""
    return Case(name, answers, headed(*lines))


def signed_by(name: str, answers: str, field: bytes) -> Case:
    """A callback with this header line in the place of its signature's."""
    return Case(name, answers, POST + field + LENGTH + CLOSE + b"\r\n" + BODY)


def to(name: str, answers: str, host: bytes) -> Case:
    """A signed callback with this header line in the place of its host's."""
    return Case(name, answers, headed().replace(HOST, host))


def asked(name: str, path: bytes, *lines: bytes) -> Case:
    """A question that is 405, with these header lines besides."""
    return Case(name, "405", line(b"/callbacks/" + path).replace(CLOSE, b"".join(lines) + CLOSE))


CASES = [
    sent("a NUL in a value", "400", b"X-A: a\0b\r\n"),
    sent("a control byte in a value", "400", b"X-A: a\x01b\r\n"),
    sent("a delete in a value", "400", b"X-A: a\x7fb\r\n"),
    sent("an escape in the user agent", "400", b"User-Agent: \x1b[31mred\r\n"),
    sent("bytes over 127 in a value", "200", b"X-A: \xff\xfe\xe9\r\n"),
    sent("a NUL in a name", "400", b"X\0A: b\r\n"),
    sent("a blank in a name", "400", b"X A: b\r\n"),
    sent("a bracket in a name", "400 | 200", b"X(A): b\r\n"),
    sent("bytes over 127 in a name", "400 | 200", b"X-\xe9: b\r\n"),
    sent("no name", "400", b": b\r\n"),
    sent("no colon", "400 | 200", b"X-A\r\n"),
    signed_by("a signature of bytes over 127", "401", NAME + b": sha256=\xff\xfe\r\n"),
    sent("a signature twice, the same", "401", SIGNED),
    sent("a right signature, then a wrong one", "401", NAME + b": sha256=" + b"A" * 43 + b"=\r\n"),
    signed_by("signatures in a list", "401", SIGNED.replace(b"\r\n", b", sha256=a\r\n")),
    signed_by("a signature on a folded line", "400 | 200", SIGNED.replace(b": ", b":\r\n ")),
    signed_by("a signature's name with underscores", "401", SIGNED.replace(b"-", b"_")),
    sent("a right name, and one with underscores", "200", SIGNED.replace(b"-", b"_")),
    signed_by("a signature's name in capitals", "200", NAME.upper() + SIGNED[len(NAME) :]),
    sent("SCRIPT_NAME", "200", b"SCRIPT_NAME: /callbacks\r\n"),
    asked("SCRIPT_NAME before another path", b"healthz", b"SCRIPT_NAME: /callbacks\r\n"),
    asked("PATH_INFO", b"default", b"PATH_INFO: /metrics\r\n"),
    asked("Script-Name", b"metrics", b"Script-Name: /callbacks\r\n"),
    asked("X-Original-URL", b"default", b"X-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\n"),
    sent("a method to override", "200", b"X-HTTP-Method-Override: GET\r\n"),
    sent("forwarded headers", "200", *FORWARDED),
    sent("an address that is none", "200", b"X-Forwarded-For: '; DROP TABLE events; --\r\n"),
    to("no host", "400 | 200", b""),
    sent("two hosts", "400 | 200", HOST),
    sent("two different hosts", "400", b"Host: evil.example\r\n"),
    to("an empty host", "200 | 4xx", b"Host:\r\n"),
    to("a host with two ports", "200", HOST.replace(b"\r", b":80:80\r")),
    to("a host with a path", "200 | 4xx", HOST.replace(b"\r", b"/metrics\r")),
    to("a host with a user", "200 | 4xx", HOST.replace(b": ", b": a@")),
    to("a host with a final point", "200", HOST.replace(b"\r", b".\r")),
    to("a host in capitals", "200", HOST.upper()),
    to("a host of bytes over 127", "200 | 4xx", b"Host: \xff\xfe\r\n"),
    sent("an expectation", "100 200", b"Expect: 100-continue\r\n"),
    sent("another expectation", "200", b"Expect: the-unexpected\r\n"),
    sent("an upgrade to h2c", "200", *H2C),
    Case("an upgrade to a web socket", "405", UPGRADED),
    Case("an upgrade to a web socket at the vendor", "405 | 4xx", RELAYED),
    Case("an upgrade to h2c, and a request after it", "200 405", post(*H2C, LENGTH)),
    Case("an upgrade to h2c in chunks", "200 405", post(*H2C, CHUNKED, body=IN_CHUNKS)),
    sent("a body said to be gzip", "200", b"Content-Encoding: gzip\r\n"),
    sent("a content type that is none", "200", b"Content-Type: \xff;;;=;charset=utf-7\r\n"),
    sent("ranges", "200", b"Range: bytes=" + b"0-," * 300 + b"\r\n"),
]
