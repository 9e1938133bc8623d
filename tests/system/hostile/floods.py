"""Too many or too long."""

from attack import BODY, CLOSE, LENGTH, POST, Case, headed, line

from receiver.openconnectors.signatures import HEADER

CASES = [
    Case("40 fields more", "200", headed(*[b"X-%d: a\r\n" % number for number in range(40)])),
    Case("100 fields more", "431", headed(*[b"X-%d: a\r\n" % number for number in range(100)])),
    Case("2,000 fields more", "431", headed(*[b"X-%d: a\r\n" % number for number in range(2000)])),
    Case("a field of 3,500 bytes", "200", headed(b"X-A: " + b"a" * 3500 + b"\r\n")),
    Case("a field of 5,000 bytes", "431", headed(b"X-A: " + b"a" * 5000 + b"\r\n")),
    Case("a field of 100,000 bytes", "431", headed(b"X-A: " + b"a" * 100_000 + b"\r\n")),
    Case("a field's name of 5,000 bytes", "431", headed(b"X" * 5000 + b": a\r\n")),
    Case(
        "fields of 30,000 bytes in all",
        "200 | 4xx",
        headed(*[b"X-%d: " % number + b"a" * 3000 + b"\r\n" for number in range(10)]),
    ),
    Case(
        "a signature of 3,500 bytes",
        "401",
        POST
        + HEADER.encode()
        + b": sha256="
        + b"a" * 3500
        + b"\r\n"
        + LENGTH
        + CLOSE
        + b"\r\n"
        + BODY,
    ),
    Case("a target of 3,000 bytes", "405", line(b"/callbacks/" + b"a" * 3000)),
    Case("a target of 6,000 bytes", "414", line(b"/callbacks/" + b"a" * 6000)),
    Case("a target of 200,000 bytes", "414", line(b"/callbacks/" + b"a" * 200_000)),
    Case("a query of 3,000 bytes", "405", line(b"/callbacks/default?" + b"a" * 3000)),
    Case("a method of 10,000 bytes", "405", line(b"/callbacks/default", b"A" * 10_000)),
    Case("100,000 bytes without a line end", "400", b"A" * 100_000, half_close=True),
]
