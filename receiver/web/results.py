"""A job's file on its way from the vendor to a client, piece by piece."""

import contextlib
from collections.abc import Iterator
from typing import Any

import structlog
from flask import g

from receiver.errors import AnswerCut, StoreError, UpstreamError
from receiver.jobs.queries import note_fetched
from receiver.openconnectors.client import Call
from receiver.web import services

log = structlog.get_logger()


def passed_through(call: Call, job_id: str) -> tuple[str, Iterator[bytes]]:
    """Give a file's content type and its pieces, which raise AnswerCut. Raises UpstreamError."""
    pieces = _pieces(call, job_id)
    content_type = next(pieces)
    return str(content_type), _or_cut(pieces, job_id)


def _pieces(call: Call, job_id: str) -> Iterator[Any]:
    with services().vendor.stream(g.vendor.authorization, call) as (content_type, pieces):
        yield content_type
        yield from pieces
    with contextlib.suppress(StoreError), services().database.write() as session:
        note_fetched(session, job_id, g.instance, services().clock())


def _or_cut(pieces: Iterator[bytes], job_id: str) -> Iterator[bytes]:
    try:
        yield from pieces
    except UpstreamError as error:
        log.warning("a result broke off", instance=g.instance, job=job_id, error=str(error))
        # An answer that just ended here would look whole.
        raise AnswerCut("the vendor broke off a result") from None
