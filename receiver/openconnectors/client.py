"""The vendor's bulk API: what is asked and how the answer reads is pure; sending is apart.

Paths, parameters and shapes are those of the vendor's OpenAPI document (`BulkApi`). Only what can
be repeated without harm is repeated; no redirect is followed: it would carry the secrets elsewhere.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import quote, urlsplit

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from receiver import metrics
from receiver.errors import (
    VendorError,
    VendorNonsense,
    VendorRefused,
    VendorUnclear,
    VendorUnreachable,
)
from receiver.lib.http_client import failure_reason, make_client
from receiver.openconnectors.notifications import Notification, json_text, parse, parse_json, read
from receiver.openconnectors.shapes import (
    DELIVERIES,
    MEDIA_TYPES,
    NEXT_PAGE_HEADER,
    QUEUED,
    read_retry_after,
)

MAX_ANSWER = 16 * 2**20  # bytes; a page of 200 errors is some 100 KiB
MAX_PAGES = 10_000
TRIES = 3
_TIMEOUT = httpx.Timeout(30, connect=5)  # seconds
# How a job's file is asked for in its own format: as it comes, else by name; each refusal of a
# format that is another than the job's is one of these.
ACCEPTED = ("*/*", *MEDIA_TYPES.values())
WRONG_FORMAT = (400, 406)
_END_OF_STATUSES = 600  # of HTTP: no server can pass a greater one on
UPLOAD_SECONDS = 300  # the vendor answers once it has the whole file
_NO_AUTH = httpx.Auth()  # of the URL or of ~/.netrc
_SECRET = re.compile(
    r"(?:Element|User|Organization) (.+?)(?=, (?:User|Organization) |\Z)", re.DOTALL
)
_MIN_SECRET = 8  # characters; a shorter one would be taken out of what only looks like it
Headers = Sequence[tuple[bytes, bytes]]
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, below the base URL. safe -- whether the same again changes nothing.

    name -- what is asked, one of a fixed set of words, for the metrics.
    """

    method: str
    path: str
    name: str = "other"
    safe: bool = True
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer of the vendor."""

    body: bytes
    next_page: str | None


def quote_segment(text: str) -> str:
    """Write an id, an object or a hub as one segment of a path. Raises VendorRefused.

    A segment of dots would lead out of its place, to whatever else our secrets open.
    """
    if text in (".", ".."):
        raise VendorRefused("there is no such thing", 404)
    return quote(text, safe="")


def status_call(job: str, hub: str | None = None) -> Call:
    """Return the request for a job's status."""
    return _get("status", hub, job, "status")


def errors_call(job: str, hub: str | None = None) -> Call:
    """Return the request for a job's failed records."""
    return _get("errors", hub, job, "errors")


def jobs_call(hub: str | None = None) -> Call:
    """Return the request for the job list."""
    return _get("jobs", hub, "jobs")


def result_call(job: str, object_name: str, accept: str, hub: str | None = None) -> Call:
    """Return the request for a job's file."""
    return replace(_get("result", hub, job, object_name), headers={"Accept": accept})


def _get(name: str, hub: str | None, *segments: str) -> Call:
    below = "/".join(map(quote_segment, segments))
    hubs = f"/hubs/{quote_segment(hub)}" if hub else ""
    return Call(method="GET", path=f"{hubs}/bulk/{below}", name=name)


def queue_call(*, resend: bool = False) -> Call:
    """Return the request for the deliveries that the vendor holds back, or to send them again."""
    method = "PUT" if resend else "GET"
    name = "resend" if resend else "queue"
    return Call(method=method, path=DELIVERIES, name=name, params={"where": QUEUED})


def read_status(body: bytes, job: str | None = None) -> Notification:
    """Read where a job stands; job -- the id that was asked for. Raises VendorNonsense."""
    status = parse(body, job)
    if status.kind != "bulk_job" or job not in (None, status.job):
        raise VendorNonsense("the vendor's answer is no status of this job")
    return status


def read_jobs(body: bytes) -> list[Notification]:
    """Read a page of the job list. Raises VendorNonsense."""
    return [job for job in map(read, _read_array(body)) if job.kind == "bulk_job"]


def read_entries(body: bytes) -> list[str]:
    """Read an array; return its entries as JSON text. Raises VendorNonsense."""
    return list(map(json_text, _read_array(body)))


def _read_array(body: bytes) -> list[object]:
    try:
        entries = parse_json(body)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise VendorNonsense("the vendor's answer is no array")
    return entries


class VendorClient:
    """Sends calls to the vendor; thread-safe. base_url -- ending in /elements/api-v2."""

    def __init__(self, base_url: str, transport: httpx.BaseTransport | None = None) -> None:
        self._base_url = base_url
        self._transport = transport
        self._retrying = Retrying(
            retry=retry_if_exception(_may_be_repeated),
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            reraise=True,
        )

    @cached_property
    def _client(self) -> httpx.Client:
        # Not before it is needed: in a worker that only receives it would be 3 MB of certificates.
        # No cookies: what the vendor sets for one instance is not sent for another.
        cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        return make_client(
            lambda: httpx.Client(
                transport=self._transport, timeout=_TIMEOUT, follow_redirects=False, cookies=cookies
            )
        )

    def send(
        self, authorization: str, call: Call, turn: Callable[[], object] | None = None
    ) -> Answer:
        """Send a call that may be repeated, again if the vendor failed.

        authorization -- the value of the header of that name. turn -- waits before each repetition
        until there may be one. Raises VendorError.
        """
        retrying = self._retrying.copy(before_sleep=lambda _: turn() if turn else None)
        return retrying(self._send, authorization, call)

    @contextmanager
    def stream(self, authorization: str, call: Call) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Yield the content type and the pieces of an answer of any length."""
        with self._answer(authorization, call) as answer:
            content_type = answer.headers.get("content-type", "application/octet-stream")
            if content_type.startswith("text/html"):
                raise VendorNonsense("the vendor's answer is a page of HTML, not a file")
            yield content_type, answer.iter_bytes()

    def pages(
        self, authorization: str, first: Call, turn: Callable[[], object] | None = None
    ) -> Iterator[Answer]:
        """Send a paged call until the vendor has no further page, or names one that was seen."""
        call, seen = first, set[str | None]()
        while len(seen) < MAX_PAGES:
            answer = self.send(authorization, call, turn)
            yield answer
            if not answer.next_page or answer.next_page in seen:
                return
            seen.add(answer.next_page)
            call = replace(call, params={**call.params, "nextPage": answer.next_page})

    def relay(
        self, call: Call, target: str, headers: Headers, body: Iterable[bytes], seconds: float
    ) -> httpx.Response:
        """Send a request as it came; return the answer, whose body is still to be read and closed.

        target -- path and query below the base URL, percent-encoded. headers -- all that are sent,
        but Host. seconds -- without a byte of an answer. Raises VendorError.
        """
        base = urlsplit(self._base_url)
        request = httpx.Request(
            call.method,
            self._base_url,
            headers=[(b"Host", base.netloc.encode()), *headers],
            stream=_Pieces(body),
            extensions={
                # Not as a URL, which would be written anew.
                "target": (base.path + target).encode("latin-1"),
                "timeout": httpx.Timeout(seconds, connect=min(seconds, 5)).as_dict(),
            },
        )
        with _raise_vendor_errors(call), _measured(call) as measure:
            answer = self._client.send(request, stream=True, auth=_NO_AUTH)
            measure.status = answer.status_code
        if answer.status_code >= _END_OF_STATUSES:
            answer.close()
            raise _refusal(answer, b"")
        return answer

    @staticmethod
    def pieces(answer: httpx.Response, call: Call) -> Iterator[bytes]:
        """Yield the body of an answer as it comes, undecoded. Raises VendorError."""
        with _raise_vendor_errors(call):
            yield from answer.iter_raw()

    def close(self) -> None:
        """Close all connections."""
        if "_client" in self.__dict__:
            self._client.close()

    def _send(self, authorization: str, call: Call) -> Answer:
        with self._answer(authorization, call) as answer:
            body = redact_secrets(_read_capped(answer), authorization)
            return Answer(body, answer.headers.get(NEXT_PAGE_HEADER))

    @contextmanager
    def _answer(self, authorization: str, call: Call) -> Iterator[httpx.Response]:
        """Yield a 2xx answer, whose body is still to be read. Raises VendorError."""
        url, params = self._base_url + call.path, dict(call.params) or None
        headers = {**call.headers, "Authorization": authorization}
        with (
            _raise_vendor_errors(call),
            _measured(call) as measure,
            self._client.stream(call.method, url, params=params, headers=headers) as answer,
        ):
            measure.status = answer.status_code
            if not answer.is_success:
                raise _refusal(answer, redact_secrets(_read_capped(answer), authorization))
            yield answer


class _Pieces(httpx.SyncByteStream):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


@dataclass(slots=True)
class _Measure:
    status: int | None = None


@contextmanager
def _measured(call: Call) -> Iterator[_Measure]:
    """Measure a call from its start to the end of its answer."""
    measure, began = _Measure(), time.perf_counter()
    try:
        yield measure
    finally:
        status = f"{measure.status // 100}xx" if measure.status else "none"
        took = time.perf_counter() - began
        metrics.VENDOR_SECONDS.labels(call.name, status).observe(took)


@contextmanager
def _raise_vendor_errors(call: Call) -> Iterator[None]:
    try:
        yield
    except _NOT_SENT as error:
        raise VendorUnreachable(f"the vendor cannot be reached: {failure_reason(error)}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        timed_out = isinstance(error, httpx.TimeoutException)
        # Not the error's own text, which may quote a header.
        reason = "it took too long" if timed_out else "the connection broke"
        status = 504 if timed_out else 502
        if call.safe:
            raise VendorUnreachable(f"the vendor did not answer: {reason}", status) from None
        raise VendorUnclear(f"the vendor's answer was cut off: {reason}", status) from None


def _may_be_repeated(error: BaseException) -> bool:
    """Whether a safe call may be sent again at once: the vendor named no time for it."""
    limited = isinstance(error, VendorError) and (error.retry_after or error.status == 429)
    return isinstance(error, VendorUnreachable) and not limited


def _read_capped(answer: httpx.Response) -> bytes:
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > MAX_ANSWER:
            raise VendorNonsense(f"the vendor's answer has more than {MAX_ANSWER} bytes")
    return bytes(body)


def redact_secrets(body: bytes, authorization: str) -> bytes:
    """Mask our secrets in an answer that quotes them: it goes to clients, logs and tables."""
    for secret in _SECRET.findall(authorization):
        if len(secret) >= _MIN_SECRET:
            for written in (secret, json.dumps(secret)[1:-1], quote(secret, safe="")):
                body = body.replace(written.encode(), b"[secret]")
    return body


def _refusal(answer: httpx.Response, body: bytes) -> VendorError:
    status = answer.status_code
    if status in (408, 429) or status >= 500:
        retry_after = read_retry_after(answer.headers.get("retry-after", ""), time.time())
        message = error_message(body) or f"the vendor answered {status}"
        passed_on = status if status < _END_OF_STATUSES else 502
        return VendorUnreachable(message, passed_on, retry_after)
    if status < 400:
        return VendorNonsense(f"the vendor answered {status}, which is not followed")
    return VendorRefused(error_message(body) or f"the vendor answered {status}", status)


def error_message(body: bytes) -> str | None:
    """Return the message of an error in the vendor's shape; None if there is none."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return None
    return message[:1000] if isinstance(message, str) else None
