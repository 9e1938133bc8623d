"""The only table from error to status, and how errors look: problem documents (RFC 9457)."""

import secrets
from dataclasses import dataclass

import msgspec
import structlog
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from receiver.errors import (
    Ambiguous,
    BadParameter,
    BodyGone,
    BodyTooLarge,
    BodyTruncated,
    CredentialError,
    Forbidden,
    NotFound,
    ReceiverError,
    SignatureError,
    StoreError,
    TooManyRefusals,
    TooSlow,
    Unauthenticated,
    UpstreamError,
)
from receiver.web.answers import JSON, Answer

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
VENDORS_PATHS = "/elements/api-v2"  # there, errors have the vendor's shape
RETRY_AFTER_SECONDS = 5


class Problem(msgspec.Struct, frozen=True):
    """An error as it is answered. `code` is stable, `title` and `detail` are for people."""

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    code: str
    title: str
    detail: str | None = None  # where the error's own text is not for whoever asks


_TABLE: dict[type[ReceiverError], _Row] = {
    BodyTruncated: _Row(400, "truncated", "The body did not arrive whole"),
    BodyTooLarge: _Row(413, "too_large", "The body is too large"),
    # One answer for every cause: a stranger learns neither names nor reasons.
    SignatureError: _Row(
        401, "not_verified", "Not verified", "The signature does not prove this delivery."
    ),
    TooManyRefusals: _Row(429, "rate_limited", "Too many refused deliveries"),
    Unauthenticated: _Row(401, "unauthenticated", "A valid token is needed"),
    Forbidden: _Row(403, "forbidden", "The token does not allow this"),
    NotFound: _Row(404, "not_found", "Not found"),
    BodyGone: _Row(410, "body_pruned", "The body is kept no longer"),
    Ambiguous: _Row(409, "ambiguous_job", "Several instances have this job"),
    BadParameter: _Row(400, "bad_parameter", "A parameter is wrong"),
    TooSlow: _Row(503, "too_slow", "This question takes too long"),
    CredentialError: _Row(
        503, "store_unavailable", "Cannot be done now", "A secret cannot be used now."
    ),
    UpstreamError: _Row(502, "upstream", "The vendor did not do it"),
    StoreError: _Row(503, "store_unavailable", "Cannot be stored or read now", "Try again later."),
}


def register(app: Flask) -> None:
    """Have every error of this app answered as a problem document."""
    app.register_error_handler(Exception, _answered)


def _answered(error: Exception) -> Response:
    answer = problem_answer(error, request.path)
    return Response(answer.body, answer.status, answer.headers)


def problem_answer(error: Exception, path: str) -> Answer:
    """Answer an error of ours, of the web framework, or a fault. path -- of the request."""
    if isinstance(error, ReceiverError):
        return _ours(error, path)
    if isinstance(error, HTTPException):
        return _frameworks(error, path)
    # The type alone: the text could hold what was sent, and a log must not.
    log.error("unforeseen error", error=type(error).__name__, path=path)
    fault = Problem("Internal error", 500, "internal", "This is a fault of the receiver.")
    return _written(fault, path)


def _ours(error: ReceiverError, path: str) -> Answer:
    row = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    status = error.status if isinstance(error, UpstreamError) else row.status
    answer = _written(Problem(row.title, status, row.code, row.detail or str(error)), path)
    if isinstance(error, TooManyRefusals):
        answer.headers.append(("Retry-After", str(error.retry_after)))
    elif row.status == 503:  # noqa: PLR2004
        answer.headers.append(("Retry-After", str(RETRY_AFTER_SECONDS)))
    elif isinstance(error, Unauthenticated):
        answer.headers.append(("WWW-Authenticate", "Bearer"))
    elif isinstance(error, (BodyTruncated, BodyTooLarge)):
        answer.headers.append(("Connection", "close"))  # what follows on it is not a request
    return answer


def _frameworks(error: HTTPException, path: str) -> Answer:
    status = error.code or 500
    code = error.name.lower().replace(" ", "_")
    answer = _written(Problem(error.name, status, code, error.description or error.name), path)
    kept = ("Allow", "Location", "Retry-After")
    answer.headers.extend(header for header in error.get_headers() if header[0] in kept)
    return answer


def _written(problem: Problem, path: str) -> Answer:
    if path.startswith(VENDORS_PATHS):
        body = {"requestId": secrets.token_hex(12), "message": problem.detail}
        return Answer(problem.status, [JSON], msgspec.json.encode(body))
    headers = [("Content-Type", MEDIA_TYPE)]
    return Answer(problem.status, headers, msgspec.json.encode(problem))
