"""Reading the raw body of Flask's current request, whole, and what an upload's says of its file.

Neither Werkzeug nor the server can be left to it: a chunked body above MAX_CONTENT_LENGTH is
silently cut, and one that breaks off arrives shorter, without an error.
"""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, cast

from flask import request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from receiver.errors import BodyTooLarge, BodyTruncated, Overloaded
from receiver.lib.records import UnclearDialect, count_records

PIECE = 64 * 2**10  # bytes
MAX_PARTS = 100  # of a form
MAX_FIELD = 64 * 2**10  # bytes of a form field that is read
MAX_HELD = 64 * 2**10  # bytes of a body in memory; the rest is on disk
SPARE_DISK = 256 * 2**20  # bytes that spooled bodies leave free
MAX_UPLOADS = 8  # at once in one process; each holds a thread until all of it is passed on
UPLOAD_RETRY_AFTER = 2  # seconds
DISK_RETRY_AFTER = 60  # seconds

_uploads = threading.BoundedSemaphore(MAX_UPLOADS)


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


@contextmanager
def upload_slot() -> Iterator[None]:
    """Take one of MAX_UPLOADS slots. Raises Overloaded if none is free."""
    if not _uploads.acquire(blocking=False):
        raise Overloaded("as many uploads as are taken at once", UPLOAD_RETRY_AFTER)
    try:
        yield
    finally:
        _uploads.release()


@contextmanager
def spooled(limit: int) -> Iterator[IO[bytes]]:
    """Return the body of this request, whole.

    Raises BodyTooLarge above `limit` bytes, BodyTruncated if not all of it arrives, Overloaded
    where the disk has no room for it.
    """
    with tempfile.SpooledTemporaryFile(MAX_HELD) as spool:
        for piece in body_pieces(limit):
            _spool(piece, spool, request.content_length or 0)
        spool.seek(0)
        yield cast("IO[bytes]", spool)


def _spool(piece: bytes, spool: tempfile.SpooledTemporaryFile[bytes], announced: int) -> None:
    try:
        size = spool.tell() + len(piece)
        to_come = max(announced - size, 0)
        on_disk = size + to_come > MAX_HELD
        if on_disk and shutil.disk_usage(tempfile.gettempdir()).free - to_come < SPARE_DISK:
            raise Overloaded("there is no room on the disk for this body", DISK_RETRY_AFTER)
        spool.write(piece)
    except OSError:
        raise Overloaded("the disk does not take this body", DISK_RETRY_AFTER) from None


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


def count_upload(body: IO[bytes], headers: Headers) -> int | None:
    """Count the records of an upload's file, in a form or as the body itself; None if unclear."""
    if headers.get("Content-Encoding", "identity") != "identity":
        return None
    if not headers.get("Content-Type", "").lower().startswith("multipart/"):
        return count_records(lambda: pieces(body))
    return count_records(lambda: file_pieces(body, headers))


def form_field(body: IO[bytes] | None, headers: Headers, name: str) -> str | None:
    """Return a field of a form in the body, None if it is missing."""
    boundary = _boundary(headers)
    if body is None or boundary is None:
        return None
    try:
        for event, data in _parts(body, boundary):
            if isinstance(event, Field) and event.name == name and len(data) <= MAX_FIELD:
                return data.decode("utf-8", "replace")
    except UnclearDialect:
        pass
    return None


def _boundary(headers: Headers) -> bytes | None:
    content_type, options = parse_options_header(headers.get("Content-Type", ""))
    if content_type != "multipart/form-data" or "boundary" not in options:
        return None
    return options["boundary"].encode("latin-1", "replace")


def file_pieces(body: IO[bytes], headers: Headers) -> Iterator[bytes]:
    """Yield a form's only file, in pieces. Raises UnclearDialect if there is none, or another."""
    boundary = _boundary(headers)
    if boundary is None:
        raise UnclearDialect("there is no form")
    seen: Field | File | None = None
    for event, data in _parts(body, boundary):
        if isinstance(event, File):
            if seen not in (None, event):
                raise UnclearDialect("there are several files")
            seen = event
            yield data
    if seen is None:
        raise UnclearDialect("there is no file")


def _parts(body: IO[bytes], boundary: bytes) -> Iterator[tuple[Field | File, bytes]]:
    """Yield each piece of data with the part that it belongs to. Raises UnclearDialect."""
    decoder = MultipartDecoder(boundary, max_parts=MAX_PARTS)
    part: Field | File | None = None
    try:
        for piece in chain(pieces(body), (None,)):
            decoder.receive_data(piece)
            while not isinstance(event := decoder.next_event(), (NeedData, Epilogue)):
                if isinstance(event, (Field, File)):
                    part = event
                elif isinstance(event, Data) and part is not None:
                    yield part, event.data
            if isinstance(event, Epilogue):
                return
    except (HTTPException, ValueError) as error:
        raise UnclearDialect("the form cannot be read") from error
    raise UnclearDialect("the form is not whole")
