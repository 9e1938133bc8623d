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

CASES = [
    Case("a NUL in a value", "400", headed(b"X-A: a\0b\r\n")),
    Case("a control byte in a value", "400", headed(b"X-A: a\x01b\r\n")),
    Case("a delete in a value", "400", headed(b"X-A: a\x7fb\r\n")),
    Case("an escape in the user agent", "400", headed(b"User-Agent: \x1b[31mred\r\n")),
    Case("bytes over 127 in a value", "200", headed(b"X-A: \xff\xfe\xe9\r\n")),
    Case("a NUL in a name", "400", headed(b"X\0A: b\r\n")),
    Case("a blank in a name", "400", headed(b"X A: b\r\n")),
    Case("a bracket in a name", "400 | 200", headed(b"X(A): b\r\n")),
    Case("bytes over 127 in a name", "400 | 200", headed(b"X-\xe9: b\r\n")),
    Case("no name", "400", headed(b": b\r\n")),
    Case("no colon", "400 | 200", headed(b"X-A\r\n")),
    Case(
        "a signature of bytes over 127",
        "401",
        POST + HEADER.encode() + b": sha256=\xff\xfe\r\n" + LENGTH + CLOSE + b"\r\n" + BODY,
    ),
    Case("a signature twice, the same", "401", headed(SIGNED)),
    Case(
        "a right signature, then a wrong one",
        "401",
        headed(HEADER.encode() + b": sha256=" + b"A" * 43 + b"=\r\n"),
    ),
    Case(
        "signatures in a list",
        "401",
        POST + SIGNED.replace(b"\r\n", b", sha256=a\r\n") + LENGTH + CLOSE + b"\r\n" + BODY,
    ),
    Case(
        "a signature on a folded line",
        "400 | 200",
        POST + SIGNED.replace(b": ", b":\r\n ") + LENGTH + CLOSE + b"\r\n" + BODY,
    ),
    Case(
        "a signature's name with underscores",
        "401",
        POST + SIGNED.replace(b"-", b"_") + LENGTH + CLOSE + b"\r\n" + BODY,
    ),
    Case("a right name, and one with underscores", "200", headed(SIGNED.replace(b"-", b"_"))),
    Case(
        "a signature's name in capitals",
        "200",
        POST + HEADER.upper().encode() + SIGNED[len(HEADER) :] + LENGTH + CLOSE + b"\r\n" + BODY,
    ),
    Case("SCRIPT_NAME", "200", headed(b"SCRIPT_NAME: /callbacks\r\n")),
    Case(
        "SCRIPT_NAME before another path",
        "405",
        line(b"/callbacks/healthz").replace(CLOSE, b"SCRIPT_NAME: /callbacks\r\n" + CLOSE),
    ),
    Case(
        "PATH_INFO",
        "405",
        line(b"/callbacks/default").replace(CLOSE, b"PATH_INFO: /metrics\r\n" + CLOSE),
    ),
    Case(
        "Script-Name",
        "405",
        line(b"/callbacks/metrics").replace(CLOSE, b"Script-Name: /callbacks\r\n" + CLOSE),
    ),
    Case(
        "X-Original-URL",
        "405",
        line(b"/callbacks/default").replace(
            CLOSE, b"X-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\n" + CLOSE
        ),
    ),
    Case("a method to override", "200", headed(b"X-HTTP-Method-Override: GET\r\n")),
    Case("forwarded headers", "200", headed(*FORWARDED)),
    Case(
        "an address that is none", "200", headed(b"X-Forwarded-For: '; DROP TABLE events; --\r\n")
    ),
    Case(
        "no host",
        "400 | 200",
        b"POST /callbacks/default HTTP/1.1\r\n" + SIGNED + LENGTH + CLOSE + b"\r\n" + BODY,
    ),
    Case("two hosts", "400 | 200", headed(HOST)),
    Case("two different hosts", "400", headed(b"Host: evil.example\r\n")),
    Case("an empty host", "200 | 4xx", headed().replace(HOST, b"Host:\r\n")),
    Case("a host with two ports", "200", headed().replace(HOST, HOST.replace(b"\r", b":80:80\r"))),
    Case(
        "a host with a path",
        "200 | 4xx",
        headed().replace(HOST, HOST.replace(b"\r", b"/metrics\r")),
    ),
    Case("a host with a user", "200 | 4xx", headed().replace(HOST, HOST.replace(b": ", b": a@"))),
    Case("a host with a final point", "200", headed().replace(HOST, HOST.replace(b"\r", b".\r"))),
    Case("a host in capitals", "200", headed().replace(HOST, HOST.upper())),
    Case("a host of bytes over 127", "200 | 4xx", headed().replace(HOST, b"Host: \xff\xfe\r\n")),
    Case("an expectation", "100 200", headed(b"Expect: 100-continue\r\n")),
    Case("another expectation", "200", headed(b"Expect: the-unexpected\r\n")),
    Case("an upgrade to h2c", "200", headed(*H2C)),
    Case(
        "an upgrade to a web socket",
        "405",
        line(b"/callbacks/default").replace(CLOSE, b"".join(WEB_SOCKET)),
    ),
    Case("an upgrade to h2c, and a request after it", "200 405", post(*H2C, LENGTH)),
    Case("an upgrade to h2c in chunks", "200 405", post(*H2C, CHUNKED, body=IN_CHUNKS)),
    Case("a body said to be gzip", "200", headed(b"Content-Encoding: gzip\r\n")),
    Case("a content type that is none", "200", headed(b"Content-Type: \xff;;;=;charset=utf-7\r\n")),
    Case("ranges", "200", headed(b"Range: bytes=" + b"0-," * 300 + b"\r\n")),
]
