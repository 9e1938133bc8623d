"""Answers in the vendor's manner: JSON, errors too."""

from http import HTTPStatus
from uuid import uuid4

import msgspec
from flask import Response
from werkzeug.exceptions import HTTPException

JSON = "application/json"
_PAGE = "<!doctype html><title>Sign in</title><h1>Sign in</h1>"


def answer(content: object, status: int = HTTPStatus.OK) -> Response:
    """`content` as JSON; `bytes` of JSON are sent as they are."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, content_type=JSON)


def page(entries: bytes, count: int, following: int | None) -> Response:
    """A page of a list: a JSON array, how many entries it has, and where the next page starts."""
    response = answer(entries)
    response.headers["elements-returned-count"] = str(count)
    if following is not None:
        response.headers["elements-next-page-token"] = str(following)
    return response


def failure(status: int, message: str | None) -> Response:
    """An error with the vendor's body; `status` is the HTTP status."""
    return answer({"requestId": uuid4().hex, "message": message}, status)


def refusal(error: HTTPException) -> Response:
    """The same for an error that Flask or a view raised."""
    response = failure(error.code or HTTPStatus.INTERNAL_SERVER_ERROR, error.description)
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


def breakage(error: OSError) -> Response:
    """The same for a body that could not be read or kept. A fault drops the connection instead."""
    if isinstance(error, ConnectionError):
        raise error
    # Werkzeug's own complaints of broken chunks carry no error number, those of a disk do.
    broken = error.errno is None
    return failure(
        HTTPStatus.BAD_REQUEST if broken else HTTPStatus.INSUFFICIENT_STORAGE, str(error)
    )


def wrong(status: int) -> Response:
    """An error that was asked for as a fault."""
    response = failure(status, "The sandbox was told to answer like this.")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        response.headers["Retry-After"] = "1"
    return response


def html() -> Response:
    """A page of HTML where JSON is expected, as a proxy's sign-in page would be."""
    return Response(_PAGE, content_type="text/html; charset=utf-8")


def elsewhere(url: str) -> Response:
    """A redirect to `url`, with the vendor's body."""
    response = failure(HTTPStatus.FOUND, "Found")
    response.headers["Location"] = url
    return response
