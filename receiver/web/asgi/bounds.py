"""One client's connection: uvicorn's, with the bounds that it has not.

An invalid request gets one answer, after those still due, and ends the connection.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Any, Literal

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from receiver.errors import BodyError, BodyTruncated
from receiver.web.asgi import Application
from receiver.web.asgi.messages import BODY_SECONDS, MAX_DRAINED_BYTES
from receiver.web.callbacks import PREFIX
from receiver.web.http import Response
from receiver.web.problems import Problem, problem_response, response_to

MAX_TARGET_BYTES = 4094
MAX_FIELDS = 64  # of a head, and of a trailer
MAX_FIELD_BYTES = 4096
MAX_HEAD_BYTES = 2**16
# A chunk costs a call whatever its size: beyond some, they must have this many bytes on average.
MAX_SMALL_CHUNKS, MIN_CHUNK_BYTES = 10_000, 64
MAX_PIPELINED = 128

HEAD_SECONDS = 20  # for a head to arrive, and the first one to begin
KEEP_ALIVE_SECONDS = 75  # longer than a load balancer's, or it would meet closed connections
STOP_SECONDS = 2  # that an idle connection stays once the server is told to stop
SEND_SECONDS = 60  # for a client to take some of its answer
LINGER_SECONDS = 5  # for a client to close its side after the last answer

_METHOD = re.compile(rb"[A-Za-z]+ ")
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


def _without_upgrade(name: bytes, value: bytes) -> bytes:
    if name != b"connection":
        return value
    options = (option.strip() for option in value.split(b","))
    return b", ".join(option for option in options if option.lower() != b"upgrade")


class Refused(Exception):
    """The request is invalid. status -- of the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class BoundedConnection(HttpToolsProtocol):
    """A connection whose heads, trailers, chunks, pipelined requests and pauses are bounded."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._application: Application = self.config.loaded_app
        self.url = b""  # of the newest request
        self._since = self.loop.time()  # what is waited for now: idle, head, body
        self._reading: Literal["head", "body", ""] = "head"  # a new connection is to send one
        self._head_bytes = self._trailers = self._chunks = self._body_bytes = self._drained = 0
        self._begun = 0  # requests, in what was received last
        self._previous = self.cycle  # of the request before the newest
        self._is_behind = False  # the newest came while another's answer was due
        self._ignores_input = False  # what follows is not a request
        self._has_ended = False  # the client has sent its last byte
        self._refusal: int | None = None  # due once all before it is answered
        self._is_stopping = False
        self._paused_at: float | None = None

    # --- from the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, unless there are as many already as may be."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._application.connections.add(self)
        if len(self.connections) > self._application.max_connections:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._application.connections.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._ignores_input:
            self._drain(len(data))
            return
        self._begun = 0
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            self._refuse(self._status_of(error, data))
        if self._reading == "head":
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self._ignores_input:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _status_of(self, error: HttpParserError, data: bytes) -> int:
        if isinstance(error.__context__, Refused):
            return error.__context__.status
        is_method = isinstance(error, HttpParserInvalidMethodError) and _METHOD.match(data)
        if is_method and self._begun == 1:  # it stands where the data begins
            return HTTPStatus.METHOD_NOT_ALLOWED
        return HTTPStatus.BAD_REQUEST

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse a request anew as one that changes no protocol: the parser skips its body.

        Java's client wishes for h2c with whatever it sends in the clear. The field stays, for whom
        it is passed on by.
        """
        fields = ((name, _without_upgrade(name, value)) for name, value in self.headers)
        lines = [b"%b: %b\r\n" % field for field in fields]
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (self.parser.get_method(), self.url, b"".join(lines))
        self.parser = HttpRequestParser(self)
        self.data_received(head + rest)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has closed its own side only; by itself uvicorn would not."""
        self._ignores_input = self._has_ended = True
        if not self.is_busy():
            return False
        cut = BodyTruncated("the body broke off")
        if self._reading == "body" and not self._unqueue() and not self.break_off(cut):
            if self._is_behind:
                return False  # the answer to the one before it is all that is due
            self._answer_instead(response_to(cut, self.cycle.scope["path"]))
        self.cycle.keep_alive = False
        return True

    def _answer_instead(self, response: Response) -> None:
        """Answer a request whose body broke off in the place of its task, which ends by that."""
        cycle = self.cycle
        begun = cycle.response_started
        if self._callback_path() and cycle.scope["method"] != "POST":  # which is looked at first
            response = self._refusal_of(HTTPStatus.METHOD_NOT_ALLOWED)
        # To its task the client is gone: nothing of the body goes on to the vendor.
        cycle.disconnected = cycle.response_complete = True
        cycle.message_event.set()
        if not begun:
            self.write(response, keep_alive=False)
        self.end()

    def _unqueue(self) -> bool:
        """Drop the newest request if it waits for those before it; return whether it did."""
        if self.pipeline:
            self.pipeline.popleft()
            self.cycle = self._previous
            return True
        return False

    def pause_writing(self) -> None:
        """Note that the client does not take its answer."""
        self._paused_at = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that it takes some."""
        self._paused_at = None
        super().resume_writing()

    def break_off(self, error: BodyError) -> bool:  # noqa: ARG002 - for who does
        """Answer the newest request, whose body cannot be had; False if its task is to do that."""
        return False

    # --- from the server

    def timeout_keep_alive_handler(self) -> None:
        """Leave it to `expire`, which knows of callbacks too."""

    def shutdown(self) -> None:
        """Answer what is under way, and what a client sends just now that knows of no stop."""
        self._application.stop()
        self._is_stopping = True
        if self.is_busy():
            self.cycle.keep_alive = False
        elif not self._ignores_input:
            self._since = self.loop.time()

    def expire(self, now: float) -> None:
        """Close it if its client takes too long; now -- the loop's time."""
        # A stream that ended before its client took all of it is closing, which it never would.
        is_cut = self.transport.is_closing() and self.is_busy()
        if self._paused_at is not None and (is_cut or now - self._paused_at > SEND_SECONDS):
            self.transport.abort()
        elif not self._is_late(now - self._since):
            return
        elif self.is_busy():
            if self._reading == "body":
                self.break_off(BodyTruncated(f"not whole after {BODY_SECONDS} s"))
        else:
            self.transport.close()

    def _is_late(self, waited: float) -> bool:
        if self._ignores_input:
            return waited > LINGER_SECONDS
        if self._reading == "body":
            return waited > BODY_SECONDS
        if self._is_stopping:
            return waited > STOP_SECONDS
        return waited > (HEAD_SECONDS if self._reading == "head" else KEEP_ALIVE_SECONDS)

    # --- from the parser

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._ignores_input:
            raise Refused(HTTPStatus.BAD_REQUEST)
        super().on_message_begin()
        self._begun += 1
        self._reading = "head"
        self._head_bytes = self._chunks = self._body_bytes = 0
        self._since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """Take some of its target."""
        self.url += url
        if len(self.url) > MAX_TARGET_BYTES:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field; those of a trailer are counted and left out."""
        if len(name) + len(value) > MAX_FIELD_BYTES or len(self.headers) >= MAX_FIELDS:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if self._reading == "head":
            # The blanks around a value are none of it (RFC 9110, 5.5); the parser leaves those
            # after it. No other character is a blank: a signature with one is not the vendor's.
            super().on_header(name, value.strip(b" \t"))
        else:
            self._trailers += 1
            if self._trailers > MAX_FIELDS:
                raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Begin to answer it."""
        # To WSGI, a name with underscores is the same as one with dashes, which a proxy has set.
        self.headers[:] = [field for field in self.headers if b"_" not in field[0]]
        self._previous, self._is_behind = self.cycle, self.is_busy()
        super().on_headers_complete()
        if self._is_stopping:
            self.cycle.keep_alive = False
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.close()

    def check_head(self) -> None:
        """Refuse what two readers could take for different requests. Raises Refused."""
        self._reading, self._trailers = "body", 0
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise Refused(HTTPStatus.BAD_REQUEST)
        if self.parser.get_method() == b"CONNECT":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED)
        hosts = [value for name, value in self.headers if name == b"host"]
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        # HTTP/1.1 has exactly one (RFC 9112, 3.2).
        if len(hosts) != 1 and (hosts or version == "1.1"):
            raise Refused(HTTPStatus.BAD_REQUEST)
        if codings and version == "1.0":
            raise Refused(HTTPStatus.BAD_REQUEST)
        if codings not in ([], [b"chunked"]):
            raise Refused(HTTPStatus.NOT_IMPLEMENTED)
        # A target in absolute form asks for its path (RFC 9112, 3.2.2).
        if absolute := _ABSOLUTE.match(self.url):
            self.url = self.url[absolute.end() :] or b"/"

    def on_chunk_header(self) -> None:
        """Count a chunk."""
        self._chunks += 1
        if self._chunks > MAX_SMALL_CHUNKS + self._body_bytes // MIN_CHUNK_BYTES:
            raise Refused(HTTPStatus.BAD_REQUEST)

    def on_body(self, body: bytes) -> None:
        """Take some of its body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that it is whole."""
        self._reading = ""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # --- writing

    def write(self, response: Response, *, keep_alive: bool) -> None:
        """Write a response."""
        parts = [STATUS_LINE[response.status]]
        parts += [f"{name}: {value}\r\n".encode() for name, value in response.headers.items()]
        parts += [b"%b: %b\r\n" % field for field in self.server_state.default_headers]
        if not keep_alive and "Connection" not in response.headers:
            parts.append(b"connection: close\r\n")
        if response.status != HTTPStatus.NOT_MODIFIED:
            parts.append(b"content-length: %d\r\n" % len(response.body))
        parts += [b"\r\n", response.body]
        self.transport.write(b"".join(parts))

    def is_busy(self) -> bool:
        """Whether an answer is due: the newest request's is the last."""
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        """Go on with what was sent meanwhile."""
        self._since = self.loop.time()
        super().on_response_complete()
        if self._refusal and not self.is_busy():
            self._write_refusal(self._refusal)

    def _refuse(self, status: int) -> None:
        """Answer an invalid request, after the valid ones before it."""
        if self._ignores_input:
            return
        self._ignores_input = True
        if not self.is_busy():
            self._write_refusal(status)
        elif self._reading != "body" or self._unqueue():
            self._refusal = status  # after what is due
        elif not self.break_off(BodyTruncated("the chunks broke off")):
            self._answer_instead(self._refusal_of(status))

    def _write_refusal(self, status: int) -> None:
        if not self.transport.is_closing():
            self.write(self._refusal_of(status), keep_alive=False)
            self.end()

    def _refusal_of(self, status: int) -> Response:
        phrase = HTTPStatus(status).phrase
        code = phrase.lower().replace(" ", "_").replace("-", "_")
        problem = Problem(phrase, status, code, "This is not a request that is answered.")
        methods = "POST" if self._callback_path() else "GET, POST"
        allowed = {"Allow": methods} if status == HTTPStatus.METHOD_NOT_ALLOWED else {}
        return problem_response(problem, self.url.decode("latin-1"), allowed)

    def _callback_path(self) -> bool:
        return f"/{self.url.decode('latin-1').lstrip('/')}".startswith(PREFIX)

    def end(self) -> None:
        """Close it, but read on until the client has: unread bytes would reset the answer away."""
        self._since = self.loop.time()
        if self._ignores_input and not self._has_ended and self.transport.can_write_eof():
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()

    def _drain(self, size: int) -> None:
        self._drained += size
        if self.is_busy():
            self.flow.pause_reading()
        elif self._drained > MAX_DRAINED_BYTES:
            self.transport.close()
