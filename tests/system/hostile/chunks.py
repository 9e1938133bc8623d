"""Chunks that are odd, broken or cut off."""

from attack import BODY, CHUNKED, IN_CHUNKS, NEXT, POST, SIGNED, Case, post

from receiver.openconnectors.signatures import HEADER

MANY = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY.ljust(12_000)) + b"0\r\n\r\n"

CASES = [
    Case("chunks", "200 405", post(CHUNKED, body=IN_CHUNKS)),
    Case(
        "a chunk extension",
        "200 405",
        post(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b";a=b\r\n", 1)),
    ),
    Case(
        "a chunk extension in quotes over a line end",
        "400",
        post(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b';a="\r\n"\r\n', 1)),
    ),
    Case(
        "a chunk extension of 100,000 bytes",
        "200 405",
        post(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b";" + b"a" * 100_000 + b"\r\n", 1)),
    ),
    Case(
        "a chunk extension with a bare line feed",
        "400",
        post(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b";a\n\r\n", 1)),
    ),
    Case("a chunk's size after zeros", "200 405", post(CHUNKED, body=b"0000" + IN_CHUNKS)),
    Case("a chunk's size with 0x", "400", post(CHUNKED, body=b"0x" + IN_CHUNKS)),
    Case("a chunk's size with a sign", "400", post(CHUNKED, body=b"+" + IN_CHUNKS)),
    Case(
        "a chunk's size with an underscore",
        "400",
        post(CHUNKED, body=b"2_3\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ),
    Case(
        "a chunk's size before a blank",
        "400 | 200 4xx",
        post(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b" \r\n", 1)),
    ),
    Case("a chunk's size after a blank", "400", post(CHUNKED, body=b" " + IN_CHUNKS)),
    Case(
        "a chunk's size of 2^64 more",
        "400",
        post(
            CHUNKED, body=b"1" + b"%016x" % len(BODY) + b"\r\n" + BODY + b"\r\n0\r\n\r\n", then=b""
        ),
        half_close=True,
    ),
    Case(
        "a chunk's size that is no number",
        "400",
        post(CHUNKED, body=b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ),
    Case(
        "a chunk's size that is missing",
        "400",
        post(CHUNKED, body=b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ),
    Case(
        "a chunk longer than its size",
        "400",
        post(CHUNKED, body=b"5\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ),
    Case(
        "a chunk shorter than its size",
        "400",
        post(CHUNKED, body=b"ff\r\n" + BODY + b"\r\n0\r\n\r\n", then=b""),
        half_close=True,
    ),
    Case(
        "a chunk that ends in a line feed",
        "400 | 200 4xx",
        post(CHUNKED, body=IN_CHUNKS.replace(b"}\r\n", b"}\n")),
    ),
    Case(
        "chunks without the last",
        "400",
        post(CHUNKED, body=b"%x\r\n%b\r\n" % (len(BODY), BODY), then=b""),
        half_close=True,
    ),
    Case(
        "a last chunk without its line end",
        "400",
        post(CHUNKED, body=IN_CHUNKS[:-2], then=b""),
        half_close=True,
    ),
    Case("a trailer", "200 405", post(CHUNKED, body=IN_CHUNKS[:-2] + b"X-A: b\r\n\r\n")),
    Case(
        "a length in the trailer",
        "400 | 200 4xx",
        post(CHUNKED, body=IN_CHUNKS[:-2] + b"Content-Length: 1\r\n\r\n"),
    ),
    Case(
        "a signature in the trailer",
        "401 405",
        POST
        + CHUNKED
        + b"Trailer: %b\r\n\r\n" % HEADER.encode()
        + IN_CHUNKS[:-2]
        + SIGNED
        + b"\r\n"
        + NEXT,
    ),
    Case(
        "a trailer of 200 lines",
        "400 | 200 4xx",
        post(CHUNKED, body=IN_CHUNKS[:-2] + b"X-A: b\r\n" * 200 + b"\r\n"),
    ),
    Case("12,000 chunks of a byte", "400 | 4xx 4xx", post(CHUNKED, body=MANY), half_close=True),
]
