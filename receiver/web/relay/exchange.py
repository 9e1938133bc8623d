"""One exchange with the vendor: a request as it came, and the answer as it came.

Bodies are spooled to disk, so that a worker's memory does not depend on what is sent through it.
"""

import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, cast
from wsgiref.types import WSGIEnvironment

import httpx
import msgspec
import structlog
from flask import Response, request
from werkzeug.datastructures import Headers

from receiver.errors import (
    AnswerCut,
    NotFound,
    VendorError,
    VendorUnclear,
    VendorUnreachable,
)
from receiver.instances.registry import VendorSecrets
from receiver.instances.tokens import Bearer
from receiver.openconnectors import shapes
from receiver.openconnectors.client import Call, VendorClient, redact_secrets
from receiver.openconnectors.shapes import Route
from receiver.web.bodies import MAX_HELD, pieces

log = structlog.get_logger()

MAX_READ = 4 * 2**20  # bytes of an answer that is learnt from; longer ones are only passed on
SECONDS = 30  # without a byte of an answer
OUR_PAGES = "r"  # begins the tokens of our own pages; others are the vendor's

_HOP_BY_HOP = frozenset(  # RFC 9110, 7.6.1; and what is for the next proxy alone
    {"connection", "proxy-connection", "keep-alive", "te", "transfer-encoding", "upgrade"}
    | {"proxy-authorization", "proxy-authenticate"}
)
_OURS = frozenset({"authorization", "host", "cookie", "content-length"})
_NOT_PASSED_BACK = _HOP_BY_HOP | {"set-cookie", "date"}  # our server writes the date
# What a stranger answers stands under our own address: a browser shows it without a script, a
# form, or our origin.
_CONTAINED = ("Content-Security-Policy", "sandbox; default-src 'none'")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_ABSOLUTE = re.compile("https?://[^/?#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """A request on its way: about which instance, and who asks.

    secrets -- what the vendor is asked with. target -- path and query below the base, as they came.
    """

    instance: str
    bearer: Bearer
    secrets: VendorSecrets
    route: Route
    method: str
    target: str
    headers: list[tuple[bytes, bytes]] = field(repr=False)
    body: IO[bytes] | None = None

    @property
    def job(self) -> str:
        """The id of the job that its path names; empty if it names none."""
        return self.route.job or ""

    def with_header(self, name: str, value: str) -> "Question":
        """Return a copy with this header in the place of all of that name."""
        others = [pair for pair in self.headers if pair[0].lower() != name.lower().encode()]
        return replace(self, headers=[*others, (name.encode(), value.encode("latin-1"))])


@dataclass(slots=True)
class Reply:
    """The vendor's answer. body -- what was read of it. is_complete -- whether that is all.

    plain -- the whole of it, decoded; None if it was not read to its end, or its coding is unknown.
    """

    question: Question
    status: int
    headers: Headers
    answer: httpx.Response
    rest: Iterator[bytes]
    body: bytes = b""
    is_complete: bool = False
    plain: bytes | None = None

    @property
    def ok(self) -> bool:
        """Whether the vendor did what was asked."""
        return 200 <= self.status < 300

    @property
    def is_file(self) -> bool:
        """Whether it can be a job's file: no error, no redirect, no page to sign in at."""
        content_type = self.headers.get("content-type", "").lower()
        return self.ok and not content_type.startswith("text/html")

    def replace_body(self, body: bytes) -> None:
        """Answer with other JSON than the vendor's."""
        for name in ("content-encoding", "content-length", "content-type"):
            self.headers.pop(name, None)
        self.headers["content-type"] = "application/json"
        self.body, self.is_complete = body, True


def target() -> str:
    """Return path and query of this request below the base, percent-encoded as they came.

    Raises NotFound where the base itself is written in another way.
    """
    environ = request.environ
    if scope := environ.get("asgi.scope"):
        query = scope["query_string"].decode("latin-1")
        raw = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    else:
        raw = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
        raw = raw[match.end() :] if (match := _ABSOLUTE.match(raw)) else raw
    if not raw.startswith(shapes.BASE):
        raise NotFound("there is no such path")
    return cast("str", raw[len(shapes.BASE) :])


def headers() -> list[tuple[bytes, bytes]]:
    """Return the headers of this request that are passed on."""
    if scope := request.environ.get("asgi.scope"):
        received = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    else:
        received = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers
        ]
    named = {name.strip().lower() for name in request.headers.get("Connection", "").split(",")}
    dropped = _HOP_BY_HOP | _OURS | named
    return [
        (name, value)
        for name, value in received
        if (lower := name.decode("latin-1").lower()) not in dropped
        and not lower.startswith("x-forwarded-")
    ]


def has_body() -> bool:
    """Whether this request came with a body, though it be empty."""
    return "Content-Length" in request.headers or "Transfer-Encoding" in request.headers


def send(vendor: VendorClient, question: Question, seconds: float | None = None) -> Reply:
    """Ask the vendor; return whatever it answers. Raises VendorError where it does not.

    seconds -- without a byte of an answer; None: SECONDS.
    """
    seconds = seconds or SECONDS
    safe, authorization = question.method in _SAFE, question.secrets.authorization
    call = Call(method=question.method, path="", name=question.route.kind, safe=safe)
    sent = [*question.headers]
    # The answer to TRACE is what was sent: it must hold no credentials (RFC 9110, 9.3.8).
    if question.method != "TRACE":
        sent.append((b"Authorization", authorization.encode("latin-1")))
    if question.body is not None:
        sent.append((b"Content-Length", b"%d" % question.body.seek(0, 2)))
    body = pieces(question.body) if question.body else ()
    answer = vendor.relay(call, question.target, sent, body, seconds)
    passed_back = _headers_of(answer, authorization)
    pieces_ = vendor.pieces(answer, call)
    reply = Reply(question, answer.status_code, passed_back, answer, pieces_)
    if not reply.ok or _is_short(reply):
        read(reply, seconds)
    return reply


def read(reply: Reply, seconds: float | None = None) -> bytes | None:
    """Read an answer that is no longer than MAX_READ; None for a longer one.

    What is read is whole, decoded, and quotes none of our secrets. Raises VendorError.
    """
    if reply.is_complete:
        return reply.plain
    deadline = time.monotonic() + (seconds or SECONDS)
    body = bytearray()
    for piece in reply.rest:
        body += piece
        if len(body) > MAX_READ:
            reply.body = bytes(body)
            return None
        if time.monotonic() > deadline:
            reply.answer.close()
            late = VendorUnreachable if reply.question.method in _SAFE else VendorUnclear
            raise late("the vendor's answer takes too long", 504)
    reply.body, reply.is_complete = bytes(body), True
    plain = _decoded(reply.body, reply.headers.get("content-encoding", ""))
    if plain is None:
        return None
    reply.plain = redact_secrets(plain, reply.question.secrets.authorization)
    if reply.plain != plain:
        reply.headers.pop("content-encoding", None)
        reply.headers.pop("content-length", None)
        reply.body = reply.plain
    return reply.plain


class _AsItCame(Response):
    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:  # noqa: ARG002 - Werkzeug's
        """Return the headers as they are: Werkzeug would write `Location` anew."""
        return self.headers


def respond(reply: Reply, done: Callable[[], None] | None = None) -> Response:
    """Answer as the vendor did. done -- called once the whole answer was passed on."""
    if reply.is_complete:
        reply.answer.close()
        response = _AsItCame(reply.body, reply.status)
    else:
        response = _AsItCame(_passing(reply, done), reply.status, direct_passthrough=True)
        response.call_on_close(reply.answer.close)
    # All of them at once, or Flask would add a type where there is none.
    response.headers = reply.headers
    if reply.status in (204, 304):  # which have no body, whatever length is announced
        response.headers.pop("content-length", None)
    elif reply.is_complete and reply.question.method != "HEAD":
        response.headers["content-length"] = str(len(reply.body))
    response.headers.add(*_CONTAINED)  # beside the vendor's own, if there is one: both hold
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def json_response(content: object) -> Response:
    """Answer 200 with JSON of our own."""
    return Response(msgspec.json.encode(content), mimetype="application/json")


def json_page(entries: list[Any], start: int, size: int) -> Response:
    """Answer the page of `size` entries at `start`; one entry more says that it is not the last."""
    page, following = entries[:size], f"{OUR_PAGES}{start + size}" if entries[size:] else None
    response = json_response(page)
    response.headers.update(shapes.page_headers(len(page), following))
    return response


def _headers_of(answer: httpx.Response, authorization: str) -> Headers:
    named = {name.strip() for name in answer.headers.get("connection", "").lower().split(",")}
    dropped = _NOT_PASSED_BACK | named
    return Headers(
        [
            (name.decode("latin-1"), redact_secrets(value, authorization).decode("latin-1"))
            for name, value in answer.headers.raw
            if name.decode("latin-1").lower() not in dropped
        ]
    )


def _is_short(reply: Reply) -> bool:
    length = reply.headers.get("content-length", "")
    return length.isascii() and length.isdigit() and int(length) <= MAX_HELD


def _passing(reply: Reply, done: Callable[[], None] | None) -> Iterator[bytes]:
    if reply.body:
        yield reply.body
    try:
        yield from reply.rest
    except VendorError as error:
        question = reply.question
        about = {"instance": question.instance, "job": question.job}
        log.warning("an answer broke off", path=question.route.kind, **about, error=str(error))
        # An answer that just ended here would look whole.
        raise AnswerCut("the vendor broke off its answer") from None
    if done is not None:
        done()


def _decoded(body: bytes, encoding: str) -> bytes | None:
    """Undo a content coding, no further than MAX_READ; None for one that is not known here."""
    if encoding in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        return None
    try:
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
        plain = decoder.decompress(body, MAX_READ)
    except zlib.error:
        return None
    return plain if decoder.eof else None
