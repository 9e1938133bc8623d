"""Chunks that are odd, broken or cut off."""

from attack import BODY, CHUNKED, IN_CHUNKS, NEXT, POST, SIGNED, Case, post

from receiver.openconnectors.signatures import HEADER

MANY = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY.ljust(12_000)) + b"0\r\n\r\n"


def sent(name: str, answers: str, chunks: bytes) -> Case:
    """A callback in these chunks, and a request after it."""
    return Case(name, answers, post(CHUNKED, body=chunks))


def cut_off(name: str, chunks: bytes) -> Case:
    """A callback in these chunks, after which no more comes."""
    return Case(name, "400", post(CHUNKED, body=chunks, then=b""), half_close=True)


def extended(by: bytes) -> bytes:
    """The chunks with something after the size of the first."""
    return IN_CHUNKS.replace(b"\r\n", by + b"\r\n", 1)


def sized(size: bytes) -> bytes:
    """The chunks with another size of the first."""
    return size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"


def with_trailer(lines: bytes) -> bytes:
    """The chunks with lines after the last."""
    return IN_CHUNKS[:-2] + lines + b"\r\n"


NAMED = CHUNKED + b"Trailer: %b\r\n\r\n" % HEADER.encode()
CASES = [
    sent("chunks", "200 405", IN_CHUNKS),
    sent("a chunk extension", "200 405", extended(b";a=b")),
    sent("a chunk extension in quotes over a line end", "400", extended(b';a="\r\n"')),
    sent("a chunk extension of 100,000 bytes", "200 405", extended(b";" + b"a" * 100_000)),
    sent("a chunk extension with a bare line feed", "400", extended(b";a\n")),
    sent("a chunk's size after zeros", "200 405", b"0000" + IN_CHUNKS),
    sent("a chunk's size with 0x", "400", b"0x" + IN_CHUNKS),
    sent("a chunk's size with a sign", "400", b"+" + IN_CHUNKS),
    sent("a chunk's size with an underscore", "400", sized(b"2_3")),
    sent("a chunk's size before a blank", "400 | 200 4xx", extended(b" ")),
    sent("a chunk's size after a blank", "400", b" " + IN_CHUNKS),
    cut_off("a chunk's size of 2^64 more", sized(b"1%016x" % len(BODY))),
    sent("a chunk's size that is no number", "400", sized(b"zz")),
    sent("a chunk's size that is missing", "400", sized(b"")),
    sent("a chunk longer than its size", "400", sized(b"5")),
    cut_off("a chunk shorter than its size", sized(b"ff")),
    sent("a chunk that ends in a line feed", "400 | 200 4xx", IN_CHUNKS.replace(b"}\r\n", b"}\n")),
    cut_off("chunks without the last", b"%x\r\n%b\r\n" % (len(BODY), BODY)),
    cut_off("a last chunk without its line end", IN_CHUNKS[:-2]),
    sent("a trailer", "200 405", with_trailer(b"X-A: b\r\n")),
    sent("a length in the trailer", "400 | 200 4xx", with_trailer(b"Content-Length: 1\r\n")),
    Case("a signature in the trailer", "401 405", POST + NAMED + with_trailer(SIGNED) + NEXT),
    sent("a trailer of 200 lines", "400 | 200 4xx", with_trailer(b"X-A: b\r\n" * 200)),
    Case("12,000 chunks of a byte", "400 | 4xx 4xx", post(CHUNKED, body=MANY), half_close=True),
]
