"""Bytes that are hardly HTTP, or stop too early."""

from attack import BODY, CHUNKED, LENGTH, POST, SIGNED, Case, line, post

CASES = [
    Case("a body cut off", "400", post(LENGTH, body=BODY[:7], then=b""), half_close=True),
    Case("no body at all", "400", post(LENGTH, body=b"", then=b""), half_close=True),
    Case("a head cut off", "-", POST + SIGNED + LENGTH, half_close=True),
    Case("half a request line", "-", b"POST /callb", half_close=True),
    Case("nothing", "-", b"", half_close=True),
    Case("empty lines first", "200 405", b"\r\n\r\n" + post(LENGTH)),
    Case("HTTP/0.9", "-", b"GET /callbacks/default\r\n", half_close=True),
    Case("HTTP/1.0 without a host", "405", b"GET /callbacks/default HTTP/1.0\r\n\r\n"),
    Case("HTTP/1.2", "400", line(b"/callbacks/default", version=b"HTTP/1.2")),
    Case("HTTP/2.0 as text", "400", line(b"/callbacks/default", version=b"HTTP/2.0")),
    Case("HTTP/9.9", "400", line(b"/callbacks/default", version=b"HTTP/9.9")),
    Case("http/1.1 in small letters", "400", line(b"/callbacks/default", version=b"http/1.1")),
    Case("HTTP/1.10", "400", line(b"/callbacks/default", version=b"HTTP/1.10")),
    Case("another protocol's name", "400", line(b"/callbacks/default", version=b"ICAP/1.0")),
    Case(
        "HTTP/2's preface",
        "400",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        half_close=True,
    ),
    Case(
        "a TLS greeting",
        "400",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 64,
        half_close=True,
    ),
    Case("bytes that are nothing", "400", bytes(range(256)) * 4, half_close=True),
    Case("a PROXY line", "405", b"PROXY TCP4 6.6.6.6 127.0.0.1 1 80\r\n" + post(LENGTH)),
    Case("a request, then nonsense", "200 400", post(LENGTH, then=b"\0\1\2\r\n\r\n")),
    Case(
        "a request, then a broken chunk",
        "200 400",
        post(LENGTH, then=post(CHUNKED, body=b"zz\r\n", then=b"")),
        half_close=True,
    ),
    Case(
        "a request, then half of one",
        "200 | 200 4xx",
        post(LENGTH, then=b"POST /callb"),
        half_close=True,
    ),
    Case(
        "a request, then half a body",
        "200",
        post(LENGTH, then=post(LENGTH, body=BODY[:7], then=b"")),
        half_close=True,
    ),
]
