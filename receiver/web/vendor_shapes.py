"""How the vendor writes what it is asked: statuses, lists, pages."""

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
from flask import Response, request

from receiver.errors import BadParameter, UpstreamNonsense
from receiver.jobs import queries
from receiver.jobs.job import Job as MergedJob
from receiver.jobs.job import is_fault
from receiver.jobs.queries import JobRecord, Place
from receiver.openconnectors.client import NEXT_PAGE_HEADER, Answer
from receiver.web.http import read_cursor

COUNT_HEADER = "elements-returned-count"
PAGE_SIZE = 200
LARGEST_PAGE = 2000

_AND = re.compile(r"(?<!\s)\s++and\s++", re.IGNORECASE)
_NUMBER = re.compile(r"0|[1-9][0-9]*")  # an id that a number writes as well
_CONDITION = re.compile(r"\s*(job_status|object_name|job_direction)\s*=\s*'([^'\0]*)'\s*")


def as_vendor(row: JobRecord) -> dict[str, Any]:
    """Write a job in the shape of the vendor's status, as far as it is known."""
    job = row.job
    return _known(
        {
            "id": row.id,
            "status": job.status,
            "recordsCount": _so_far(job, job.reported),
            "recordsFailedCount": _so_far(job, job.failed),
            "error" if is_fault(job.status) else "message": job.text("message"),
        }
    )


def as_listed(row: JobRecord) -> dict[str, Any]:
    """Write a job in the shape of the vendor's job list."""
    job = row.job
    return _known(
        {
            "id": int(row.id) if _NUMBER.fullmatch(row.id) else row.id,
            "status": job.status,
            "job_state": job.status,
            "object_name": job.text("object"),
            "job_direction": job.text("direction"),
            "record_count": _so_far(job, job.reported),
            "error_count": _so_far(job, job.failed),
            "createdDate": job.created_at,
            "completion_time": job.ended_at,
        }
    )


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _so_far(job: MergedJob, count: int | None) -> int | None:
    """Count none while a job is under way, as the vendor does; an ending may leave it unknown."""
    return 0 if count is None and not job.ended else count


def conditions(where: str | None, instance: str) -> queries.Filters | None:
    """Read `where` for an instance; None if the store cannot answer it."""
    named: dict[str, str] = {}
    for part in _AND.split(where) if where is not None else ():
        condition = _CONDITION.fullmatch(part)
        if condition is None:
            return None
        named[condition[1]] = condition[2]
    return queries.Filters(
        instances=[instance],
        statuses=_named(named, "job_status"),
        objects=_named(named, "object_name"),
        directions=_named(named, "job_direction"),
    )


def _named(named: dict[str, str], name: str) -> Sequence[str]:
    return [named[name]] if name in named else []


def page_size() -> int:
    """How many entries a page of this request shall have. Raises BadParameter."""
    text = request.args.get("pageSize", str(PAGE_SIZE))
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= LARGEST_PAGE:
        raise BadParameter(f"pageSize must be 1 to {LARGEST_PAGE}")
    return int(text)


def page_start() -> int | None:
    """Where the page starts that a token of ours names; None for none, or one of the vendor's."""
    match = re.fullmatch("r([0-9]{1,12})", request.args.get("nextPage", "r0"))
    return int(match[1]) if match else None


def page_place() -> Place | None:
    """Where in a list of jobs the page starts that a token of ours names; None as `page_start`."""
    token = request.args.get("nextPage", "")
    if not token.startswith("r"):
        return None
    try:
        place: Place | None = read_cursor(token[1:], tuple[int, str, str])
    except BadParameter:  # one of the vendor's
        return None
    return place


def vendors_page(entries: list[Any], following: int | str | None) -> Response:
    """Answer a page; following -- where the next one starts."""
    response = vendors_json(entries)
    response.headers[COUNT_HEADER] = str(len(entries))
    if following is not None:
        response.headers[NEXT_PAGE_HEADER] = f"r{following}"
    return response


def vendors_json(content: Any) -> Response:  # noqa: ANN401 - whatever can be written
    """Answer 200 with JSON."""
    return Response(msgspec.json.encode(content), mimetype="application/json")


def passed_on(answer: Answer) -> Response:
    """Answer as the vendor did. Raises UpstreamNonsense for anything but JSON, or no body at all.

    Whatever else a stranger's page holds, it is not shown under our own address.
    """
    try:
        content = json.loads(answer.body or b"null")
    except (ValueError, RecursionError):
        raise UpstreamNonsense("the vendor's answer is not JSON") from None
    response = Response(answer.body, mimetype="application/json")
    if isinstance(content, list):
        response.headers[COUNT_HEADER] = str(len(content))
    if answer.next_page:
        response.headers[NEXT_PAGE_HEADER] = answer.next_page
    return response
