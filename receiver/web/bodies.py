"""Reading the raw body of Flask's current request, whole.

Neither Werkzeug nor the server can be left to it: a chunked body above MAX_CONTENT_LENGTH is
silently cut, and one that breaks off arrives shorter, without an error.
"""

from collections.abc import Iterator
from typing import IO

from flask import request

from receiver.errors import BodyTooLarge, BodyTruncated

PIECE = 64 * 2**10  # bytes


def body_pieces(limit: int) -> Iterator[bytes]:
    """Yield the body as it arrives.

    Raises BodyTooLarge above `limit` bytes, BodyTruncated if not all of it arrives.
    """
    announced, size = request.content_length, 0
    if announced is not None and announced > limit:
        raise BodyTooLarge(f"more than {limit} bytes")
    while piece := _read():
        size += len(piece)
        if size > limit:
            raise BodyTooLarge(f"more than {limit} bytes")
        yield piece
    if announced is not None and size != announced:
        raise BodyTruncated(f"{size} of {announced} bytes arrived")


def pieces(body: IO[bytes]) -> Iterator[bytes]:
    """Yield a spooled body, from its start."""
    body.seek(0)
    while piece := body.read(PIECE):
        yield piece


def _read() -> bytes:
    try:
        return request.stream.read(PIECE)
    except Exception:  # noqa: BLE001 - each server has its own errors for broken chunks
        raise BodyTruncated("the body did not arrive whole") from None
