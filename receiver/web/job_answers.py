"""What is asked for most, answered without a web framework: a job, and pages of jobs."""

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import msgspec
from msgspec import UNSET
from werkzeug.http import parse_etags

from receiver.errors import Ambiguous, BadParameter, NotFound
from receiver.jobs import lists
from receiver.jobs.lists import JobLine
from receiver.jobs.queries import JobFilter
from receiver.web import Services
from receiver.web import schemas as shapes
from receiver.web.answers import (
    JSON,
    Question,
    authenticated,
    bearer_token,
    check_reach,
    counted,
    known,
    moment,
    paged,
    parameters,
    position_of,
)
from receiver.web.problems import Answer

MOST_AT_HAND = 1_000  # jobs whose JSON is kept, if their registers
LARGEST_AT_HAND = 2_000  # are no longer than this: 3 MB in all


def job_answer(services: Services, question: Question, job_id: str, *, may_wait: bool) -> Answer:
    """Answer `GET /jobs/{id}`. Raises QueryError or StoreError.

    may_wait -- whether this thread may be held while the job is under way, if that is asked for.
    """
    token = bearer_token(question)
    services.limits.check_address(question.peer)
    try:
        query = parameters(question.query_string, shapes.JobQuery)
    except BadParameter:
        authenticated(services, question)  # who may not ask is not told how to
        raise
    instance = None if query.instance is UNSET else str(query.instance)

    is_first = True

    def look() -> Sequence[JobLine]:
        nonlocal is_first
        database, now = services.database, services.clock()
        bearer, found = lists.job_asked_for(database.rows, token, now, job_id, instance)
        if is_first:  # however often it looks, it is one request
            counted(services, question.peer, bearer)
            is_first = False
        check_reach(known(bearer), [] if instance is None else [instance])
        return found

    if query.wait and may_wait:
        found = services.waiters.until(look, _settled, query.wait)
    else:
        found = look()
    return _shown(the_one(found, job_id), question.if_none_match)


def jobs_answer(services: Services, question: Question) -> Answer:
    """Answer `GET /jobs`. Raises QueryError or StoreError."""
    bearer = authenticated(services, question)
    query = parameters(question.query_string, shapes.JobsQuery)
    check_reach(bearer, query.instance)
    wanted = wanted_jobs(query)
    after = position_of(query.cursor, (int, str, str))
    read = services.database.rows
    found = lists.jobs(read, wanted, bearer.instances, query.limit + 1, after)
    return paged(
        found,
        query.limit,
        "jobs",
        _job_json,
        lambda line: (line.updated_at, line.id, line.instance),
        question,
    )


def wanted_jobs(query: shapes.JobsQuery) -> JobFilter:
    """Say what a list of jobs is asked for as the store is asked. Raises BadParameter."""
    return JobFilter(
        instances=query.instance,
        statuses=query.status,
        outcomes=query.outcome,
        objects=query.object,
        directions=query.direction,
        updated_after=moment(query.updated_after),
        updated_before=moment(query.updated_before),
        expires_before=moment(query.expires_before),
        text=query.q or None,
    )


def the_one(found: Sequence[JobLine], job_id: str) -> JobLine:
    """Give the only job of that id. Raises NotFound or Ambiguous."""
    if not found:
        raise NotFound(f"no job {job_id} is known")
    if len(found) > 1:
        names = ", ".join(sorted(line.instance for line in found))
        raise Ambiguous(f"job {job_id} is known to {names}: name one with ?instance=")
    return found[0]


def _settled(found: Sequence[JobLine]) -> bool:
    return len(found) > 1 or any(shapes.merged_job(line).ended for line in found)


def _shown(line: JobLine, if_none_match: str | None) -> Answer:
    tag = f"{line.updated_at:x}-{line.revision:x}-{crc32(line.instance.encode()):x}"
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
    if if_none_match and parse_etags(if_none_match).contains_weak(tag):
        return Answer(304, headers, b"")
    return Answer(200, {**JSON, **headers}, msgspec.json.encode(shapes.job(line)))


def _job_json(row: JobLine) -> msgspec.Raw:
    """Show a job as JSON. What was shown lately is at hand: lists are asked for again and again."""
    return _shown_before(row) if len(row.registers) <= LARGEST_AT_HAND else _written(row)


def _written(row: JobLine) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(shapes.job(row)))


# The whole row is the key, so that nothing can be out of date.
_shown_before = lru_cache(maxsize=MOST_AT_HAND)(_written)
