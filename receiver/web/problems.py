"""The only table from error to status, and how errors look: problem documents (RFC 9457)."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import flask
import msgspec
import structlog
from flask import Flask
from werkzeug.exceptions import HTTPException

from receiver.errors import (
    AlreadyThere,
    Ambiguous,
    BadParameter,
    BodyGone,
    BodyTooLarge,
    BodyTruncated,
    CredentialError,
    EventGone,
    Forbidden,
    JobEnded,
    NoStream,
    NotFound,
    Overloaded,
    ReceiverError,
    SignatureError,
    StoreError,
    TooManyRejections,
    TooManyRequests,
    TooSlow,
    Unauthenticated,
    VendorError,
)
from receiver.lib import logs
from receiver.openconnectors import shapes
from receiver.openconnectors.shapes import BASE
from receiver.web.http import Response

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
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
    TooManyRejections: _Row(429, "rate_limited", "Too many rejected deliveries"),
    TooManyRequests: _Row(429, "rate_limited", "Too many requests"),
    Overloaded: _Row(503, "overloaded", "Too busy"),
    Unauthenticated: _Row(401, "unauthenticated", "A valid token is needed"),
    Forbidden: _Row(403, "forbidden", "The token does not allow this"),
    NotFound: _Row(404, "not_found", "Not found"),
    EventGone: _Row(410, "event_pruned", "The event is kept no longer"),
    BodyGone: _Row(410, "body_pruned", "The body is kept no longer"),
    Ambiguous: _Row(409, "ambiguous_job", "Several instances have this job"),
    JobEnded: _Row(409, "job_ended", "The job has ended"),
    AlreadyThere: _Row(409, "already_there", "The name is taken"),
    BadParameter: _Row(400, "bad_parameter", "A parameter is wrong"),
    NoStream: _Row(501, "no_stream", "No streams here"),
    TooSlow: _Row(503, "too_slow", "This question takes too long"),
    CredentialError: _Row(409, "not_possible", "Action not possible"),  # before a setting changes
    VendorError: _Row(502, "upstream", "The vendor rejected the request"),
    StoreError: _Row(503, "store_unavailable", "Cannot be stored or read now", "Try again later."),
}

# Werkzeug's own talk to whoever types a URL into a browser.
_HTTP_DETAILS = {404: "There is no such path.", 405: "This method is not allowed here."}


def register(app: Flask) -> None:
    """Answer every error that a view meets, or Flask before any, as a problem document."""
    app.register_error_handler(Exception, respond)


def respond(error: Exception) -> flask.Response:
    """Respond to an error as a problem document."""
    return flask_response(response_to(error, flask.request.path))


def response_to(error: Exception, path: str) -> Response:
    """Return the response to an error that was met at a path."""
    problem, headers = read_error(error, path)
    return problem_response(problem, path, headers)


def read_error(error: Exception, path: str) -> tuple[Problem, dict[str, str]]:
    """Return an error as it is answered, and the headers beside it; log a fault of ours."""
    if isinstance(error, HTTPException):
        return _of_flask(error)
    if isinstance(error, ReceiverError):
        return _of_ours(error)
    # The type alone: the text could hold what was sent, and a log must not.
    log.error("unforeseen error", error=type(error).__name__, path=path)
    return Problem("Internal error", 500, "internal", "This is a fault of the receiver."), {}


def _of_ours(error: ReceiverError) -> tuple[Problem, dict[str, str]]:
    if isinstance(error, StoreError):
        logs.warn_summed(
            log, "the store failed", error.reason, reason=error.reason, error=str(error)
        )
    row = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    status = error.status if isinstance(error, VendorError) else row.status
    headers = {}
    if retry_after := getattr(error, "retry_after", None):
        headers["Retry-After"] = str(retry_after)
    elif status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, (BodyTruncated, BodyTooLarge)):
        headers["Connection"] = "close"  # what follows on it is not a request
    return Problem(row.title, status, row.code, row.detail or str(error)), headers


def _of_flask(error: HTTPException) -> tuple[Problem, dict[str, str]]:
    status = error.code or 500
    code = error.name.lower().replace(" ", "_")
    detail = _HTTP_DETAILS.get(status) or error.description or error.name
    passed_on = ("Allow", "Location", "Retry-After")
    headers = {name: value for name, value in error.get_headers() if name in passed_on}
    return Problem(error.name, status, code, detail), headers


def flask_response(response: Response) -> flask.Response:
    """Return a response as Flask's."""
    return flask.Response(response.body, response.status, response.headers)


def problem_response(
    problem: Problem, path: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a problem as a response, in the vendor's shape under its own paths."""
    if path.startswith(BASE):
        body, media_type = error_body(problem.detail), "application/json"
        headers = {"X-Receiver-Source": "receiver", **(headers or {})}
    else:
        body, media_type = msgspec.json.encode(problem), MEDIA_TYPE
    return Response(problem.status, {"Content-Type": media_type, **(headers or {})}, body)


def error_body(message: str) -> bytes:
    """Write an error of ours as the vendor writes its own."""
    return msgspec.json.encode(shapes.write_error(secrets.token_hex(12), message))
