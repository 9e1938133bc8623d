"""Requests that two readers could take for different ones. See attack.py for the notation."""

from attack import BODY, CHUNKED, HOST, IN_CHUNKS, LENGTH, NEXT, POST, SIGNED, SMUGGLED, Case, post

from receiver.openconnectors.signatures import HEADER

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
    Case("chunked twice", "400", post(CHUNKED, CHUNKED, body=IN_CHUNKS)),
    Case(
        "chunked, then identity",
        "400",
        post(CHUNKED, b"Transfer-Encoding: identity\r\n", LENGTH, body=IN_CHUNKS),
    ),
    Case(
        "identity, then chunked",
        "501",
        post(b"Transfer-Encoding: identity\r\n", CHUNKED, body=IN_CHUNKS),
    ),
    Case(
        "list: chunked, identity",
        "400",
        post(b"Transfer-Encoding: chunked, identity\r\n", body=IN_CHUNKS),
    ),
    Case(
        "list: gzip, chunked", "501", post(b"Transfer-Encoding: gzip, chunked\r\n", body=IN_CHUNKS)
    ),
    Case(
        "list: chunked, chunked",
        "400",
        post(b"Transfer-Encoding: chunked, chunked\r\n", body=IN_CHUNKS),
    ),
    Case("xchunked", "400", post(b"Transfer-Encoding: xchunked\r\n", LENGTH, body=IN_CHUNKS)),
    Case("chunked before a blank", "200 405", post(CHUNKED[:-2] + b" \r\n", body=IN_CHUNKS)),
    Case("chunked before a tab", "400 | 200 405", post(CHUNKED[:-2] + b"\t\r\n", body=IN_CHUNKS)),
    Case("chunked in capitals", "200 405", post(b"Transfer-Encoding: CHUNKED\r\n", body=IN_CHUNKS)),
    Case(
        "chunked after a vertical tab",
        "400",
        post(b"Transfer-Encoding: \x0bchunked\r\n", LENGTH, body=IN_CHUNKS),
    ),
    Case(
        "chunked in quotes",
        "400",
        post(b'Transfer-Encoding: "chunked"\r\n', LENGTH, body=IN_CHUNKS),
    ),
    Case(
        "chunked, blank before the colon",
        "400",
        post(b"Transfer-Encoding : chunked\r\n", LENGTH, body=IN_CHUNKS),
    ),
    Case(
        "chunked on a folded line",
        "400 | 200",
        post(b"Transfer-Encoding:\r\n chunked\r\n", LENGTH, body=IN_CHUNKS),
    ),
    Case("chunked with an underscore", "200 405", post(b"Transfer_Encoding: chunked\r\n", LENGTH)),
    Case(
        "chunked in HTTP/1.0",
        "400",
        post(CHUNKED, body=IN_CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    ),
    Case("empty encoding", "400", post(b"Transfer-Encoding:\r\n", LENGTH)),
    Case("length twice, the same", "400 | 200 4xx", post(LENGTH, LENGTH)),
    Case("length twice, different", "400", post(LENGTH, b"Content-Length: 0\r\n")),
    Case(
        "length twice, in a list",
        "400 | 200 4xx",
        post(b"Content-Length: %d, %d\r\n" % (len(BODY), len(BODY))),
    ),
    Case("length with a plus", "400", post(b"Content-Length: +%d\r\n" % len(BODY))),
    Case("length below zero", "400", post(b"Content-Length: -1\r\n")),
    Case("length in hexadecimal", "400", post(b"Content-Length: 0x%x\r\n" % len(BODY))),
    Case("length with an underscore", "400", post(b"Content-Length: 3_5\r\n")),
    Case("length with a point", "400", post(b"Content-Length: 35.0\r\n")),
    Case("length in other digits", "400", post(b"Content-Length: \xef\xbc\x93\xef\xbc\x95\r\n")),
    Case("length empty", "400", post(b"Content-Length:\r\n")),
    Case(
        "length of 2^64 more",
        "400",
        post(b"Content-Length: %d\r\n" % (2**64 + len(BODY)), then=b""),
        half_close=True,
    ),
    Case("length after zeros", "200 405", post(b"Content-Length: 000000%d\r\n" % len(BODY))),
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
        b"GET /callbacks/default HTTP/1.1\r\n"
        + HOST
        + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED)
        + SMUGGLED
        + NEXT,
    ),
    Case("bare line feeds", "400 | 200 4xx", post(LENGTH).replace(b"\r\n", b"\n")),
    Case("a bare line feed in the head", "400 | 200 4xx", post(b"X-A: b\nX-C: d\r\n", LENGTH)),
    Case(
        "a bare carriage return in a value",
        "400",
        post(b"X-A: b\rTransfer-Encoding: chunked\r\n", LENGTH),
    ),
    Case("a folded line", "400 | 200 4xx", post(b"X-A: b\r\n c\r\n", LENGTH)),
    Case(
        "a folded first line",
        "400",
        POST.replace(HOST, b" X-A: b\r\n" + HOST) + SIGNED + LENGTH + b"\r\n" + BODY + NEXT,
    ),
    Case("two callbacks in one go", "200 200 405", post(LENGTH, then=post(LENGTH))),
    Case("connection names the length", "200 405", post(b"Connection: Content-Length\r\n", LENGTH)),
    Case(
        "connection names the signature",
        "200 405",
        post(b"Connection: %b\r\n" % HEADER.encode(), LENGTH),
    ),
    Case(
        "connection names the address", "200 405", post(b"Connection: X-Forwarded-For\r\n", LENGTH)
    ),
]
