"""Requests that two readers could take for different ones. See attack.py for the notation."""

from attack import BODY, CHUNKED, HOST, IN_CHUNKS, LENGTH, NEXT, POST, SIGNED, SMUGGLED, Case, post

from receiver.openconnectors.signatures import HEADER

GET = b"GET /callbacks/default HTTP/1.1\r\n" + HOST
FOLDED = POST.replace(HOST, b" X-A: b\r\n" + HOST)


def sent(name: str, answers: str, *lines: bytes) -> Case:
    """A callback with these header lines, and a request after it."""
    return Case(name, answers, post(*lines))


def encoded(name: str, answers: str, value: bytes, *more: bytes) -> Case:
    """A callback in chunks, by whatever `Transfer-Encoding` says, and a request after it."""
    header = b"Transfer-Encoding:%b\r\n" % value
    return Case(name, answers, post(header, *more, body=IN_CHUNKS))


def long(name: str, answers: str, value: bytes) -> Case:
    """A callback whose length is written so, and a request after it."""
    return sent(name, answers, b"Content-Length:%b\r\n" % value)


def in_chunks(name: str, answers: str, *lines: bytes) -> Case:
    """A callback in chunks with these header lines, and a request after it."""
    return Case(name, answers, post(*lines, body=IN_CHUNKS))


CASES = [
    Case(
        "length and chunked, chunked shorter",
        "400",
        post(
            b"Content-Length: %d\r\n" % (5 + len(SMUGGLED)), CHUNKED, body=b"0\r\n\r\n" + SMUGGLED
        ),
    ),
    Case(
        "chunked and length, length shorter",
        "400",
        post(
            CHUNKED,
            b"Content-Length: 4\r\n",
            body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        ),
    ),
    in_chunks("chunked twice", "400", CHUNKED, CHUNKED),
    in_chunks("chunked, then identity", "400", CHUNKED, b"Transfer-Encoding: identity\r\n", LENGTH),
    encoded("identity, then chunked", "501", b" identity", CHUNKED),
    encoded("list: chunked, identity", "400", b" chunked, identity"),
    encoded("list: gzip, chunked", "501", b" gzip, chunked"),
    encoded("list: chunked, chunked", "400", b" chunked, chunked"),
    encoded("xchunked", "400", b" xchunked", LENGTH),
    encoded("chunked before a blank", "200 405", b" chunked "),
    encoded("chunked before a tab", "400 | 200 405", b" chunked\t"),
    encoded("chunked in capitals", "200 405", b" CHUNKED"),
    encoded("chunked after a vertical tab", "400", b" \x0bchunked", LENGTH),
    encoded("chunked in quotes", "400", b' "chunked"', LENGTH),
    in_chunks("chunked, blank before the colon", "400", b"Transfer-Encoding : chunked\r\n", LENGTH),
    encoded("chunked on a folded line", "400 | 200", b"\r\n chunked", LENGTH),
    sent("chunked with an underscore", "200 405", b"Transfer_Encoding: chunked\r\n", LENGTH),
    Case(
        "chunked in HTTP/1.0",
        "400",
        post(CHUNKED, body=IN_CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    ),
    sent("empty encoding", "400", b"Transfer-Encoding:\r\n", LENGTH),
    sent("length twice, the same", "400 | 200 4xx", LENGTH, LENGTH),
    sent("length twice, different", "400", LENGTH, b"Content-Length: 0\r\n"),
    long("length twice, in a list", "400 | 200 4xx", b" %d, %d" % (len(BODY), len(BODY))),
    long("length with a plus", "400", b" +%d" % len(BODY)),
    long("length below zero", "400", b" -1"),
    long("length in hexadecimal", "400", b" 0x%x" % len(BODY)),
    long("length with an underscore", "400", b" 3_5"),
    long("length with a point", "400", b" 35.0"),
    long("length in other digits", "400", b" \xef\xbc\x93\xef\xbc\x95"),
    long("length empty", "400", b""),
    Case(
        "length of 2^64 more",
        "400",
        post(b"Content-Length: %d\r\n" % (2**64 + len(BODY)), then=b""),
        half_close=True,
    ),
    long("length after zeros", "200 405", b" 000000%d" % len(BODY)),
    Case(
        "no length, and something that looks like a body",
        "401 200 405 | 4xx 4xx 4xx",
        post(body=b"", then=SMUGGLED + NEXT),
    ),
    Case(
        "length zero, and a request behind",
        "401 200 405 | 4xx 4xx 4xx",
        post(b"Content-Length: 0\r\n", body=b"", then=SMUGGLED + NEXT),
    ),
    Case(
        "a body with GET",
        "405 405",
        GET + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED + NEXT,
    ),
    Case("bare line feeds", "400 | 200 4xx", post(LENGTH).replace(b"\r\n", b"\n")),
    sent("a bare line feed in the head", "400 | 200 4xx", b"X-A: b\nX-C: d\r\n", LENGTH),
    sent("a bare carriage return in a value", "400", b"X-A: b\r" + CHUNKED, LENGTH),
    sent("a folded line", "400 | 200 4xx", b"X-A: b\r\n c\r\n", LENGTH),
    Case("a folded first line", "400", FOLDED + SIGNED + LENGTH + b"\r\n" + BODY + NEXT),
    Case("two callbacks in one go", "200 200 405", post(LENGTH, then=post(LENGTH))),
    sent("connection names the length", "200 405", b"Connection: Content-Length\r\n", LENGTH),
    sent(
        "connection names the signature",
        "200 405",
        b"Connection: %b\r\n" % HEADER.encode(),
        LENGTH,
    ),
    sent("connection names the address", "200 405", b"Connection: X-Forwarded-For\r\n", LENGTH),
]
